"""A stage's options: checks before anything is read or compiled, and those of programs.

The bounds of a number stand beside its key, in the comments of configs/*.py.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.pipelining import pipe_size
from rlhf_jax.training import logger
from rlhf_jax.training.config_comments import intervals

Options = TypeVar("Options")

FRACTIONS = ("gradient_ratios",)  # tuples of numbers that need not be whole
LARGEST_INT = (1 << 31) - 1  # of a whole number whose interval has no end

FLOATS = ("float32", "bfloat16", "float16")
CHOICES = {
    "base_dtype": (*FLOATS, "int8"),
    "attention": ("auto", "xla", "splash", "cudnn"),
    "choose": ("variance", "random"),
    "clip": ("global", "per_layer"),
    "decay": ("constant", "linear", "cosine"),
    "dtype": FLOATS,
    "loss_aggregation": ("token", "response", "constant"),
    "matmul_precision": ("auto", "default", "high", "highest"),
    "logger": ("", *logger.LOGGERS),
    "frozen_param_dtype": (*FLOATS, "int8"),
    "moment_dtype": FLOATS,
    "name": ("adamw", "adafactor", "sgd"),
    "objective": ("ppo", "gspo", "cispo"),
    "on_bad_record": ("error", "skip"),
    "on_reward_error": ("stop", "zero"),
    "param_dtype": FLOATS,
    "remat": ("none", "dots", "full"),
    "rollout_correction": ("auto", "none", "token", "response"),
    "rollout_param_dtype": ("same", "merged", "int8"),
    "too_long": ("drop", "truncate_prompt", "truncate_end"),
}

SERVICES = ("service.model", "judge.model")  # as the service calls it


def check(config: ConfigDict, where: str = "config") -> None:
    """Refuse numbers out of their bounds and unknown choices anywhere in a config.

    Raises:
        ValueError: names the key, its value and the allowed values.
    """
    for key, value in leaves(config, where):
        name = key.rpartition(".")[2]
        if name in CHOICES and value not in CHOICES[name]:
            choices = ", ".join(CHOICES[name])
            raise ValueError(f"{key}={value!r} must be one of {choices}.")
        if name == "logger":
            logger.check(value)
        if isinstance(value, tuple):
            kind, words = int | float, "numbers, as in '(0.5, 1.0)'"
            if name not in FRACTIONS:
                kind, words = int, "whole numbers, as in '(0, 1)'"
            if not all(isinstance(x, kind) for x in value):
                raise ValueError(f"{key}={value!r} must be {words}.")
        if name in ("trainable", "maps"):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"{key}={value!r} is not a regular expression: {error}."
                ) from None
        if name == "model" and not key.endswith(SERVICES):
            preset(value)
        if isinstance(value, int | float):
            for words in _out_of_bounds(name, value):
                raise ValueError(f"{key}={value} must be {words}.")


def _out_of_bounds(name: str, value: float) -> Iterator[str]:
    """Yield the bounds that a number violates, in words; a float must keep them as
    float32 too, the dtype of the computation."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value)) if isinstance(value, float) else value
    interval = intervals().get(name)
    if interval is not None and (value not in interval or rounded not in interval):
        yield interval.violated(value)
    if isinstance(value, int) and value > LARGEST_INT:
        yield f"at most {LARGEST_INT:,}"


def of_fields(cls: type[Options], config: Any, **given: Any) -> Options:
    """Make a dataclass of options from the config's keys of the same names as its
    fields, but for the fields that are given."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in fields if field.name not in given]
    return cls(**{name: getattr(config, name) for name in names}, **given)


def leaves(config: ConfigDict, where: str) -> Iterator[tuple[str, object]]:
    """Yield every key, with dots, and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{where}.{name}")
        else:
            yield f"{where}.{name}", value


def matmul_precision(config) -> str:
    """Return jax's name of the precision of float32 matrix products, for
    `jax.default_matmul_precision`.

    Args:
        config: a stage's config, or that of a model, which has a dtype alone.
    """
    chosen = getattr(config, "matmul_precision", "auto")
    if chosen != "auto":
        return chosen
    return "highest" if getattr(config, "dtype", "") == "float32" else "default"


def fused_updates(config) -> None:
    """Refuse a fused or partial update where it is not possible.

    Raises:
        ValueError: names the optimizer and says what to set instead.
    """
    for name, optimizer in config.items():
        if not name.endswith("optimizer"):
            continue
        if optimizer.trainable and pipe_size() > 1:
            raise ValueError(
                f"{name}.trainable leaves stages of a pipeline without work: set it to "
                '"", or the mesh\'s pipe to 1.'
            )
        if not optimizer.fused:
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


def adapters(config) -> None:
    """Refuse adapters where they are not possible.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if not config.lora.rank:
        return
    if not config.init_from:
        raise ValueError(
            f"lora.rank={config.lora.rank} adapts a model that exists: set init_from, "
            "or lora.rank=0 to train a new one."
        )
    if pipe_size() > 1:
        raise ValueError(
            f"lora.rank={config.lora.rank} has no pipeline: set the mesh's pipe to 1, "
            "or lora.rank=0."
        )


def one_of(config, name: str, choices: tuple) -> None:
    """Raise ValueError unless `config[name]` is one of the choices."""
    if config[name] not in choices:
        raise ValueError(f"{name}={config[name]!r} must be one of {choices}.")


def multiple_of(config, name: str, *parts: str) -> None:
    """Raise ValueError unless `config[name]` is a multiple of all `parts` together."""
    product = math.prod(config[part] for part in parts)
    if product < 1 or config[name] % product:
        values = " * ".join(f"{part}={config[part]}" for part in parts)
        raise ValueError(f"{name}={config[name]} must be a multiple of {values}.")
