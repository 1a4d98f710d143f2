"""The dialogues of the SFT term of PPO and DPO, by update."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.batches import SFTBatch
from rlhf_jax.data import packing
from rlhf_jax.data.batching import BatchOrder, round_up, sft_batch
from rlhf_jax.data.encoding import encode_dialogues
from rlhf_jax.data.records import Dialogue
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer

TRIED = 64  # batches that the usual number of packed rows is taken from


class SFTBatches:
    """Batches of dialogues, by step.

    Every batch has one shape. A packed batch has dialogues of all lengths, so that all
    need about as many rows; one that needs more than usual is another program to
    compile, for one of few numbers of rows.

    Args:
        unit: packs the dialogues of a batch, into a multiple of this many rows; None
            gives each dialogue a row of its own.
    """

    def __init__(
        self,
        examples: Sequence[tuple[list[int], list[bool]]],
        *,
        batch_size: int,
        multiple: int,
        pad_id: int,
        seed: int,
        unit: int | None,
    ):
        self._examples, self._pad_id = examples, pad_id
        sizes = [packing.size(example) for example in examples]
        self._order = BatchOrder(
            len(examples),
            batch_size=batch_size,
            seed=seed,
            lengths=None if unit is None else [tokens for tokens, _ in sizes],
            mixed=unit is not None,
        )
        self._width = round_up(max(sizes)[0], multiple)
        self._packing: dict[str, Any] | None = None
        if unit is not None:
            room = packing.Room.of(sizes, multiple)
            count = min(self._order.batches_per_epoch, TRIED)
            usual = max(
                len(packing.first_fit([sizes[i] for i in self._order.indices(n)], room))
                for n in range(count)
            )
            self._packing = {
                "room": room,
                "unit": unit,
                "batch_size": batch_size,
                "at_least": usual,
            }

    def batch(self, step: int) -> SFTBatch:
        """Return the batch of `step`, with leaves [rows, width]."""
        return jax.tree.map(lambda x: x[0], self.stack(step, 1))

    def stack(self, first: int, count: int) -> SFTBatch:
        """Stack the batches of `count` steps: leaves [count, rows, width]."""
        chosen = [
            [self._examples[i] for i in self._order.indices(first + n)]
            for n in range(count)
        ]
        if self._packing is not None:
            return packing.stack_dialogues(chosen, pad_id=self._pad_id, **self._packing)
        batches = [
            sft_batch(batch, pad_id=self._pad_id, multiple=self._width)
            for batch in chosen
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def sft_batches(
    dialogues: Sequence[Dialogue],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    multiple: int,
    batch_size: int,
    seed: int,
    unit: int | None,
    thoughts: bool,
) -> SFTBatches:
    """Make batches of the dialogues that fit, all as wide as the longest, rounded up to
    `multiple`; see `SFTBatches`."""
    examples, _ = encode_dialogues(dialogues, tokenizer, max_tokens, thoughts=thoughts)
    return SFTBatches(
        examples,
        batch_size=batch_size,
        multiple=multiple,
        pad_id=tokenizer.pad_id,
        seed=seed,
        unit=unit,
    )
