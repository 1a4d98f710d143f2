"""The rounds of iterative DPO: pairs of the newest policy, then DPO on them."""

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.launching import closing
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training.workdir import finish, is_finished, open_workdir, read_summary


def run(config: ConfigDict, workdir: str) -> None:
    """Run `config.rounds` rounds; the last policy is `workdir/dpo_ROUNDS`.

    Raises:
        ValueError: an option of the rounds makes no sense.
    """
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
        _run(config.pairs, data, labelled, sampling)
        training = shared | {
            "pairs": str(labelled / "comparisons.jsonl"),
            "reference_from": config.init_from if config.reference == "first" else "",
        }
        _run(config.dpo, data, trained, training)
        policy = str(trained)
        summary[f"round_{number}"] = {
            "pairs": read_summary(labelled),
            "dpo": read_summary(trained),
        }
    finish(folder, summary)
    closing.say_next(closing.chat_command(policy))


def _run(config: ConfigDict, data: str, folder: Path, fields: dict) -> None:
    """Run a stage in its folder unless it is done."""
    if is_finished(folder):
        logging.info("%s: done before.", folder)
        return
    config = config.copy_and_resolve_references()
    config.data.path = data
    config.update(fields)
    logging.info("%s", folder)
    run_stage(config, folder)
