"""Benchmark of this project against others on the same work, in turns.

pip install -e '.[bench]'
python -m benchmarks.against_peers [--rounds=3] [--repeats=10] [--out=results] \
    [--as_shipped] \
    [--python tunix_llama=tunix/bin/python easydel_glm=easydel/bin/python]

Every round runs, for every row, this project and then each peer (a script in peers/),
each in a process of its own with the machine to itself, so that a slow minute affects
all of them. Peers whose libraries need an environment of their own run with the
interpreter that --python names, and are skipped without it. All run with this project's
settings of the C library's allocator (training/allocator.py), which make some peers up
to 50 % faster; --as_shipped keeps the peers' own settings. Every run is printed as a
JSON line and written to against_peers.jsonl; the table, against_peers.md, has medians
over rounds. Compare the ratios: the seconds depend on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SHAPE = ("--model=benchmark", "--prompt=64", "--response=128")
PEERS = Path(__file__).parent / "peers"
# Row: unit, the call of benchmarks/ROW.py that is compared, its flags, the peers.
ROWS = {
    "generate": ("tokens", "generate", SHAPE, ("torch_glm", "tunix_llama")),
    "sft": ("tokens", "step", ("--model=benchmark",), ("torch_glm",)),
    "reward": ("pairs", "shared", SHAPE, ("torch_glm",)),
    "dpo": ("pairs", "on_the_fly", SHAPE, ("torch_glm", "trl_glm", "easydel_glm")),
    "ppo": ("iterations", "iteration", SHAPE, ("torch_glm", "tunix_llama")),
}
# The requirements of these peers' libraries conflict with those of this project.
APART = ("tunix_llama", "easydel_glm")
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
}


def run(command: list[str], row: str, who: str, settings: dict) -> dict:
    """Run a command in an environment with these settings; print and return the
    measurement."""
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | settings,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    if who == "rlhf_jax":
        measured = measured[ROWS[row][1]] | {"peak_gib": measured["peak_gib"]}
    measured = {"row": row, "who": who} | measured
    print(json.dumps(measured), flush=True)
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH")
    parser.add_argument("--as_shipped", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results"))
    flags = parser.parse_args()
    pythons = dict(place.split("=", 1) for place in flags.python)

    settings = {} if flags.as_shipped else ALLOCATOR
    repeats = f"--repeats={flags.repeats}"
    runs = []
    for _ in range(flags.rounds):
        for row in flags.rows:
            _, _, shape, peers = ROWS[row]
            ours = [sys.executable, "-m", f"benchmarks.{row}", *shape, repeats]
            runs.append(run(ours, row, "rlhf_jax", settings))
            for peer in peers:
                if peer in APART and peer not in pythons:
                    continue
                script = [str(PEERS / f"{peer}.py"), f"--row={row}", repeats]
                python = pythons.get(peer, sys.executable)
                runs.append(run([python, *script], row, peer, settings))

    flags.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(x) + "\n" for x in runs)
    (flags.out / "against_peers.jsonl").write_text(lines)
    table = "\n".join(table_of(runs)) + "\n"
    (flags.out / "against_peers.md").write_text(table)
    print(table)


def table_of(runs: list[dict]) -> list[str]:
    """Format a table with one row for every peer on every work, beside this project."""

    def rates(row, who):
        return [x["per_second"] for x in runs if (x["row"], x["who"]) == (row, who)]

    def told(values):
        low, middle, high = (
            f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
            for x in (min(values), statistics.median(values), max(values))
        )
        return f"{middle} ({low} to {high})"

    lines = ["| row | a second | rlhf_jax | peer | its rate | ratio |"]
    lines.append("|---|---|---|---|---|---|")
    for row, who in dict.fromkeys((x["row"], x["who"]) for x in runs):
        if who == "rlhf_jax":
            continue
        ours, theirs = rates(row, "rlhf_jax"), rates(row, who)
        ratio = statistics.median(ours) / statistics.median(theirs)
        lines.append(
            f"| {row} | {ROWS[row][0]} | {told(ours)} | {who} | {told(theirs)} | "
            f"{ratio:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
