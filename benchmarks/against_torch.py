"""This project and a plain torch loop on the same work, side by side, in turns.

pip install -e '.[parity]'
python -m benchmarks.against_torch [--rounds=3] [--repeats=10] [--out=results]

Every round runs, for every row, this project and then torch, each in a process of its
own with the machine to itself, so that a slow minute meets both. The table gives
medians over rounds; its ratios are what to read, seconds belong to the machine. Leaves
against_torch.json and against_torch.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

SHAPE = ("--model=benchmark", "--prompt=64", "--response=128")
# Row: unit, the call of benchmarks/ROW.py that is compared, its flags.
ROWS = {
    "generate": ("tokens", "generate", SHAPE),
    "sft": ("tokens", "step", ("--model=benchmark",)),
    "reward": ("pairs", "shared", SHAPE),
    "dpo": ("pairs", "on_the_fly", SHAPE),
    "ppo": ("iterations", "iteration", SHAPE),
}
PEER = Path(__file__).parent / "peers" / "torch_glm.py"


def run(*command) -> dict:
    """The JSON that a command prints last."""
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("results"))
    flags = parser.parse_args()

    ours, theirs = ({row: [] for row in flags.rows} for _ in range(2))
    repeats = f"--repeats={flags.repeats}"
    for _ in range(flags.rounds):
        for row in flags.rows:
            _, call, shape = ROWS[row]
            found = run("-m", f"benchmarks.{row}", *shape, repeats)
            ours[row].append(found[call]["per_second"])
            theirs[row].append(run(PEER, f"--row={row}", repeats)["per_second"])
    found = {
        row: {
            "unit": f"{ROWS[row][0]} a second",
            "rlhf_jax": ours[row],
            "torch": theirs[row],
            "ratio": statistics.median(ours[row]) / statistics.median(theirs[row]),
        }
        for row in flags.rows
    }
    lines = ["| row | unit | rlhf_jax | torch | ratio |", "|---|---|---|---|---|"]
    for row, numbers in found.items():
        rates = [statistics.median(numbers[name]) for name in ("rlhf_jax", "torch")]
        lines.append(
            f"| {row} | {numbers['unit']} | {rates[0]:,.4g} | {rates[1]:,.4g} | "
            f"{numbers['ratio']:.2f} |"
        )
    table = "\n".join(lines) + "\n"
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "against_torch.md").write_text(table)
    (flags.out / "against_torch.json").write_text(
        json.dumps({"machine": machine, "rows": found}, indent=1) + "\n"
    )
    print(table)


if __name__ == "__main__":
    main()
