"""Run one stage in its folder."""

import importlib
import pkgutil
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

import rlhf_jax.stages
from rlhf_jax.launching import cli
from rlhf_jax.parallel.mesh import make_mesh

STAGES = tuple(module.name for module in pkgutil.iter_modules(rlhf_jax.stages.__path__))


def run_stage(config: ConfigDict, workdir: str | Path) -> None:
    """Run the stage that `config.stage` names in `workdir`, on the mesh of the config.

    Raises:
        ValueError: there is no such stage; those that there are are listed.
    """
    if config.stage not in STAGES:
        raise ValueError(f"{config.stage=} must be one of {', '.join(STAGES)}.")
    module = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    with jax.set_mesh(make_mesh(config.mesh)):
        module.run(config, str(workdir))


def command(*stages: str) -> None:
    """The whole of a command that runs one of `stages` (any, when none is given)."""

    def main(config, workdir):
        known = stages or STAGES
        if config.stage not in known:
            raise ValueError(
                f"{sys.argv[0]} runs {', '.join(known)}; this config is for "
                f"{config.stage!r}."
            )
        run_stage(config, workdir)

    cli.run(main)
