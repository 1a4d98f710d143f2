"""Benchmark of length balancing of human comparisons, by the reward models it gives.

python -m benchmarks.hh_reward --data=FOLDER --workdir=runs/hh_reward [--seeds 0 1 2]

FOLDER holds hh_rlhf_harmless and hh_rlhf_helpful, each with train.jsonl.gz and
test.jsonl.gz as Anthropic publishes them. On each set, a model of a million parameters
is trained from random weights (configs/reward.py:hh) on the comparisons that cleaning
keeps, and another on the subset that length balancing keeps
(configs/prepare_comparisons.py:hh); both are evaluated on the same test pairs. People
preferred the shorter answer in one set and the longer answer in the other.

The results are written to results/hh_reward.json.
"""

import argparse
import itertools
import json
from pathlib import Path

from configs import prepare_comparisons as prepare_config
from configs import reward as reward_config
from rlhf_jax.data import sources
from rlhf_jax.stages import prepare_comparisons, reward
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.workdir import is_finished, read_summary

SETS = ("hh_rlhf_harmless", "hh_rlhf_helpful")
KEPT = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "always_longer",
    "always_shorter",
    "bag_of_words",
    "length_correlation",
    "length_correlation_within",
    "score_std",
    "calibration_error",
)


def train(folder: Path, workdir: Path, *, is_balanced: bool, seed: int) -> dict:
    """Train one reward model; return the summary of the run."""
    config = reward_config.get_config("hh")
    config.data.path = str(folder)
    config.data.path = str(sources.open_data(config.data, workdir))
    prepare = prepare_config.get_config("hh")
    prepare.comparisons = f"{config.data.path}/comparisons.jsonl"
    prepare.tokenizer = f"{config.data.path}/tokenizer"
    config.seed = prepare.seed = seed
    if not is_balanced:
        prepare.length_bucket = 0
    prepare_comparisons.run(prepare, str(workdir / "prepared"))
    config.comparisons = str(workdir / "prepared" / "comparisons.jsonl")
    if not is_finished(workdir):
        reward.run(config, str(workdir))
    return read_summary(workdir)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    flags = parser.parse_args()
    keep_freed_memory()
    rows = []
    for seed, name, is_balanced in itertools.product(flags.seeds, SETS, (False, True)):
        kind = "balanced" if is_balanced else "plain"
        summary = train(
            flags.data / name,
            flags.workdir.absolute() / f"{name}_{kind}_{seed}",
            is_balanced=is_balanced,
            seed=seed,
        )
        row = {"set": name, "balanced": is_balanced, "seed": seed}
        row |= {"steps": summary["step"], "pairs": summary["pairs"]}
        rows.append(row | {key: summary[f"eval/{key}"] for key in KEPT})
        print(json.dumps(rows[-1]), flush=True)
    target = Path(__file__).parents[1] / "results" / "hh_reward.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
