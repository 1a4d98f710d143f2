"""Packing: several examples one after another in rows of one width.

A batch keeps its examples, and with them its loss; only padding goes. Which examples
share a row follows from their sizes alone (first fit, the largest first), so a batch is
the same after any number of restarts. The number of rows is rounded up to one of few
numbers, since every shape compiles a program of its own.

Letters: N rows, T tokens of a row, M targets of a row. Targets are the tokens whose
log-probabilities a loss reads; only these are projected to the vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.batches import PackedPairs, PackedRows, Rollout, SFTBatch
from rlhf_jax.data.batching import pad_right, round_up

MOST = 8  # examples of a row of prompts with responses; more are rarely needed
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
            multiple: the width is rounded up to a multiple of it; the number of targets
                is rounded up to a multiple of 16, since each costs a product with the
                vocabulary.
        """
        tokens, targets = np.asarray(sizes).T
        width = round_up(int(tokens.max()), multiple)
        mean = SPARE_TARGETS * width * targets.sum() / tokens.sum()
        wanted = max(int(np.ceil(mean)), int(targets.max()), 1)
        return cls(width, min(round_up(wanted, 16), width))


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
    stacked = stack_dialogues(
        [examples], pad_id=pad_id, room=room, unit=unit, batch_size=batch_size
    )
    return jax.tree.map(lambda x: x[0], stacked)


