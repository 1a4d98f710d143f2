"""Will a run fit, and how fast could it be? Compiles its programs, without a chip.

python launch/plan.py --config=configs/ppo.py:chatglm3_6b --topology=v5e:4x8 \
    [--config.key=value ...] [--json=plan.json]

Every program of the run is compiled for the topology on this machine, without weights.
Prints a table, and writes JSON if asked. Exit status 0: all programs fit; 1: one does
not, and what takes the most is named. Needs libtpu: `pip install -e '.[tpu-plan]'`, in
an environment of its own, and one process at a time. For GPUs (`--topology=h200:1`)
there is no such compiler: temporaries are then by arithmetic (launch/arithmetic.py).
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

# What libtpu would ask a TPU machine.
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))  # this copy of the package

import jax
import programs
import start
from absl import app, flags
from arithmetic import temporaries
from jax.experimental import topologies
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.plan import (
    CHIPS,
    GIB,
    GPUS,
    Chip,
    Plan,
    Program,
    estimate,
    plan,
)
from rlhf_jax.training import weights

CONFIG = config_flags.DEFINE_config_file("config", None, "Config, FILE.py:PRESET.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, as v5e:4x8 or v5p:2x2x1.")
JSON = flags.DEFINE_string("json", None, "A file to write the plan to.")
ONLY = flags.DEFINE_list("only", [], "Programs to plan; all by default.")


def main(argv) -> None:
    config = CONFIG.value
    kind, _, shape = TOPOLOGY.value.partition(":")
    if kind not in CHIPS | GPUS or not shape or (kind in GPUS and not shape.isdigit()):
        raise ValueError(
            f"--topology={TOPOLOGY.value}: write KIND:SHAPE, with one of the kinds "
            f"{', '.join(CHIPS)}, such as v5e:4x8, or KIND:COUNT with one of "
            f"{', '.join(GPUS)}, such as h200:1."
        )
    if kind in GPUS:
        jax.config.update("jax_num_cpu_devices", int(shape))  # stand for them
        devices = jax.devices()
    else:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=TOPOLOGY.value
        ).devices
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        both = zip(
            programs.of(config), programs.of(config, recompute=False), strict=True
        )
        both = [
            (program, useful)
            for program, useful in both
            if not ONLY.value or program.name in ONLY.value
        ]
        if kind in GPUS:
            plans = [by_arithmetic(config, *pair, GPUS[kind]) for pair in both]
        else:
            plans = [plan(*pair, CHIPS[kind], num_chips=mesh.size) for pair in both]
    report(plans, dict(mesh.shape))
    if kind in GPUS:
        print("Temporaries by arithmetic, with cudnn's attention; links not counted.")
    if JSON.value:
        found = {p.name: p.as_dict() for p in plans}
        record = {"topology": TOPOLOGY.value, "mesh": dict(mesh.shape)}
        Path(JSON.value).write_text(json.dumps(record | {"programs": found}, indent=2))
    sys.exit(not all(p.fits for p in plans))


def by_arithmetic(config, program: Program, useful: Program, gpu: Chip) -> Plan:
    model = preset(config.model, **weights.computation(config))
    model = dataclasses.replace(model, attention="cudnn")
    devices = jax.sharding.get_mesh().size
    parts = temporaries(config, model, program.name, devices=devices)
    return estimate(program, useful, gpu, num_chips=devices, temporaries=parts)


def report(plans: list[Plan], mesh: dict) -> None:
    """Print one row a program, in GiB, TFLOP and seconds of one chip."""
    title = f"{TOPOLOGY.value} as " + " x ".join(f"{k} {n}" for k, n in mesh.items())
    table = Table(title=title)
    for name in ("program", "held", "arguments", "temporaries", "of HBM", "fits"):
        table.add_column(name)
    for name in ("TFLOP", "GiB moved", "seconds at best", "bound by", "MFU at most"):
        table.add_column(name)
    for p in plans:
        seconds = p.seconds
        bound = max(seconds, key=seconds.get)
        moved = ", ".join(f"{k} {n / GIB:.1f}" for k, n in p.moved.items())
        table.add_row(
            p.name,
            *(
                f"{p.memory[k] / GIB:.2f}" if k in p.memory else "?"
                for k in ("held", "arguments", "temporaries")
            ),
            f"{p.chip.memory / GIB:.1f}",
            "yes" if p.fits else "NO",
            f"{p.flops / 1e12:.1f}",
            moved,
            f"{seconds[bound]:.2f}",
            bound,
            f"{p.utilisation:.0%}",
        )
    Console(width=180).print(table)
    for p in plans:
        if not p.fits:
            lines = "\n  ".join(p.largest)
            print(f"{p.name} does not fit. What takes the most:\n  {lines}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    start.set_up_logs()

    def parse(argv):
        start.check_config_flags(argv)
        return app.parse_flags_with_usage(argv)

    with start.clear_errors():
        app.run(main, flags_parser=parse)
