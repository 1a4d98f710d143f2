"""Iterative DPO: sample pairs from the policy, train it on them, again.

python launch/iterate.py --config=configs/iterative_dpo.py:tiny --workdir=runs/iterate \
    --config.init_from=runs/sft --config.reward_model=runs/reward

    init_from -> pairs_1 -> dpo_1 -> pairs_2 -> dpo_2 -> ...

The last policy is WORKDIR/dpo_ROUNDS. Start the same command again and it goes on
where it stopped.
"""

from pathlib import Path

import start
from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.stages import dpo, pairs
from rlhf_jax.training.workdir import finish, is_finished, open_workdir, read_summary


def main(config: ConfigDict, workdir: str) -> None:
    if config.reference not in ("first", "previous"):
        raise ValueError(f"{config.reference=} must be 'first' or 'previous'.")
    if config.rounds < 1:
        raise ValueError(f"{config.rounds=} must be at least 1.")
    for name in ("init_from", "reward_model"):
        if not config[name]:
            raise ValueError(f"config.{name} is empty: name the folder of one.")
    folder = open_workdir(workdir, config)
    data = str(sources.open_data(config.data, folder))

    policy, summary = config.init_from, {}
    for number in range(1, config.rounds + 1):
        labelled, trained = folder / f"pairs_{number}", folder / f"dpo_{number}"
        shared = {"seed": config.seed + number, "init_from": policy}
        sampling = shared | {"reward_model": config.reward_model}
        run(pairs, config.pairs, data, labelled, sampling)
        training = shared | {
            "pairs": str(labelled / "comparisons.jsonl"),
            "reference_from": config.init_from if config.reference == "first" else "",
        }
        run(dpo, config.dpo, data, trained, training)
        policy = str(trained)
        summary[f"round_{number}"] = {
            "pairs": read_summary(labelled),
            "dpo": read_summary(trained),
        }
    finish(folder, summary)


def run(stage, config: ConfigDict, data: str, folder: Path, fields: dict) -> None:
    """Run a stage in its folder unless it is done."""
    if is_finished(folder):
        logging.info("%s: done before.", folder)
        return
    config = config.copy_and_resolve_references()
    config.data.path = data
    config.update(fields)
    logging.info("%s", folder)
    stage.run(config, str(folder))


if __name__ == "__main__":
    start.run(main)