def stack_dialogues(
    batches: Sequence[Sequence[tuple[list[int], list[bool]]]],
    *,
    pad_id: int,
    room: Room,
    unit: int,
    batch_size: int,
    at_least: int = 1,
) -> SFTBatch:
    """Pack batches of dialogues, each into as many rows, and stack them: leaves
    [batches, N, ...].

    Args:
        at_least: the fewest rows; otherwise see `pack_dialogues`.
    """
    assigned = [
        first_fit([size(example) for example in examples], room) for examples in batches
    ]
    needed = max(at_least, *map(len, assigned))
    count = row_count(needed, unit=unit, largest=batch_size)
    packed = [
        _dialogues(examples, rows, count, pad_id, room)
        for examples, rows in zip(batches, assigned, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)


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


Pair = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen, rejected


def pair_size(pair: Pair, *, share: bool = True) -> tuple[int, int]:
    """Return the numbers of tokens and of targets of a pair; see `packed_rows`."""
    prompt, chosen, rejected = map(len, pair)
    targets = chosen + rejected
    return (1 if share else 2) * prompt + targets, targets


def pack_pairs(
    pairs: Sequence[Pair],
    *,
    pad_id: int,
    room: Room,
    unit: int,
    batch_size: int,
    share: bool,
) -> PackedRows:
    """Pack a batch of pairs into as few rows as they need.

    Args:
        unit, batch_size: `row_count`'s `unit` and `largest`.
        share: see `packed_rows`.
    """
    sizes = [pair_size(pair, share=share) for pair in pairs]
    rows = first_fit(sizes, room, most=MOST)
    return packed_rows(
        [(prompt, both) for prompt, *both in pairs],
        rows,
        count=row_count(len(rows), unit=unit, largest=batch_size),
        room=room,
        pad_id=pad_id,
        share=share,
    )


def pack_held_out_pairs(
    pairs: Sequence[Pair],
    *,
    pad_id: int,
    multiple: int,
    unit: int,
    batch_size: int,
    share: bool,
) -> list[PackedRows]:
    """Pack pairs into batches of one shape, of at most `batch_size` rows as wide as the
    longest pair. The slots hold the numbers of the pairs.

    Args:
        multiple: the width of a row is rounded up to a multiple of it.
        unit, batch_size: `row_count`'s `unit` and `largest`.
        share: see `packed_rows`.
    """
    sizes = [pair_size(pair, share=share) for pair in pairs]
    room = Room.of(sizes, multiple)
    rows = first_fit(sizes, room, most=MOST)
    count = row_count(min(len(rows), batch_size), unit=unit, largest=batch_size)
    examples = [(prompt, both) for prompt, *both in pairs]
    return [
        packed_rows(
            examples,
            rows[i : i + count],
            count=count,
            room=room,
            pad_id=pad_id,
            share=share,
        )
        for i in range(0, len(rows), count)
    ]


def mismatched(pairs: Sequence[Pair]) -> list[Pair]:
    """Return each prompt with the responses to the prompt before it; the first has
    those to the last."""
    return [(prompt, *pairs[i - 1][1:]) for i, (prompt, *_) in enumerate(pairs)]


def in_slots(x: np.ndarray, rows: PackedRows) -> np.ndarray:
    """Return the entries of x [pairs, ...] by slot of packed rows: [N, S, ...], with 0
    in empty slots."""
    return np.concatenate([x, np.zeros_like(x[:1])])[rows.slots]


def pack_scored_pairs(pairs: Sequence[Pair], **options) -> PackedPairs:
    """Pack a batch of pairs for the reward model; see `pack_pairs`."""
    rows = pack_pairs(pairs, **options)
    return PackedPairs(
        tokens=rows.tokens,
        mask=rows.mask,
        segments=rows.segments,
        ends=rows.ends,
        valid=rows.slots < len(pairs),
        examples=rows.examples,
    )


def pack_minibatches(
    rollout: Rollout,
    minibatches: np.ndarray,
    *,
    pad_id: int,
    unit: int,
    places: bool = False,
) -> PackedRows:
    """Pack minibatches of a rollout that is on the host into as many rows each, as wide
    as those of the rollout: leaves [U, N, ...].

    Args:
        minibatches: the rows of the rollout in each, int [U, b].
        unit: `row_count`'s `unit`.
        places: whether to tell the `places` of the tokens.
    """
    width = rollout.responses.shape[1]
    room = Room(rollout.prompts.shape[1] + width, width)
    masks = rollout.prompt_mask, rollout.response_mask

    def examples_of(
        prompts: np.ndarray, responses: np.ndarray
    ) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        both = zip(prompts, masks[0], responses, masks[1], strict=True)
        return [(x[is_real], [y[is_token]]) for x, is_real, y, is_token in both]

    examples = examples_of(rollout.prompts, rollout.responses)
    sizes = np.stack([rollout.prompt_mask.sum(1), rollout.response_mask.sum(1)], axis=1)
    sizes[:, 0] += sizes[:, 1]
    assigned = [
        [chosen[row].tolist() for row in first_fit(sizes[chosen], room, most=MOST)]
        for chosen in minibatches
    ]
    needed = max(map(len, assigned))
    count = row_count(needed, unit=unit, largest=minibatches.shape[1])
    how = {"count": count, "room": room, "share": True}
    parts = [packed_rows(examples, rows, pad_id=pad_id, **how) for rows in assigned]
    if places:  # packed like the tokens
        every = np.arange(len(examples) * room.tokens).reshape(len(examples), -1)
        numbers = examples_of(*np.split(every, [rollout.prompts.shape[1]], axis=1))
        parts = [
            dataclasses.replace(
                part, places=packed_rows(numbers, rows, pad_id=0, **how).tokens
            )
            for part, rows in zip(parts, assigned, strict=True)
        ]
    stacked = {
        field.name: [getattr(part, field.name) for part in parts]
        for field in dataclasses.fields(PackedRows)
    }
    return PackedRows(
        **{k: None if x[0] is None else np.stack(x) for k, x in stacked.items()}
    )


def packed_rows(
    examples: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    rows: list[list[int]],
    *,
    count: int,
    room: Room,
    pad_id: int,
    share: bool,
) -> PackedRows:
    """Lay prompts, each with its K responses behind it, into rows.

    Args:
        examples: prompt and responses of each, as token ids.
        rows: the numbers of the examples of each row (`first_fit`), at most MOST.
        count: the number of rows, of which the last may be empty.
        share: False gives every response a copy of the prompt, which attention that
            knows no segments needs.
    """
    num_responses = len(examples[0][1])
    with_segments = share and num_responses > 1
    tokens = np.full((count, room.tokens), pad_id, np.int32)
    numbers, segments = np.zeros((2, *tokens.shape), np.int32)
    mask = np.zeros(tokens.shape, bool)
    targets, before = np.zeros((2, count, room.targets), np.int32)
    slots = np.full((count, MOST), len(examples), np.int32)
    firsts, lengths, ends = np.zeros((3, count, MOST, num_responses), np.int32)

    for n, row in enumerate(rows):
        ids: list[int] = []
        number = target = 0
        for s, i in enumerate(row):
            prompt, responses = examples[i]
            slots[n, s] = i
            for k, response in enumerate(responses):
                if k == 0 or not share:
                    start, ids = len(ids), [*ids, *prompt]
                    numbers[n, start : len(ids)] = number
                    state = len(ids) - 1  # of the prompt's last token
                places = np.arange(len(ids), len(ids) + len(response))
                part = slice(target, target + len(response))
                targets[n, part] = places
                before[n, part] = [state, *places[:-1]][: len(response)]
                firsts[n, s, k], lengths[n, s, k] = target, len(response)
                ends[n, s, k] = places[-1] if len(response) else state
                numbers[n, places], segments[n, places] = number, k + 1
                ids, target = [*ids, *response], part.stop
                number += not share
            number += share
        tokens[n, : len(ids)], mask[n, : len(ids)] = ids, True
    return PackedRows(
        tokens=tokens,
        mask=mask,
        examples=numbers,
        segments=segments if with_segments else None,
        targets=targets,
        before=before,
        slots=slots,
        firsts=firsts,
        lengths=lengths,
        ends=ends,
    )
