"""Profile of a benchmark: the time of a call, by kind of work.

python -m benchmarks.where dpo --call=on_the_fly [--top=20] -- [--pairs=16 ...]

The example runs benchmarks/dpo.py, with the flags after `--`, under a profiler. Fused
operations are sorted by their content: a matrix product, a sum along an axis,
arithmetic, or only moving of data. A CPU runs several operations at a time, so the sum
of their times can be that many times the wall time. On a GPU the kernels follow by
name, copies (`MemcpyD2D`) among them, whichever program they are of.
"""

import argparse
import importlib
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax

ARITHMETIC = re.compile(r" (add|subtract|multiply|divide|exponential|select|maximum)\(")
# A product by the compiler's own name, and by the libraries' on a GPU.
PRODUCT = re.compile(r" dot\(|custom_call_target=\"__(cublas|triton_gemm|cudnn\$fmha)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", help="of benchmarks/")
    parser.add_argument("--call", required=True, help="of that benchmark")
    parser.add_argument("--top", type=int, default=20)
    flags, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        dump = f"--xla_dump_to={folder / 'hlo'} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}"
        benchmark = importlib.import_module(f"benchmarks.{flags.benchmark}")
        benchmark.measure = lambda calls, **_: profile(calls, flags, folder)
        sys.argv = [flags.benchmark, *(x for x in options if x != "--")]
        benchmark.main()


def profile(calls, flags, folder: Path) -> None:
    """Print the time of a call by kind of work and by operation; then exit."""
    for _ in range(2):  # all calls: one may need the results of another
        for call in calls.values():
            jax.block_until_ready(call())
    with jax.profiler.trace(folder / "trace"):
        jax.block_until_ready(calls[flags.call]())
    trace = next((folder / "trace").rglob("*.xplane.pb"))
    seconds, kernels = seconds_by_operation(trace), seconds_by_kernel(trace)
    modules = Counter()
    for (module, _), spent in seconds.items():
        modules[module] += spent
    module = modules.most_common(1)[0][0]
    texts = (folder / "hlo").glob(f"*.{module}.*after_optimizations.txt")
    described = describe(max((path.read_text() for path in texts), key=len))
    kinds, pieces = Counter(), Counter()
    for (where, operation), spent in seconds.items():
        if where == module:
            kind, shape, source = described.get(operation, ("loop", "", ""))
            kinds[kind] += spent
            pieces[f"{kind}: {shape} of {source}"] += spent
    for times in (kinds, pieces, kernels):
        total = sum(times.values())
        for name, spent in times.most_common(flags.top):
            print(f"{1e3 * spent:9.1f} ms {100 * spent / total:5.1f} %  {name}")
        print()
    sys.exit()


def seconds_by_operation(path: Path) -> Counter:
    """Read (module, operation) -> seconds from a trace."""
    seconds = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    key = stats["hlo_module"], stats["hlo_op"]
                    seconds[key] += event.duration_ns / 1e9
    return seconds


def seconds_by_kernel(path: Path) -> Counter:
    """Read kernel -> seconds of the GPUs from a trace; empty without a GPU."""
    seconds: Counter = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        seconds[event.name] += event.duration_ns / 1e9
    return seconds


def describe(text: str) -> dict[str, tuple[str, str, str]]:
    """Read operation -> (kind, shape, source) from a compiled program's text."""
    bodies, name = {}, ""
    for line in text.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line):
            name = begins[1]
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    described = {}
    for line in (line for body in bodies.values() for line in body):
        if not (operation := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\S+) ", line)):
            continue
        fused = re.search(r"calls=%?([\w.\-]+)", line)
        body = "\n".join(bodies[fused[1]]) if fused else line
        source = re.search(r'op_name="(?:jit\(\w+\)/)*([^"]*)"', line)
        if PRODUCT.search(body):
            kind = "product"
        elif " reduce(" in body:
            kind = "sum along an axis"
        else:
            kind = "arithmetic" if ARITHMETIC.search(body) else "moving"
        described[operation[1]] = kind, operation[2], source[1] if source else "?"
    return described


if __name__ == "__main__":
    main()
