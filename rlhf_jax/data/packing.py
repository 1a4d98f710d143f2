"""Packing: several examples one after another in rows of one width.

A batch keeps its examples, and with them its loss; only padding goes. Which examples
share a row follows from their sizes alone (first fit, the largest first), so a batch is
the same after any number of restarts. The number of rows is rounded up to one of few
numbers, since every shape compiles a program of its own.

Letters: N rows, T tokens of a row, M targets of a row. Targets are the tokens whose
log-probabilities a loss reads; only these are projected to the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.batches import SFTBatch
from rlhf_jax.data.batching import pad_right, round_up

# The room for targets beyond their mean share of a row: rows differ in their share.
SPARE_TARGETS = 1.125


class Room(NamedTuple):
    """The room of a row."""

    tokens: int
    targets: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], multiple: int) -> "Room":
        """Return the room of rows that any of these examples fits into.

        Args:
            sizes: the numbers of tokens and of targets of each example.
            multiple: the number of tokens that both are rounded up to a multiple of.
        """
        tokens, targets = np.asarray(sizes).T
        width = round_up(int(tokens.max()), multiple)
        mean = SPARE_TARGETS * width * targets.sum() / tokens.sum()
        wanted = max(int(np.ceil(mean)), int(targets.max()), 1)
        return cls(width, min(round_up(wanted, multiple), width))


def first_fit(
    sizes: Sequence[tuple[int, int]], room: Room, *, most: int | None = None
) -> list[list[int]]:
    """Share examples out among rows: the largest first, each into the first row that
    has room for its tokens and its targets.

    Args:
        sizes: the numbers of tokens and of targets of each example.
        most: the most examples of a row; None for no limit.

    Returns:
        The numbers of the examples of each row.

    Raises:
        ValueError: an example is larger than a row.
    """
    wanted = np.asarray(sizes).reshape(-1, 2)
    left = np.empty((len(wanted), 2), int)  # the room left in each row
    left[:] = room
    rows: list[list[int]] = []
    for i in np.argsort(-wanted[:, 0], kind="stable").tolist():
        if (wanted[i] > room).any():
            raise ValueError(f"Example {i} of {wanted[i].tolist()} exceeds {room=}.")
        fits = (left[: len(rows) + 1] >= wanted[i]).all(axis=1)
        if most is not None:
            fits[: len(rows)] &= np.array([len(row) < most for row in rows], bool)
        place = int(fits.argmax())
        if place == len(rows):
            rows.append([])
        rows[place].append(i)
        left[place] -= wanted[i]
    return rows


def row_count(needed: int, *, unit: int, largest: int) -> int:
    """Round a number of rows up to a multiple of `unit`, with four significant bits: 1,
    2, ..., 16, 18, 20, ..., 32, 36, ... times `unit`. At most an eighth is added.

    Args:
        unit: the number of rows that devices and microbatches need a multiple of.
        largest: the most rows, a multiple of `unit`.
    """
    units = max(-(-needed // unit), 1)
    step = 1 << max(units.bit_length() - 4, 0)
    return min(round_up(units, step) * unit, largest)


def pack_dialogues(
    examples: Sequence[tuple[list[int], list[bool]]],
    *,
    pad_id: int,
    room: Room,
    unit: int,
    batch_size: int,
) -> SFTBatch:
    """Pack a batch of dialogues (token ids, loss mask) into as few rows as they need.

    Args:
        unit, batch_size: `row_count`'s `unit` and `largest`.
    """
    rows = first_fit([size(example) for example in examples], room)
    count = row_count(len(rows), unit=unit, largest=batch_size)
    return _dialogues(examples, rows, count, pad_id, room)


def pack_evaluation(
    examples: Sequence[tuple[list[int], list[bool]]],
    *,
    pad_id: int,
    room: Room,
    unit: int,
    batch_size: int,
) -> list[SFTBatch]:
    """Pack dialogues into batches of one shape, of at most `batch_size` rows; see
    `pack_dialogues`."""
    rows = first_fit([size(example) for example in examples], room)
    count = row_count(min(len(rows), batch_size), unit=unit, largest=batch_size)
    return [
        _dialogues(examples, rows[i : i + count], count, pad_id, room)
        for i in range(0, len(rows), count)
    ]


def size(example: tuple[list[int], list[bool]]) -> tuple[int, int]:
    """Return the numbers of tokens and of targets of a dialogue."""
    ids, loss_mask = example
    return len(ids), sum(loss_mask)


def _dialogues(examples, rows: list[list[int]], count: int, pad_id: int, room: Room):
    rows = [*rows, *[[]] * (count - len(rows))]

    def joined(part, fill):
        lists = [[x for i in row for x in part(i)] for row in rows]
        return pad_right(lists, room.tokens, fill)[0]

    tokens, mask = pad_right(
        [[x for i in row for x in examples[i][0]] for row in rows], room.tokens, pad_id
    )
    loss_mask = joined(lambda i: examples[i][1], 0).astype(bool)
    numbers = [
        [place for place, i in enumerate(row) for _ in examples[i][0]] for row in rows
    ]
    # No token before it predicts the first of an example.
    is_first = joined(lambda i: [1] + [0] * (len(examples[i][0]) - 1), 0).astype(bool)
    targets = [np.flatnonzero(wanted).tolist() for wanted in loss_mask & ~is_first]
    return SFTBatch(
        tokens=tokens,
        mask=mask,
        loss_mask=loss_mask,
        examples=pad_right(numbers, room.tokens, 0)[0],
        targets=pad_right(targets, room.targets, 0)[0],
    )
