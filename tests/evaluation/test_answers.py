"""Conversations that a run leaves at its end."""

import pytest

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from rlhf_jax.evaluation.answers import sample_conversations


@pytest.mark.parametrize(("count", "max_prompt_tokens"), [(0, 100), (3, 1)])
def test_a_run_may_leave_none(count, max_prompt_tokens, tmp_path):
    """It once failed at its very end where none was asked for, or none was short."""
    train_tokenizer(["a few words"], 270, tmp_path)
    prompts = [Prompt("p", ({"role": "user", "content": "a few words"},))] * 3
    found = sample_conversations(
        None,  # asked for nothing
        prompts,
        load_tokenizer(tmp_path),
        count=count,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=4,
    )
    assert found == []
