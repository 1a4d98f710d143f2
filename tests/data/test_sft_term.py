"""The batches of the SFT term, each dialogue in a row of its own and packed."""

import numpy as np
import pytest

from rlhf_jax.data.records import Dialogue
from rlhf_jax.data.sft_term import SFTBatches, sft_batches
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer

EXAMPLES = [([i + 1] * (2 + i % 5), [False, *[True] * (1 + i % 5)]) for i in range(20)]


@pytest.mark.parametrize("unit", [None, 1, 2])
def test_batches_have_one_shape_and_stack_by_step(unit):
    made = {"batch_size": 4, "multiple": 12, "pad_id": 0, "seed": 0}
    batches = SFTBatches(EXAMPLES, **made, unit=unit)
    stacked = batches.stack(0, 5)
    assert stacked.tokens.shape == (5, 2 if unit else 4, 12)
    assert np.array_equal(stacked.tokens[4], batches.batch(4).tokens)
    # Every dialogue once an epoch, with its loss.
    num_targets = sum(sum(wanted) for _, wanted in EXAMPLES)
    found = sorted(stacked.tokens[stacked.mask].tolist())
    assert found == sorted(token for ids, _ in EXAMPLES for token in ids)
    assert stacked.loss_mask.sum() == num_targets
    if unit:
        assert (stacked.targets > 0).sum() == num_targets
        assert {batches.batch(i).tokens.shape for i in range(9)} == {(2, 12)}


def test_batches_are_as_wide_as_the_longest_dialogue_that_fits(tmp_path):
    train_tokenizer(["yes and no one two"], 300, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    turns = ["yes", "yes and no", "one " * 9, "two " * 99]
    dialogues = [
        Dialogue(
            (
                {"role": "user", "content": "say"},
                {"role": "assistant", "content": turn},
            )
        )
        for turn in turns
    ]
    options = {"max_tokens": 60, "batch_size": 3, "seed": 0, "unit": None}
    options["thoughts"] = True
    for multiple in (1, 8):
        batches = sft_batches(dialogues, tokenizer, multiple=multiple, **options)
        stacked = batches.stack(0, 2)
        longest = stacked.mask.sum(-1).max()
        assert stacked.tokens.shape == (2, 3, -(-longest // multiple) * multiple)
        assert stacked.mask.any(-1).all()
