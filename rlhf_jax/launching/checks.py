"""Checks of a stage's options and inputs before it runs.

A command checks all of its stages before it starts the first one.
"""

import contextlib
import importlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rlhf_jax.data.tokenizers.tokenizer import has_tokenizer
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import num_parameters
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import programs, start
from rlhf_jax.planning.roofline import Program, bytes_per_device, distinct
from rlhf_jax.stages.evaluate import parse_models
from rlhf_jax.training import model_checks, options, weights
from rlhf_jax.training.workdir import results

# Keys of configs that name the folder of a model, and keys that name a file.
POLICIES = ("init_from", "reference_from", "policy")
REWARD_MODELS = ("reward_model", "judge_model")
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
    else:
        module.check_options(config)
    is_new = not results(Path(workdir))
    if is_new:
        _check_inputs(config, list(later))
    is_known = not config.get("init_from") or (
        is_new and not _is_in(config.init_from, later)
    )
    if on_mesh and "init_from" in config and is_known:
        with jax.set_mesh(make_mesh(config.mesh)):
            _check_memory(config)


def _check_memory(config: ConfigDict) -> None:
    """Refuse a run whose start, or one of whose programs, holds more than the memory of
    its devices: models, moments and batches, which are known exactly. Temporaries are
    not counted."""
    model, there = weights.start_config(config), device_memory()
    try:
        planned = [start.of(config, model), *programs.of(config, model)]
    except ValueError:  # a stage that trains nothing, or what the stage itself refuses
        planned = [Program("start", lambda *_: (), (programs.parameters(model),))]
    devices = jax.sharding.get_mesh().size
    for program in planned:
        sizes = {k: devices * n / 1e9 for k, n in sizes_of(program).items()}
        needed = sum(sizes.values())
        if needed * 1e9 > there:
            most = sorted(sizes, key=sizes.get, reverse=True)[:2]
            most = ", ".join(f"{name} {sizes[name]:.3g} GB" for name in most)
            what = config.init_from or f"{config.model=}"
            raise ValueError(
                f"{what} has {num_parameters(model) / 1e9:.2g} billion parameters: the "
                f"run's {program.name} holds at least {needed:.3g} GB, and its devices "
                f"have {there / 1e9:.3g} GB. The most is: {most}. Set "
                f"{', '.join(_cures(config))}, or take more devices or a smaller model "
                "(docs/memory_planning.md)."
            )


def sizes_of(program: Program) -> dict[str, int]:
    """Return the bytes of one device that a program's arguments and what is held beside
    them take, by kind and model."""
    sizes: Counter = Counter()
    held = (program.arguments, program.held)
    for path, x in distinct(held):
        name = jax.tree_util.keystr(path)
        roles = "policy|value|reference|reward|judge"
        model = re.match(rf"\W*\d+\W+\d*\W*({roles})\b", name)
        kind = "batches"
        if re.search(r"\bopt_state\b|\b[mn]u\b", name):
            kind = "moments"
        elif re.search(r"\b(blocks|embedding|head|final_norm)\b", name):
            kind = "weights"
        kind += f" ({model.group(1)})" if model else ""
        sizes[kind] += bytes_per_device(x)
    return dict(sizes)


def _cures(config: ConfigDict) -> list[str]:
    """Return the settings that would make a run smaller and are not set yet."""
    optimizers = [name for name in config if name.endswith("optimizer")]
    wanted = {f"{name}.moment_dtype": "bfloat16" for name in optimizers}
    wanted |= {"offload_moments": True, "offload_frozen": True}
    wanted |= {"frozen_param_dtype": "int8", "param_dtype": "bfloat16"}
    flat = {
        key.removeprefix("config."): x for key, x in options.leaves(config, "config")
    }
    return [
        f"config.{key}={value}"
        for key, value in wanted.items()
        if key in flat and flat[key] != value
    ] or ["config.optimizer.name=adafactor"]


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
        model_checks.check_kind(folder, ChatGLM)
    for _, folder in given(*REWARD_MODELS):
        model_checks.check_kind(folder, ScoreModel)
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
