"""Checks of a stage's options, before anything is read or compiled."""

import math
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.pipelining import pipe_size

# What a number may be, in words and as a test (not a number passes none), and the keys
# it holds for, wherever they stand in a config.
BOUNDS = {
    "at least 1": (
        lambda x: x >= 1,
        """batch_size epochs keep_checkpoints max_characters max_prompt_tokens
        max_response_tokens max_sft_tokens max_skipped_updates max_tokens microbatches
        minibatches num_annotators num_centring_pairs num_comparison_prompts
        num_eval_prompts num_prompts num_responses num_rl_prompts num_sft num_sft_test
        pad_to_multiple ppo_epochs rounds samples_per_prompt sft_batch_size total_steps
        vocab_size workers""",
    ),
    "at least 0": (
        lambda x: 0 <= x < math.inf,
        """alpha beta_sft chunk_size clip_norm dual_clip eval_every gamma kl_coef
        kl_target length_bucket margin max_per_intent max_retries
        min_characters min_margin min_per_intent missing_end_penalty noise num_probes
        num_samples patience prompt_price response_price save_every
        score_regularisation seed spending_limit spike_zscore temperature tie_margin
        top_k warmup_steps weight_decay epsilon group_epsilon learning_rate""",
    ),
    "above 0": (
        lambda x: 0 < x < math.inf,
        "beta clip_range eps kl_horizon sharpness timeout value_clip_range",
    ),
    "above 0, perhaps inf": (lambda x: x > 0, "score_clip"),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, "top_p"),
    "from 0 to 1": (
        lambda x: 0 <= x <= 1,
        """careless_share confidence contradictory_share final good_share
        identity_share json_share known_share lam max_contradicted max_similarity
        min_known_right min_score padded_share sloppy_share tie_share""",
    ),
    "from 0 to 0.5": (lambda x: 0 <= x <= 0.5, "repeat_share"),
    "from 0 to below 1": (lambda x: 0 <= x < 1, "b1 b2 test_share validation_share"),
    "from 0 to below 0.5": (lambda x: 0 <= x < 0.5, "label_smoothing"),
}
# The largest that a whole number may be. What is larger is a slip of the keyboard, and
# would end in an overflow or in arrays that no machine holds.
LARGEST = {
    "at most 1,024": (1 << 10, "num_responses ppo_epochs rounds workers"),
    "at most 65,536": (1 << 16, "pad_to_multiple"),
    "at most 1,048,576": (
        1 << 20,
        """batch_size epochs max_prompt_tokens max_response_tokens max_sft_tokens
        max_tokens num_annotators num_probes sft_batch_size vocab_size""",
    ),
    "at most 16,777,216": (
        1 << 24,
        """num_comparison_prompts num_eval_prompts num_prompts num_rl_prompts num_sft
        num_sft_test total_steps""",
    ),
}
LARGEST_INT = "at most 2,147,483,647", (1 << 31) - 1  # of any other
FREE = "chosen_rank kl_ceiling length_bias position_bias rejected_rank"

FLOATS = ("float32", "bfloat16", "float16")
CHOICES = {
    "attention": ("auto", "xla", "splash", "cudnn"),
    "clip": ("global", "per_layer"),
    "decay": ("constant", "linear", "cosine"),
    "dtype": FLOATS,
    "loss_aggregation": ("token", "response"),
    "frozen_param_dtype": (*FLOATS, "int8"),
    "moment_dtype": FLOATS,
    "name": ("adamw", "adafactor", "sgd"),
    "on_bad_record": ("error", "skip"),
    "param_dtype": FLOATS,
    "remat": ("none", "dots", "full"),
    "rollout_param_dtype": ("same", "int8"),
    "too_long": ("drop", "truncate_prompt", "truncate_end"),
}

SERVICES = ("service.model", "judge.model")  # as the service calls it

_BOUND = {
    key: (words, is_within)
    for words, (is_within, keys) in BOUNDS.items()
    for key in keys.split()
}
_LARGEST = {
    key: (words, largest)
    for words, (largest, keys) in LARGEST.items()
    for key in keys.split()
}


def check(config: ConfigDict, where: str = "config") -> None:
    """Refuse a number out of its bounds, or an unknown choice, anywhere in a config.

    Raises:
        ValueError: says which key, what it is, and what it must be.
    """
    for key, value in leaves(config, where):
        name = key.rpartition(".")[2]
        if name in CHOICES and value not in CHOICES[name]:
            known = ", ".join(CHOICES[name])
            raise ValueError(f"{key}={value!r} must be one of {known}.")
        if isinstance(value, tuple) and not all(isinstance(x, int) for x in value):
            raise ValueError(f"{key}={value!r} must be whole numbers, as in '(0, 1)'.")
        if name == "model" and not key.endswith(SERVICES):
            preset(value)
        if isinstance(value, int | float):
            for words in _out_of_bounds(name, value):
                raise ValueError(f"{key}={value} must be {words}.")


def _out_of_bounds(name: str, value: float) -> Iterator[str]:
    """What a number must be, and is not; a float also as float32, for it is computed
    with as such."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value)) if isinstance(value, float) else value
    words, is_within = _BOUND.get(name, ("", lambda x: True))
    if not (is_within(value) and is_within(rounded)):
        yield words
    words, largest = _LARGEST.get(name, LARGEST_INT)
    if isinstance(value, int) and value > largest:
        yield words


def leaves(config: ConfigDict, where: str) -> Iterator[tuple[str, object]]:
    """Every key with dots, and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{where}.{name}")
        else:
            yield f"{where}.{name}", value


def fused_updates(config) -> None:
    """Refuse a fused update where it is not possible.

    Raises:
        ValueError: says which optimizer, and what to set instead.
    """
    for name, optimizer in config.items():
        if not name.endswith("optimizer") or not optimizer.fused:
            continue
        if pipe_size() > 1:
            raise ValueError(
                f"{name}.fused updates one layer after another, a pipeline's stages "
                "all at once: set it to False, or the mesh's pipe to 1."
            )
        if config.microbatches != 1:
            raise ValueError(
                f"microbatches={config.microbatches} add up a whole gradient, which "
                f"{name}.fused never holds: set microbatches=1."
            )


def one_of(config, name: str, known: tuple) -> None:
    """Raise ValueError unless `config[name]` is one of the known values."""
    if config[name] not in known:
        raise ValueError(f"{name}={config[name]!r} must be one of {known}.")


def multiple_of(config, name: str, *parts: str) -> None:
    """Raise ValueError unless `config[name]` is a multiple of all `parts` together."""
    product = math.prod(config[part] for part in parts)
    if product < 1 or config[name] % product:
        values = " * ".join(f"{part}={config[part]}" for part in parts)
        raise ValueError(f"{name}={config[name]} must be a multiple of {values}.")
