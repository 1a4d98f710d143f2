"""Benchmark of PPO's start: seconds from command to first update, cold and warm.

python -m benchmarks.start_up [--repeats=3] \
    [--config.init_from=runs/sft --config.reward_model=runs/reward ...]

launch/train.py runs configs/ppo.py:tiny for one step, each time in an empty folder:
first with nothing compiled, then with the compile cache of the first run. JSON: the
seconds of the cold start and of every warm start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
COMMAND = (
    sys.executable,
    "launch/train.py",
    "--config=configs/ppo.py:tiny",
    "--config.total_steps=1",
    "--config.eval_every=0",
    "--config.save_every=0",
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=3)
    flags, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as home:
        cold, *warm = (
            seconds_to_first_update(options, Path(home), Path(home) / f"run_{i}")
            for i in range(1 + flags.repeats)
        )
    print(json.dumps({"options": options, "cold": cold, "warm": warm}))


def seconds_to_first_update(options: list[str], home: Path, workdir: Path) -> float:
    """Measure one run whose compile cache is in `home`."""
    began = time.perf_counter()
    run = subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *options],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not read_metrics(workdir):
        if run.poll() is not None:
            sys.exit(run.stderr.read())
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    run.communicate()
    return round(seconds, 1)


if __name__ == "__main__":
    main()
