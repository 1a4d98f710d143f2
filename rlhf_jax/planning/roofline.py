"""Memory and best time of a program on chips that are not there.

The compiler for TPUs runs on any machine and reports a program's memory and
collectives; `flops` counts its operations. The time is a roofline: products, memory and
links each run at full speed and at the same time. A real run is slower.
"""

import dataclasses
import functools
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlhf_jax.models.adapters import base_parts, own_part
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.planning.hlo import collectives

GIB = 2**30


class Chip(NamedTuple):
    """Published speeds of a chip, and the memory that its compiler gives a program."""

    memory: float  # bytes
    flops: float  # bfloat16 operations a second
    bandwidth: float  # bytes a second from the chip's memory
    links: float  # bytes a second over all links to other chips together


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm; the links' speeds there
# are in bits. The memory is what the compiler states when a program does not fit.
CHIPS = {
    "v4": Chip(31.25 * GIB, 275e12, 1.228e12, 2400e9 / 8),
    "v5e": Chip(15.75 * GIB, 197e12, 0.819e12, 1600e9 / 8),
    "v5p": Chip(95.74 * GIB, 459e12, 2.765e12, 4800e9 / 8),
    "v6e": Chip(31.25 * GIB, 918e12, 1.640e12, 3584e9 / 8),
}
# bfloat16 without sparsity, summed in float32; links (NVLink, or PCIe 4.0 x16) one way.
# The memory is the 95 % that the commands let jax take.
# https://www.nvidia.com/en-us/data-center/h200, the same of h100, a100 (80 GB, SXM) and
# l4; for GeForce cards the whitepaper "NVIDIA Ada GPU architecture", appendix A.
GPUS = {
    "rtx4080": Chip(0.95 * 15.9 * GIB, 97.5e12, 0.717e12, 64e9 / 2),
    "rtx4090": Chip(0.95 * 23.9 * GIB, 165.2e12, 1.008e12, 64e9 / 2),
    "l4": Chip(0.95 * 22.4 * GIB, 121e12, 0.3e12, 64e9 / 2),
    "a100": Chip(0.95 * 79.6 * GIB, 312e12, 2.039e12, 600e9 / 2),
    "h100": Chip(0.95 * 79.6 * GIB, 989e12, 3.35e12, 900e9 / 2),
    "h200": Chip(0.95 * 139.8 * GIB, 989e12, 4.8e12, 900e9 / 2),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A function with the shapes of its arguments.

    Attributes:
        donate: whether the first argument's memory is used for the result.
        held: arrays resident in memory beside the arguments while the program runs.
        loop_steps: iterations of each loop without a known end.
        loop_reads: arrays that one iteration of each such loop reads.
    """

    name: str
    function: Callable
    arguments: tuple
    donate: bool = False
    held: Any = ()
    loop_steps: int = 1
    loop_reads: Any = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """One program on one kind of chip; bytes and operations are those of one chip."""

    name: str
    chip: Chip
    fits: bool
    memory: dict[str, int]  # held, arguments, outputs, temporaries, code
    largest: list[str]  # the largest allocations
    flops: float
    useful_flops: float  # without recomputation
    moved: dict[str, int]  # bytes received through collectives, by kind
    read: int  # bytes of the arguments, and of all that its loops read

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that products, memory and links need at full speed."""
        return {
            "products": self.flops / self.chip.flops,
            "memory": self.read / self.chip.bandwidth,
            "links": sum(self.moved.values()) / self.chip.links,
        }

    @property
    def utilisation(self) -> float:
        """Model-flops utilisation at best: useful operations by all possible ones."""
        return self.useful_flops / self.chip.flops / max(self.seconds.values())

    def as_dict(self) -> dict:
        more = {"seconds": self.seconds, "utilisation": self.utilisation}
        return dataclasses.asdict(self) | {"chip": self.chip._asdict()} | more


def plan(program: Program, useful: Program, chip: Chip, *, num_chips: int) -> Plan:
    """Compile a program for the current mesh, and plan it.

    Args:
        useful: the same program without recomputation.
    """
    function, parts = _on_parts(program)
    function = jax.jit(function, donate_argnums=(0,) if program.donate else ())
    held, arguments, found = _counted(program, useful, chip, num_chips)
    try:
        compiled, text = compile_with_text(function.lower(*parts))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = {"held": held, "arguments": arguments}
        largest = largest_allocations(str(error))
        return found(fits=False, memory=memory, largest=largest, moved={})
    memory = memory_of(compiled)
    held += max(
        arguments - memory["arguments"], 0
    )  # arguments that the program does not read
    memory = {"held": held} | memory
    moved = moved_bytes(text, loop_steps=program.loop_steps)
    fits = sum(memory.values()) <= chip.memory
    largest = sorted(memory, key=memory.get, reverse=True)
    largest = [f"{name}: {memory[name] / GIB:.2f} GiB" for name in largest[:3]]
    return found(fits=fits, memory=memory, largest=largest, moved=moved)


def estimate(
    program: Program, useful: Program, chip: Chip, *, num_chips: int, temporaries: dict
) -> Plan:
    """Plan a program without a compiler; the traffic over links stays unknown.

    Args:
        temporaries: bytes of a chip, by purpose.
    """
    held, arguments, found = _counted(program, useful, chip, num_chips)
    memory = {"held": held, "arguments": arguments}
    memory["temporaries"] = round(sum(temporaries.values()))
    parts = {"held": held, "arguments": arguments} | temporaries
    largest = sorted(parts, key=parts.get, reverse=True)[:5]
    return found(
        fits=sum(memory.values()) <= chip.memory,
        memory=memory,
        largest=[f"{name}: {parts[name] / GIB:.2f} GiB" for name in largest],
        moved={},
    )


def _counted(program: Program, useful: Program, chip: Chip, num_chips: int):
    """Count the bytes held and of arguments, and fill in a Plan as far as counts go."""
    arguments, loop_reads = map(size, (program.arguments, program.loop_reads))
    held = size((program.arguments, program.held)) - arguments
    found = functools.partial(
        Plan,
        name=program.name,
        chip=chip,
        flops=_flops(program) / num_chips,
        useful_flops=_flops(useful) / num_chips,
        read=arguments + program.loop_steps * loop_reads,
    )
    return held, arguments, found


def distinct(tree: Any) -> list[tuple[tuple, Any]]:
    """Return the paths and arrays of a tree; an array of a base under adapters once,
    however many models hold it."""
    shared, seen, leaves = _of_bases(tree), set(), []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if id(x) in seen:
            continue
        if id(x) in shared:
            seen.add(id(x))
        leaves.append((path, x))
    return leaves


def size(tree: Any) -> int:
    """Return the bytes that a tree's arrays take on one device."""
    return sum(bytes_per_device(x) for _, x in distinct(tree))


def _of_bases(tree: Any) -> dict[int, Any]:
    return {id(x): x for base in base_parts(tree) for x in base.values()}


def _on_parts(program: Program) -> tuple[Callable, tuple]:
    """Return a program as a function of the first argument's own arrays, of all others,
    and of those of bases, each of which is one argument."""
    shared = _of_bases(program.arguments)
    if not shared:
        return program.function, program.arguments
    leaves, treedef = jax.tree.flatten(program.arguments)
    end = len(jax.tree.leaves(program.arguments[0]))
    first, others = (
        [x for x in part if id(x) not in shared]
        for part in (leaves[:end], leaves[end:])
    )
    number = {key: i for i, key in enumerate(shared)}
    places = [number.get(id(x)) for x in leaves]

    def function(first, others, bases):
        own = iter([*first, *others])
        joined = [next(own) if i is None else bases[i] for i in places]
        return own_part(program.function(*jax.tree.unflatten(treedef, joined)))

    return function, (first, others, list(shared.values()))


def _flops(program: Program) -> int:
    return count_flops(
        program.function, *program.arguments, loop_steps=program.loop_steps
    )


def compile_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """Compile for a TPU; return the compiled program and its text.

    `compiled.as_text()` fails on asynchronous instructions of newer chips, which the
    XLA of the host does not know; the compiler's dump has them.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        texts = Path(folder).glob("*jit_*.after_optimizations.txt")
        text = max(texts, key=lambda path: path.stat().st_size).read_text()
    return compiled, text


def bytes_per_device(x) -> int:
    """Return the bytes of one device that an array, or its shape with a sharding,
    takes."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def largest_allocations(message: str) -> list[str]:
    """Extract sizes and shapes of the largest allocations from the compiler's error;
    its first lines, if it names none."""
    kept = ("Used ", "Size: ", "Operator: ", "Shape: ")
    lines = [line.strip() for line in message.splitlines()]
    found = [line for line in lines if any(part in line for part in kept)]
    return found[:13] or [line[:500] for line in lines[:3]]


def moved_bytes(text: str, *, loop_steps: int = 1) -> dict[str, int]:
    """Count the bytes that a chip receives in one run of a program, by collective."""
    moved: Counter = Counter()
    for found in collectives(text, loop_steps=loop_steps):
        moved[found.kind] += found.times * found.bytes_moved
    return dict(moved)


def memory_of(compiled) -> dict[str, int]:
    """Return the bytes of a chip that a compiled program takes, by kind."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
