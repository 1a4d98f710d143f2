"""Stages in their folders: one, or several one after another."""

import importlib
import pkgutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

import rlhf_jax.stages
from rlhf_jax.data import sources
from rlhf_jax.launching import cli, closing
from rlhf_jax.launching.checks import check_stage, naming_the_stage
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.shared_work import is_first
from rlhf_jax.training import options
from rlhf_jax.training.workdir import is_finished, open_workdir, read_summary


def known_stages() -> tuple[str, ...]:
    """Return the names of the modules in rlhf_jax/stages."""
    return tuple(
        module.name for module in pkgutil.iter_modules(rlhf_jax.stages.__path__)
    )


def run_stage(config: ConfigDict, workdir: str | Path) -> None:
    """Run the stage that `config.stage` names in `workdir`, on the mesh and in the
    precision of the config, and report its result.

    Raises:
        ValueError: the stage does not exist; the existing ones are listed.
    """
    if config.stage not in known_stages():
        known = ", ".join(known_stages())
        raise ValueError(f"{config.stage=} must be one of {known}.")
    module = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    with jax.default_matmul_precision(options.matmul_precision(config)):
        if "mesh" not in config:  # the stage works on files alone
            module.run(config, str(workdir))
            return
        with jax.set_mesh(make_mesh(config.mesh)):
            module.run(config, str(workdir))
    if is_first():
        print(closing.result(config.stage, read_summary(workdir), workdir))


def run_in_folder(config: ConfigDict, folder: Path) -> None:
    """Call `run_stage`, unless the run of the folder is finished."""
    if is_finished(folder):
        logging.info("%s: done before.", folder.name)
        return
    logging.info("%s: %s", folder.name, folder)
    run_stage(config, folder)


def run_stages(
    config: ConfigDict,
    folder: Path,
    stages: Mapping[str, ConfigDict],
    *,
    parts: Mapping[str, Collection[str]],
) -> None:
    """Check all stages of a run of several, open its folder and data, and run them.

    Args:
        config: the run's config; `config.data` is the data of every stage.
        stages: name -> config, in their order; a stage runs in `folder/name`.
        parts: as `open_workdir` takes them.

    Raises:
        ValueError, OSError: an option of a stage is invalid, or an input is missing; no
            stage has run then.
    """
    for name, stage in stages.items():
        with naming_the_stage(name):
            check_stage(stage, folder / name, later=[folder])
    open_workdir(folder, config, parts=parts)
    data = sources.open_data(config.data, folder)
    sources.read_all(config.data, data, folder)
    for name, stage in stages.items():
        run_in_folder(stage, folder / name)


def command(*stages: str) -> None:
    """Run one of `stages` (any, if none is named) by its config: a whole command."""

    def main(config, workdir):
        known = stages or known_stages()
        if config.stage not in known:
            raise ValueError(
                f"{sys.argv[0]} runs {', '.join(known)}; this config is for "
                f"{config.stage!r}."
            )
        check_stage(config, workdir)
        run_stage(config, workdir)
        place = config_flags.get_config_filename(flags.FLAGS["config"])
        overrides = config_flags.get_override_values(flags.FLAGS["config"])
        preset = place.partition(":")[2]
        closing.say_next(closing.next_command(config, workdir, preset, overrides))

    cli.run(main)
