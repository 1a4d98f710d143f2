"""Collectives of a compiled program, and the arrays that its loops write, from its
text.

A collective in the body of a loop counts once for each iteration.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_COLLECTIVE = re.compile(
    rf"= (\(?.*?\)?) ({'|'.join(KINDS)}|ragged-all-to-all)(?:-start)?\("
)
_INSTRUCTION = re.compile(r"%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_APPLIED = re.compile(r" call\(.*to_apply=%([\w.\-]+)")
# Instructions that pass arrays on, or whose own body is looked into.
_PASSED = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional")
_PASSED += ("call", "custom-call")  # a library's product has a workspace in its result
_CALLED = re.compile(r"(?:calls|body|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_CONDITION = re.compile(r"condition=%([\w.\-]+)")
_BODY = re.compile(r"body=%([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"%([\w.\-]+) = \S+ get-tuple-element\(\S+\), index=(\d+)")
_COPY = re.compile(r"%([\w.\-]+) = \S+ copy\(%([\w.\-]+)\)")
_SUM = re.compile(r"%([\w.\-]+) = \S+ add\(%([\w.\-]+), %([\w.\-]+)\)")
_ARRAY = re.compile(r"([a-z]+)(\d+)\w*\[([\d,]*)\]")
_GROUP_SHAPE = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


class Collective(NamedTuple):
    kind: str
    shape: str  # of the result, as the compiler writes it
    times: int  # iterations of all loops around it, multiplied
    loops: int  # the number of loops around it
    bytes_moved: int  # received by a chip each time


def collectives(text: str, *, loop_steps: int = 1) -> list[Collective]:
    """List all collectives of a program.

    Args:
        text: `compiled.as_text()`.
        loop_steps: iterations of a loop without a known end.
    """
    bodies, entry = _computations(text)

    def walk(name: str, times: int, loops: int) -> Iterator[Collective]:
        for line in bodies.get(name, ()):
            match = _COLLECTIVE.search(line)
            if match:
                shape, kind = match.groups()
                # A TPU's reduce-scatter is a fusion of all-reduce and slice.
                scattered = name.startswith("all-reduce-scatter")
                moved = _bytes_moved(kind, shape, line) // (2 if scattered else 1)
                kind = "reduce-scatter" if scattered else kind
                yield Collective(kind, shape, times, loops, moved)
            called = _CALLED.findall(line)
            inner_times, inner_loops = times, loops
            if " while(" in line:
                condition = bodies[_CONDITION.search(line).group(1)]
                body = bodies[_BODY.search(line).group(1)]
                inner_times *= _trips(condition, body) or loop_steps
                inner_loops += 1
            for names in called:
                for inner in names.split(","):
                    yield from walk(inner.strip(" %"), inner_times, inner_loops)

    return list(walk(entry, 1, 0))


class Written(NamedTuple):
    """An array that the body of a loop writes to memory in every iteration."""

    name: str
    operation: str
    shape: str  # as the compiler writes it
    bytes: int
    trips: int  # of the outermost loop around it; 0 where it has no known end


def written_in_loops(text: str, *, smallest: int) -> list[Written]:
    """List the arrays of `smallest` bytes or more that the loops of a program write:
    among them every copy, slice and cast of weights that no product has taken in.
    Arrays in the fast memory of a TPU are left out.

    Args:
        text: `compiled.as_text()`.
    """
    bodies, entry = _computations(text)

    def walk(name: str, trips: int | None) -> Iterator[Written]:
        for line in bodies.get(name, ()):
            match = _INSTRUCTION.search(line)
            if trips is not None and match and match.group(3) not in _PASSED:
                instruction, shape, operation = match.groups()
                arrays = [] if "S(1)" in shape else _ARRAY.findall(shape)
                size = max((_array_bytes(*array) for array in arrays), default=0)
                if size >= smallest:
                    yield Written(instruction, operation, shape, size, trips)
            inner = _APPLIED.findall(line)
            inside = trips
            if " while(" in line:
                inner = _BODY.findall(line)
                if trips is None:
                    condition = bodies[_CONDITION.search(line).group(1)]
                    inside = _trips(condition, bodies[inner[0]])
            elif " conditional(" in line:
                called = _CALLED.findall(line)
                inner = [x.strip(" %") for names in called for x in names.split(",")]
            for computation in inner:
                yield from walk(computation, inside)

    return list(walk(entry, None))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            current = bodies.setdefault(match.group(2), [])
            if match.group(1):
                entry = match.group(2)
        elif current is not None and " = " in line:
            current.append(line)
    return bodies, entry


def _trips(condition: list[str], body: list[str]) -> int:
    """Return the iterations of a loop that counts up to a constant; 0 for other
    loops."""
    limits = [int(n) for line in condition for _, n in _CONSTANT.findall(line)]
    read = [place for line in condition for _, place in _ELEMENT.findall(line)]
    if len(limits) != 1 or len(read) != 1:
        return 0
    # An unrolled loop counts in larger steps.
    constants = {name: int(n) for line in body for name, n in _CONSTANT.findall(line)}
    counters = {
        name for line in body for name, n in _ELEMENT.findall(line) if n == read[0]
    }
    counters |= {
        name for line in body for name, of in _COPY.findall(line) if of in counters
    }
    result = next((line for line in body if line.lstrip().startswith("ROOT")), "")
    steps = [
        constants[step]
        for line in body
        for name, counter, step in _SUM.findall(line)
        if counter in counters and step in constants and f"%{name}," in result
    ]
    return -(-limits[0] // (steps[0] if steps else 1))


def _bytes_moved(kind: str, shape: str, line: str) -> int:
    """Return the bytes that a chip receives in a ring: n - 1 of n parts."""
    arrays = [_array_bytes(*match) for match in _ARRAY.findall(shape)]
    # The start of an asynchronous collective has its operand beside its result.
    pair = f"{kind}-start(" in line and kind in ("all-gather", "collective-permute")
    size = max(arrays) if pair else sum(arrays)
    n = _group_size(line)
    share = (n - 1) / n
    if kind == "all-reduce":
        return int(2 * share * size)
    if kind == "reduce-scatter":
        return int(share * size * n)
    if kind == "collective-permute":
        return size
    return int(share * size)


def _group_size(line: str) -> int:
    """Return the number of chips that take part; HLO has three notations for it."""
    if match := _GROUP_SHAPE.search(line):
        return int(match.group(1))
    if match := _GROUP_LIST.search(line):
        return len(match.group(1).split(","))
    if match := _GROUP_MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", match.group(2)))
    return 2  # a collective-permute has pairs


def _array_bytes(kind: str, bits: str, shape: str) -> int:
    count = math.prod(int(n) for n in shape.split(",") if n)
    return count * int(bits) // 8
