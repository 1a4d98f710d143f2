"""Run one stage in its folder."""

import importlib
import pkgutil
import sys
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

import rlhf_jax.stages
from rlhf_jax.launching import cli, closing
from rlhf_jax.launching.checks import check_stage
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.shared_work import is_first
from rlhf_jax.training.workdir import is_finished, read_summary


def known_stages() -> tuple[str, ...]:
    """Return the names of the modules in rlhf_jax/stages."""
    return tuple(
        module.name for module in pkgutil.iter_modules(rlhf_jax.stages.__path__)
    )


def run_stage(config: ConfigDict, workdir: str | Path) -> None:
    """Run the stage that `config.stage` names in `workdir`, on the mesh of the config,
    and report its result.

    Raises:
        ValueError: the stage does not exist; the existing ones are listed.
    """
    if config.stage not in known_stages():
        known = ", ".join(known_stages())
        raise ValueError(f"{config.stage=} must be one of {known}.")
    module = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
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


def command(*stages: str) -> None:
    """Be the whole command that runs one of `stages`, or any stage without `stages`."""

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
