"""The plan of a run: each of its programs on given chips, and the table of them."""

import dataclasses
import importlib.util

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import programs, roofline, start
from rlhf_jax.planning.arithmetic import temporaries
from rlhf_jax.planning.roofline import CHIPS, GIB, GPUS, Chip, Plan, Program
from rlhf_jax.terminal import print_table
from rlhf_jax.training import options, weights

HEADER = ["program", "held", "arguments", "temporaries", "of HBM", "fits", "TFLOP"]
HEADER += ["seconds at best", "bound by", "MFU at most", "GiB moved"]


def plan(
    config: ConfigDict, topology: str, only: list[str]
) -> tuple[list[Plan], dict[str, int]]:
    """The plan of the start and of each program of a stage's run, and the sizes of the
    mesh.

    Args:
        topology: chips, as "v5e:4x8" for TPUs and "h200:1" for GPUs.
        only: the names of the programs to plan; empty: all.

    Raises:
        ValueError: an unknown topology, or a stage without a plan.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS | GPUS or not shape or (kind in GPUS and not shape.isdigit()):
        raise ValueError(
            f"--topology={topology}: write KIND:SHAPE, with one of the kinds "
            f"{', '.join(CHIPS)}, such as v5e:4x8, or KIND:COUNT with one of "
            f"{', '.join(GPUS)}, such as h200:1."
        )
    if kind in GPUS:
        jax.config.update("jax_num_cpu_devices", int(shape))  # stand for them
        devices = jax.devices()
    else:
        devices = tpu_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    precision = options.matmul_precision(config)
    with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
        both = zip(
            programs.of(config), programs.of(config, recompute=False), strict=True
        )
        both = [pair for pair in both if not only or pair[0].name in only]
        if kind in GPUS:
            plans = [by_arithmetic(config, *pair, GPUS[kind]) for pair in both]
        else:
            plans = [
                roofline.plan(*pair, CHIPS[kind], num_chips=mesh.size) for pair in both
            ]
        if not only or "start" in only:
            chip, starting = (CHIPS | GPUS)[kind], start.of(config)
            plans.insert(
                0,
                roofline.estimate(
                    starting, starting, chip, num_chips=mesh.size, temporaries={}
                ),
            )
    return plans, dict(mesh.shape)


def tpu_devices(topology: str) -> list:
    """The chips of a topology, by the TPU's compiler.

    Raises:
        ValueError: the compiler is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={topology}: there is no compiler for TPUs here. Install it, "
            "in an environment of its own: pip install -e '.[tpu-plan]'."
        )
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        ).devices
    except Exception as error:  # of whatever kind the compiler likes
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--topology={topology}: {reason}") from error


def by_arithmetic(config, program: Program, useful: Program, gpu: Chip) -> Plan:
    model = preset(config.model, **weights.computation(config))
    model = dataclasses.replace(model, attention="cudnn")
    devices = jax.sharding.get_mesh().size
    parts = temporaries(config, model, program.name, devices=devices)
    return roofline.estimate(program, useful, gpu, num_chips=devices, temporaries=parts)


def print_plans(plans: list[Plan], topology: str, mesh: dict[str, int]) -> None:
    """Print one row a program, in GiB, TFLOP and seconds of one chip."""
    title = f"{topology} as " + " x ".join(f"{k} {n}" for k, n in mesh.items())
    rows = []
    for p in plans:
        seconds = p.seconds
        bound = max(seconds, key=seconds.get)
        moved = ", ".join(f"{k} {n / GIB:.1f}" for k, n in p.moved.items())
        memory = [
            f"{p.memory[k] / GIB:.2f}" if k in p.memory else "?"
            for k in ("held", "arguments", "temporaries")
        ]
        of = f"{p.chip.memory / GIB:.1f}"
        time, share = f"{seconds[bound]:.2f}", f"{p.utilisation:.0%}"
        fits = "yes" if p.fits else "NO"
        flops = f"{p.flops / 1e12:.1f}"
        rows.append([p.name, *memory, of, fits, flops, time, bound, share, moved])
    print_table(title, HEADER, rows)
