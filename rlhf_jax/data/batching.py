"""Token lists to padded batches, in an order that is a pure function of seed and step.

There is no iterator state to save: batch `t` of a run is the same after however many
restarts and in every process of a run, so the step number is the position in the
stream.
"""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from rlhf_jax.batches import PackedPairs, PreferenceBatch, PromptBatch, SFTBatch


class BatchOrder:
    """Which examples make up each batch.

    Each epoch is shuffled, cut into windows of several batches, sorted by length inside
    each window (so that a batch pads little), cut into batches, and these shuffled.
    An example that does not fill a batch at the end of an epoch is left out of it.

    Args:
        lengths: a length for each example, or None to batch without regard to it.
        window: batches; the wider, the less padding, and the more alike a batch.
        num_examples: how many there are.
        batch_size: examples a batch; a smaller data set is repeated to fill one.

    Raises:
        ValueError: no examples.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        batch_size: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        window: int = 16,
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
        self._window = window * batch_size
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._epoch, self._order = -1, None

    def indices(self, step: int) -> np.ndarray:
        """The examples of batch `step` (from 0): int [batch_size]."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return self._order[place]

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.num_examples)
        size = self.batches_per_epoch * self.batch_size
        order = np.resize(order, size)  # repeats when there are too few, cuts the rest
        if self._lengths is not None:
            starts = range(0, size, self._window)
            parts = [order[i : i + self._window] for i in starts]
            order = np.concatenate(
                [part[np.argsort(self._lengths[part], kind="stable")] for part in parts]
            )
        return rng.permutation(order.reshape(-1, self.batch_size))


def number_repeats(index: np.ndarray, size: int) -> np.ndarray:
    """Give what stands in a batch several times a number of its own each time.

    The first `i` of a data set of `size` stays `i`, the second becomes `i + size`, ...:
    places in the data set repeated without end. Keys derived from them differ.
    """
    seen: Counter[int] = Counter()
    numbered = []
    for i in index.tolist():
        numbered.append(i + size * seen[i])
        seen[i] += 1
    return np.asarray(numbered, index.dtype)


def round_up(length: int, multiple: int) -> int:
    """The next multiple: few distinct shapes mean few compiled programs."""
    return -(-length // multiple) * multiple


def pad_right(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows as tokens int32 [B, width] and mask bool [B, width]."""
    return _pad(rows, width, pad_id, left=False)


def pad_left(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same with the padding in front."""
    return _pad(rows, width, pad_id, left=True)


def sft_batch(
    examples: Sequence[tuple[list[int], list[bool]]],
    *,
    pad_id: int,
    multiple: int,
    batch_size: int | None = None,
) -> SFTBatch:
    """Dialogues as (token ids, which of them carry loss), right-padded, filled up to
    `batch_size` rows with ones without loss."""
    if batch_size:
        ids, _ = examples[0]
        empty = (ids, [False] * len(ids))
        examples = [*examples, *[empty] * (batch_size - len(examples))]
    width = round_up(max(len(ids) for ids, _ in examples), multiple)
    tokens, mask = pad_right([ids for ids, _ in examples], width, pad_id)
    loss_mask, _ = pad_right([wanted for _, wanted in examples], width, 0)
    return SFTBatch(tokens, mask, loss_mask.astype(bool) & mask)


class SFTBatches:
    """SFT batches of one shape, by step: what PPO and DPO add to their losses."""

    def __init__(
        self,
        examples: Sequence[tuple[list[int], list[bool]]],
        *,
        batch_size: int,
        width: int,
        pad_id: int,
        seed: int,
    ):
        self._examples, self._width, self._pad_id = examples, width, pad_id
        self._order = BatchOrder(len(examples), batch_size=batch_size, seed=seed)

    def batch(self, step: int) -> SFTBatch:
        """The batch of `step`: leaves [batch_size, width]."""
        chosen = [self._examples[i] for i in self._order.indices(step)]
        return sft_batch(chosen, pad_id=self._pad_id, multiple=self._width)

    def stack(self, first: int, count: int) -> SFTBatch:
        """The batches of `count` steps: leaves [count, batch_size, width]."""
        batches = [self.batch(first + n) for n in range(count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def prompt_batch(
    prompts: Sequence[list[int]], index: np.ndarray, *, pad_id: int, width: int
) -> PromptBatch:
    """Prompts left-padded to `width`."""
    tokens, mask = pad_left(prompts, width, pad_id)
    return PromptBatch(tokens, mask, np.asarray(index, np.int32))


def preference_batch(
    pairs: Sequence[tuple[list[int], list[int], list[int]]],
    *,
    pad_id: int,
    multiple: int,
    batch_size: int | None = None,
) -> PreferenceBatch:
    """Pairs as (prompt, chosen, rejected) token ids, filled up to `batch_size` rows
    with invalid ones."""
    count = batch_size or len(pairs)
    filled = list(pairs) + [pairs[0]] * (count - len(pairs))
    prompt_width = round_up(max(len(p) for p, _, _ in filled), multiple)
    width = round_up(max(max(len(c), len(r)) for _, c, r in filled), multiple)
    prompts, prompt_mask = pad_left([p for p, _, _ in filled], prompt_width, pad_id)
    both = [response for _, *responses in filled for response in responses]
    responses, response_mask = pad_right(both, width, pad_id)
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
    """The same with prompt, chosen and rejected in one row, so that a batch of pairs of
    similar total length pads little, however different the three are."""
    filled = list(pairs) + [pairs[0]] * (batch_size - len(pairs))
    width = round_up(max(sum(map(len, pair)) for pair in filled), multiple)
    tokens, mask = pad_right([p + c + r for p, c, r in filled], width, pad_id)
    lengths = np.array([[len(part) for part in pair] for pair in filled])
    after = lengths.cumsum(axis=1)  # the prompt, chosen, rejected
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
