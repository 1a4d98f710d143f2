"""What a program would need on given chips, and how fast it could be: no chip at hand.

The compiler for the chips runs on any machine. It says what memory a program takes and
which collectives it has; operations are counted in the program (`flops`). The time is a
roofline: as if products, memory and links each ran at their full speed and beside each
other. A real run is slower.
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

from rlhf_jax.planning.flops import count_flops
from rlhf_jax.planning.hlo import collectives

GIB = 2**30


class Chip(NamedTuple):
    """Published speeds, and the memory that the compiler lets a program have."""

    memory: float  # bytes
    flops: float  # bfloat16, a second
    bandwidth: float  # bytes a second, of the memory
    links: float  # bytes a second, of all links to other chips together


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm; the links' speeds there
# are in bits. Memory as the compiler states it when a program does not fit.
CHIPS = {
    "v4": Chip(31.25 * GIB, 275e12, 1.228e12, 2400e9 / 8),
    "v5e": Chip(15.75 * GIB, 197e12, 0.819e12, 1600e9 / 8),
    "v5p": Chip(95.74 * GIB, 459e12, 2.765e12, 4800e9 / 8),
    "v6e": Chip(31.25 * GIB, 918e12, 1.640e12, 3584e9 / 8),
}
# https://www.nvidia.com/en-us/data-center/h200: without sparsity; links one way.
GPUS = {
    "h100": Chip(79.6 * GIB, 989e12, 3.35e12, 900e9 / 2),
    "h200": Chip(139.8 * GIB, 989e12, 4.8e12, 900e9 / 2),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A function with the shapes of its arguments.

    Attributes:
        donate: whether the first argument's memory is used for the result.
        held: what else lies in memory while it runs, beside the arguments.
        loop_steps: how often a loop without a known end runs; each, if several follow
            each other.
        loop_reads: what one run of each of them reads, together.
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
    """One program on one kind of chip: bytes and operations of a chip."""

    name: str
    chip: Chip
    fits: bool
    memory: dict[str, int]  # held, arguments, outputs, temporaries, code
    largest: list[str]  # what takes the most, where it does not fit
    flops: float
    useful_flops: float  # without what is computed twice
    moved: dict[str, int]  # bytes received through collectives, by kind
    read: int  # bytes of its arguments, and what its loop reads, all rounds together

    @property
    def seconds(self) -> dict[str, float]:
        """What each part of the chip would need at full speed."""
        return {
            "products": self.flops / self.chip.flops,
            "memory": self.read / self.chip.bandwidth,
            "links": sum(self.moved.values()) / self.chip.links,
        }

    @property
    def utilisation(self) -> float:
        """Model-flops utilisation in that time: useful products of all possible."""
        return self.useful_flops / self.chip.flops / max(self.seconds.values())

    def as_dict(self) -> dict:
        more = {"seconds": self.seconds, "utilisation": self.utilisation}
        return dataclasses.asdict(self) | {"chip": self.chip._asdict()} | more


def plan(program: Program, useful: Program, chip: Chip, *, num_chips: int) -> Plan:
    """Compile a program for the current mesh, and say what it takes.

    Args:
        useful: the same program, computing nothing twice.
    """
    function = jax.jit(program.function, donate_argnums=(0,) if program.donate else ())
    held, arguments, found = _counted(program, useful, chip, num_chips)
    try:
        compiled, text = compile_with_text(function.lower(*program.arguments))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = {"held": held, "arguments": arguments}
        largest = largest_allocations(str(error))
        return found(fits=False, memory=memory, largest=largest, moved={})
    memory = memory_of(compiled)
    held += max(arguments - memory["arguments"], 0)  # what the program does not read
    memory = {"held": held} | memory
    moved = moved_bytes(text, loop_steps=program.loop_steps)
    fits = sum(memory.values()) <= chip.memory
    largest = sorted(memory, key=memory.get, reverse=True)
    largest = [f"{name}: {memory[name] / GIB:.2f} GiB" for name in largest[:3]]
    return found(fits=fits, memory=memory, largest=largest, moved=moved)


def estimate(
    program: Program, useful: Program, chip: Chip, *, num_chips: int, temporaries: dict
) -> Plan:
    """The same without a compiler: what the links move is not known.

    Args:
        temporaries: bytes of a chip, by what they are for.
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
    """Bytes held and of arguments, and a Plan with what can be counted filled in."""
    held, arguments, loop_reads = (
        sum(bytes_per_device(x) for x in jax.tree.leaves(tree))
        for tree in (program.held, program.arguments, program.loop_reads)
    )
    found = functools.partial(
        Plan,
        name=program.name,
        chip=chip,
        flops=_flops(program) / num_chips,
        useful_flops=_flops(useful) / num_chips,
        read=arguments + program.loop_steps * loop_reads,
    )
    return held, arguments, found


def _flops(program: Program) -> int:
    return count_flops(
        program.function, *program.arguments, loop_steps=program.loop_steps
    )


def compile_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """Compile for a TPU, and read what became of the program.

    `compiled.as_text()` fails on newer chips' asynchronous instructions, which this
    machine's own XLA does not know.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        texts = Path(folder).glob("*jit_*.after_optimizations.txt")
        text = max(texts, key=lambda path: path.stat().st_size).read_text()
    return compiled, text


def bytes_per_device(x) -> int:
    """What an array (or its shape, with a sharding) takes of one device."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def largest_allocations(message: str) -> list[str]:
    """From the compiler's error: sizes and shapes of the largest allocations; its
    beginning, where it has none."""
    kept = ("Used ", "Size: ", "Operator: ", "Shape: ")
    lines = [line.strip() for line in message.splitlines()]
    found = [line for line in lines if any(part in line for part in kept)]
    return found[:13] or [line[:500] for line in lines[:3]]


def moved_bytes(text: str, *, loop_steps: int = 1) -> dict[str, int]:
    """Bytes that a chip receives in one run of a compiled program, by collective."""
    moved: Counter = Counter()
    for found in collectives(text, loop_steps=loop_steps):
        moved[found.kind] += found.times * found.bytes_moved
    return dict(moved)


def memory_of(compiled) -> dict[str, int]:
    """Bytes of a chip that a compiled program takes."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
