"""Padded batches of token lists, in an order that is a pure function of seed and step.

No iterator state needs saving: batch `t` of a run is the same after any number of
restarts and in every process of a run, so the step number is the position in the
stream.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from absl import logging

from rlhf_jax.batches import PackedPairs, PreferenceBatch, PromptBatch, SFTBatch


class BatchOrder:
    """The order of examples: the examples of each batch.

    Each epoch is shuffled, cut into windows of several batches, sorted by length inside
    each window, and cut into batches, which are shuffled: little is padded where every
    example has its own row. With `mixed`, the sorted examples of a window are dealt to
    its batches instead, so that each has examples of all lengths, and all have about
    the same number of tokens: packed, they need the same number of rows. The
    examples left over at the end of an epoch that do not fill a batch are skipped.

    Args:
        lengths: the length of each example, or None for batches without regard to
            length.
        window: the number of batches in a window; a wider window has less padding, and
            batches of more uniform length.
        mixed: True deals examples of all lengths to every batch.
        num_examples: the number of examples.
        batch_size: the number of examples a batch; a smaller data set is repeated to
            fill a batch.

    Raises:
        ValueError: there are no examples.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        batch_size: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        window: int = 16,
        mixed: bool = False,
    ):
        if num_examples < 1:
            raise ValueError("There are no examples to make batches of.")
        if num_examples < batch_size:
            logging.warning(
                "%d examples are repeated to fill a batch of %d.",
                num_examples,
                batch_size,
            )
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self.batches_per_epoch = max(num_examples // batch_size, 1)
        self._window, self._mixed = window * batch_size, mixed
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._epoch, self._order = -1, None

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the examples at these places of the batches in one row: int [n]."""
        both = (divmod(int(place), self.batch_size) for place in places)
        return np.array([self.indices(batch)[row] for batch, row in both], int)

    def indices(self, step: int) -> np.ndarray:
        """Return the examples of batch `step` (from 0): int [batch_size]."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return self._order[place]

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.num_examples)
        size = self.batches_per_epoch * self.batch_size
        order = np.resize(order, size)  # repeats examples if too few, else cuts
        if self._lengths is not None:
            starts = range(0, size, self._window)
            parts = [order[i : i + self._window] for i in starts]
            parts = [
                part[np.argsort(self._lengths[part], kind="stable")] for part in parts
            ]
            if self._mixed:
                parts = [self._deal(part, rng) for part in parts]
            order = np.concatenate(parts)
        return rng.permutation(order.reshape(-1, self.batch_size))

    def _deal(self, part: np.ndarray, rng) -> np.ndarray:
        """Deal neighbours of a sorted window to different batches, at random."""
        neighbours = part.reshape(self.batch_size, -1)
        return rng.permuted(neighbours, axis=1).T.reshape(-1)


def number_repeats(index: np.ndarray, size: int) -> np.ndarray:
    """Renumber repeated examples of a batch, so that random keys derived from the
    numbers differ.

    The first occurrence of `i` in a data set of `size` stays `i`, the second becomes
    `i + size`, and so on, as in a data set that is repeated endlessly.
    """
    seen: Counter[int] = Counter()
    numbered = []
    for i in index.tolist():
        numbered.append(i + size * seen[i])
        seen[i] += 1
    return np.asarray(numbered, index.dtype)


def round_up(length: int, multiple: int) -> int:
    """Round up to the next multiple: few distinct shapes mean few compiled programs."""
    return -(-length // multiple) * multiple


def pad_right(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as tokens int32 [B, width] and mask bool [B, width]."""
    return _pad(rows, width, pad_id, left=False)


def pad_left(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as `pad_right`, with the padding on the left."""
    return _pad(rows, width, pad_id, left=True)


def sft_batch(
    examples: Sequence[tuple[list[int], list[bool]]],
    *,
    pad_id: int,
    multiple: int,
    batch_size: int | None = None,
) -> SFTBatch:
    """Make a right-padded batch of dialogues (token ids, loss mask), filled up to
    `batch_size` rows with rows without loss."""
    if batch_size:
        ids, _ = examples[0]
        empty = (ids, [False] * len(ids))
        examples = [*examples, *[empty] * (batch_size - len(examples))]
    width = round_up(max(len(ids) for ids, _ in examples), multiple)
    tokens, mask = pad_right([ids for ids, _ in examples], width, pad_id)
    loss_mask, _ = pad_right([wanted for _, wanted in examples], width, 0)
    return SFTBatch(tokens, mask, loss_mask.astype(bool) & mask)


def prompt_batch(
    prompts: Sequence[list[int]], index: np.ndarray, *, pad_id: int, width: int
) -> PromptBatch:
    """Make a batch of prompts, left-padded to `width`."""
    tokens, mask = pad_left(prompts, width, pad_id)
    return PromptBatch(tokens, mask, np.asarray(index, np.int32))


def preference_batch(
    pairs: Sequence[tuple[list[int], list[int], list[int]]],
    *,
    pad_id: int,
    multiple: int,
    batch_size: int | None = None,
) -> PreferenceBatch:
    """Make a batch of pairs (prompt, chosen, rejected) of token ids, filled up to
    `batch_size` rows with invalid ones."""
    count = batch_size or len(pairs)
    filled = list(pairs) + [pairs[0]] * (count - len(pairs))
    prompt_width = round_up(max(len(p) for p, _, _ in filled), multiple)
    width = round_up(max(max(len(c), len(r)) for _, c, r in filled), multiple)
    prompts, prompt_mask = pad_left([p for p, _, _ in filled], prompt_width, pad_id)
    ids = [response for _, *responses in filled for response in responses]
    responses, response_mask = pad_right(ids, width, pad_id)
    return PreferenceBatch(
        prompts=prompts,
        prompt_mask=prompt_mask,
        responses=responses.reshape(count, 2, width),
        response_mask=response_mask.reshape(count, 2, width),
        valid=np.arange(count) < len(pairs),
    )


def packed_pairs(
    pairs: Sequence[tuple[list[int], list[int], list[int]]],
    *,
    pad_id: int,
    multiple: int,
    batch_size: int,
) -> PackedPairs:
    """Make a batch of pairs with prompt, chosen and rejected in one row, so that pairs
    of similar total length have little padding, however different the three parts."""
    filled = list(pairs) + [pairs[0]] * (batch_size - len(pairs))
    width = round_up(max(sum(map(len, pair)) for pair in filled), multiple)
    tokens, mask = pad_right([p + c + r for p, c, r in filled], width, pad_id)
    lengths = np.array([[len(part) for part in pair] for pair in filled])
    after = lengths.cumsum(axis=1)  # ends of prompt, chosen, rejected: [B, 3]
    segments = (np.arange(width) >= after[:, :2, None]).sum(axis=1)
    return PackedPairs(
        tokens=tokens,
        mask=mask,
        segments=segments.astype(np.int32),
        ends=(after[:, 1:] - 1).astype(np.int32),
        valid=np.arange(batch_size) < len(pairs),
    )


def _pad(rows, width: int, pad_id: int, left: bool):
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(f"Row {i} has {len(row)} tokens, more than {width=}.")
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, place] = row
        mask[i, place] = True
    return tokens, mask
