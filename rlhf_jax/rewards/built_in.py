"""The reward functions that `config.rewards` knows by name."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.rewards.http import http
from rlhf_jax.rewards.judge import judge
from rlhf_jax.rewards.language import language
from rlhf_jax.rewards.length_penalty import length_penalty
from rlhf_jax.rewards.matches import exact_match, normalised_match
from rlhf_jax.rewards.multiple_choice import multiple_choice
from rlhf_jax.rewards.prompt_offset import prompt_offset
from rlhf_jax.rewards.regular_expression import regular_expression
from rlhf_jax.rewards.repetition_penalty import repetition_penalty
from rlhf_jax.rewards.right_number import right_number
from rlhf_jax.rewards.rows import Function
from rlhf_jax.rewards.valid_json import valid_json


def _length_penalty(config: ConfigDict, workdir: Path) -> Function:
    options = config.reward_options
    limit = options.length_limit or config.max_response_tokens
    return length_penalty(limit, options.length_buffer or max(limit // 5, 1))


def _http(config: ConfigDict, workdir: Path) -> Function:
    return http(
        config.reward_options.url,
        timeout=config.reward_timeout,
        max_retries=config.reward_options.max_retries,
    )


# Name -> the function for a config and a workdir.
BUILT_IN: dict[str, Callable[..., Function]] = {
    "right_number": lambda config, workdir: right_number,
    "exact_match": lambda config, workdir: exact_match,
    "normalised_match": lambda config, workdir: normalised_match,
    "multiple_choice": lambda config, workdir: multiple_choice,
    "regular_expression": lambda config, workdir: regular_expression(
        config.reward_options.pattern
    ),
    "valid_json": lambda config, workdir: valid_json,
    "length_penalty": _length_penalty,
    "repetition_penalty": lambda config, workdir: repetition_penalty(
        config.reward_options.ngram_tokens
    ),
    "prompt_offset": lambda config, workdir: prompt_offset(),
    "language": lambda config, workdir: language(config.reward_options.language),
    "judge": lambda config, workdir: judge(
        config.reward_judge, workdir / "reward_judge.sqlite"
    ),
    "http": _http,
}
SERVICES = ("judge", "http")  # functions with time limits of their own
