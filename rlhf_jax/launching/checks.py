"""Checks of a stage's options and inputs before it runs.

A command checks all of its stages before it starts the first one.
"""

import contextlib
import importlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax.data.tokenizers.tokenizer import has_tokenizer
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import num_parameters, preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.stages.evaluate import parse_models
from rlhf_jax.training import options, weights
from rlhf_jax.training.workdir import results

# Keys of configs that name the folder of a model, and keys that name a file.
POLICIES = ("init_from", "reference_from", "policy")
REWARD_MODELS = ("reward_model",)
FILES = (
    "comparisons",
    "comparisons_test",
    "comparisons_train",
    "eval_prompts",
    "known_comparisons",
    "pairs",
    "prompts",
    "questions",
)
ELSEWHERE = ("hf:", "tfds:", "testbed")  # prefixes of data that are not local files


def check_stage(
    config: ConfigDict,
    workdir: str | Path,
    *,
    later: Iterable[str | Path] = (),
    on_mesh: bool = True,
) -> None:
    """Refuse invalid options and missing inputs.

    Args:
        workdir: the folder of the run. The inputs of a run with results have been read
            before, and are compared when they are read again.
        later: folders that other stages fill first.
        on_mesh: True checks that the options fit the devices of this process.

    Raises:
        ValueError, OSError: says what is wrong, and what to do.
    """
    options.check(config)
    module = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    if on_mesh and "mesh" in config:
        with jax.set_mesh(make_mesh(config.mesh)):
            module.check_options(config)
            if "attention" in config:
                weights.computation(config)
            _check_memory(config)
    else:
        module.check_options(config)
    if not results(Path(workdir)):
        _check_inputs(config, list(later))


def _check_memory(config: ConfigDict) -> None:
    """Refuse random weights of a model that the devices of the run cannot hold, by a
    lower bound of the memory: the weights and AdamW's moments."""
    if config.get("init_from", "given"):
        return
    each = jnp.dtype(config.param_dtype).itemsize
    if "optimizer" in config and config.optimizer.name == "adamw":
        each += 4 + jnp.dtype(config.optimizer.moment_dtype).itemsize
    count = num_parameters(preset(config.model))
    needed, there = each * count, device_memory()
    if needed > there:
        raise ValueError(
            f"config.model={config.model!r} has {count / 1e9:.1f} billion parameters: "
            f"the run keeps at least {needed / 1e9:.0f} GB, and its devices have "
            f"{there / 1e9:.0f} GB. Choose a smaller model, or more devices."
        )


def device_memory() -> float:
    """Return the bytes of memory of all devices of the run; on CPUs the memory of the
    machine."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return machine * jax.process_count()
    limit = (device.memory_stats() or {}).get("bytes_limit", math.inf)
    return limit * jax.device_count()


@contextlib.contextmanager
def naming_the_stage(name: str) -> Iterator[None]:
    """Put the name of the stage or run into errors of the user's input."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from None


def _check_inputs(config: ConfigDict, later: list[str | Path]) -> None:
    def given(*names: str) -> list[tuple[str, str]]:
        values = [(name, config[name]) for name in names if config.get(name)]
        return [(name, value) for name, value in values if not _is_in(value, later)]

    reference = ("reference",) if config.stage == "ppo" else ()
    policies = [value for _, value in given(*POLICIES, *reference)]
    if "models" in config:
        models = parse_models(config.models).values()
        policies += [folder for folder in models if not _is_in(folder, later)]
    for folder in policies:
        weights.check_kind(folder, ChatGLM)
    for _, folder in given(*REWARD_MODELS):
        weights.check_kind(folder, ScoreModel)
    if config.stage.startswith("prepare_"):  # its inputs may be data sets of any kind
        return
    for name, value in given(*FILES):
        if not Path(value).is_file():
            raise FileNotFoundError(f"There is no file {value}: see config.{name}.")
        if not os.access(value, os.R_OK):
            raise PermissionError(f"{value} cannot be read: see config.{name}.")
    if "data" in config:
        check_data(config.data, later)


def check_data(data: ConfigDict, later: Iterable[str | Path] = ()) -> None:
    """Refuse a path of data or of a tokenizer that does not exist."""
    if not data.path:
        raise ValueError(
            'data.path is empty: name a file or folder of data, or "testbed".'
        )
    elsewhere = data.path.startswith(ELSEWHERE) or _is_in(data.path, later)
    if not elsewhere and not Path(data.path).exists():
        raise FileNotFoundError(f"There is no file or folder {data.path}: data.path.")
    own = data.tokenizer and not _is_in(data.tokenizer, later)
    if own and not has_tokenizer(Path(data.tokenizer)):
        raise FileNotFoundError(
            f"There is no tokenizer in {data.tokenizer}: see data.tokenizer."
        )


def _is_in(path: str, folders: Iterable[str | Path]) -> bool:
    path = Path(path).absolute()
    return any(path.is_relative_to(Path(folder).absolute()) for folder in folders)
