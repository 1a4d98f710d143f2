"""The plan of a run: each of its programs on given chips, and the table of them."""

import dataclasses
import importlib.util
import math

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import programs, roofline, start
from rlhf_jax.planning.arithmetic import temporaries
from rlhf_jax.planning.roofline import CHIPS, GIB, GPUS, Plan, Program
from rlhf_jax.terminal import print_table
from rlhf_jax.training import options, weights

HEADER = ["program", "held", "arguments", "temporaries", "of HBM", "fits", "TFLOP"]
HEADER += ["seconds at best", "bound by", "MFU at most", "GiB moved"]


def plan(
    config: ConfigDict, topology: str, only: list[str], *, estimate: bool = False
) -> tuple[list[Plan], dict[str, int]]:
    """The plan of the start and of each program of a stage's run, and the sizes of the
    mesh.

    Args:
        topology: chips, as "v5e:4x8" for TPUs and "h200:1" for GPUs.
        only: the names of the programs to plan; empty: all.
        estimate: whether arithmetic takes the place of the TPU's compiler.

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
    by_compiler = kind in CHIPS and not estimate
    if not by_compiler:
        sizes = shape.split("x")
        if not all(size.isdigit() for size in sizes):
            raise ValueError(f"--topology={topology}: write such as v5e:4x8.")
        count = math.prod(map(int, sizes))
        jax.config.update("jax_num_cpu_devices", count)  # stand for them
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
        if by_compiler:
            plans = [
                roofline.plan(*pair, CHIPS[kind], num_chips=mesh.size) for pair in both
            ]
        else:
            plans = [by_arithmetic(config, *pair, kind) for pair in both]
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


def by_arithmetic(config, program: Program, useful: Program, kind: str) -> Plan:
    """The plan of a program on the current mesh of chips of a kind, whose temporaries
    are estimated."""
    devices = jax.sharding.get_mesh().size
    return roofline.estimate(
        program,
        useful,
        (CHIPS | GPUS)[kind],
        num_chips=devices,
        temporaries=estimated(config, program.name, kind),
    )


def estimated(config, name: str, kind: str) -> dict[str, float]:
    """The estimated temporary bytes of a program of this name on the current mesh of
    chips of a kind, by purpose."""
    model = preset(config.model, **weights.computation(config))
    model = dataclasses.replace(model, attention="splash" if kind in CHIPS else "cudnn")
    return temporaries(config, model, name, devices=jax.sharding.get_mesh().size)


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
