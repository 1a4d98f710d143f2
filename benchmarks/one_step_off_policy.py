"""Benchmark of GRPO whose reward is bound by the host: responses of the next iteration
sampled while the reward function runs (`one_step_off_policy`), and after the update.

python -m benchmarks.one_step_off_policy [--seconds=2] [--busy] [--steps=8]
    [--rounds=2]

The stage itself on the testbed: configs/ppo.py:tiny with GRPO, 8 samples a prompt, and
random weights. The reward function sleeps for `seconds`, as one does that asks a
service; with `busy` it computes as long instead, on a core that the device shares.
JSON: median seconds of an iteration in both ways, by part and in all, over the rounds
in turns, without the first two iterations of each.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from configs import ppo as ppo_config
from rlhf_jax.stages import ppo
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.metrics import read_metrics

REWARD = """
import subprocess, sys, time

BUSY = "import time; end = time.time() + {seconds}\\nwhile time.time() < end: pass"

def tokens(prompts, responses):
    if {busy}:
        subprocess.run([sys.executable, "-c", BUSY], check=True)
    else:
        time.sleep({seconds})
    return [sum(response.tokens) / 10000 for response in responses]
"""
PARTS = ("time/generate", "time/score", "time/update")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    flags = parser.parse_args()
    keep_freed_memory()
    lines = {"after_the_update": [], "one_step_off_policy": []}
    with tempfile.TemporaryDirectory() as folder:
        reward = Path(folder) / "reward.py"
        reward.write_text(REWARD.format(seconds=flags.seconds, busy=flags.busy))
        for number in range(flags.rounds):
            for way, taken in lines.items():
                workdir = Path(folder) / f"{way}_{number}"
                ppo.run(settings(reward, flags, way), str(workdir))
                taken += read_metrics(workdir)[2:]
    results = {}
    for way, taken in lines.items():
        results[way] = {x: median(line[x] for line in taken) for x in PARTS}
        whole = [sum(line[x] for x in PARTS) for line in taken]
        results[way]["iteration"] = median(whole)
        gap = median(line["rollout/logprob_gap_mean"] for line in taken)
        results[way]["rollout/logprob_gap_mean"] = gap
    both = [results[way]["iteration"] for way in lines]
    print(json.dumps(vars(flags) | results | {"ratio": round(both[0] / both[1], 2)}))


def settings(reward: Path, flags, way: str):
    config = ppo_config.get_config("tiny")
    config.update(
        advantage="grpo",
        baseline="none",
        samples_per_prompt=8,
        beta_sft=0.0,
        rewards=f"{reward}:tokens=1.0",
        one_step_off_policy=way == "one_step_off_policy",
        total_steps=flags.steps,
        eval_every=0,
        save_every=0,
    )
    return config


def median(values) -> float:
    return round(statistics.median(values), 5)


if __name__ == "__main__":
    main()
