"""The rounds of iterative DPO: pairs of the newest policy, then DPO on them."""

from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.launching import closing
from rlhf_jax.launching.checks import check_data
from rlhf_jax.launching.stage import run_stages
from rlhf_jax.rewards.spec import uses_model
from rlhf_jax.training.workdir import finish, read_summary


def run(config: ConfigDict, workdir: str) -> None:
    """Run `config.rounds` rounds; the last policy is `workdir/dpo_ROUNDS`.

    Raises:
        ValueError: an option of the rounds is invalid.
    """
    if config.reference not in ("first", "previous"):
        raise ValueError(f"{config.reference=} must be 'first' or 'previous'.")
    if config.rounds < 1:
        raise ValueError(f"{config.rounds=} must be at least 1.")
    if not config.init_from:
        raise ValueError("config.init_from is empty: name the folder of one.")
    if uses_model(config.pairs.rewards) and not config.reward_model:
        raise ValueError(
            "config.reward_model is empty: name the folder of one, or functions in "
            "config.pairs.rewards."
        )
    folder = Path(workdir)
    check_data(config.data)
    data = sources.data_folder(config.data, folder)
    stages = stage_configs(config, folder, data)
    parts = {
        kind: [name for name in stages if name.startswith(kind)]
        for kind in ("pairs", "dpo")
    }
    run_stages(config, folder, stages, parts=parts)
    summary = {
        f"round_{number}": {
            kind: read_summary(folder / f"{kind}_{number}") for kind in parts
        }
        for number in range(1, config.rounds + 1)
    }
    finish(folder, summary)
    closing.say_next(closing.chat_command(str(folder / list(stages)[-1])))


def stage_configs(
    config: ConfigDict, folder: Path, data: Path
) -> dict[str, ConfigDict]:
    """Return the configs of all rounds' stages by name, in the order of the runs."""
    stages, policy = {}, config.init_from
    for number in range(1, config.rounds + 1):
        labelled, trained = f"pairs_{number}", f"dpo_{number}"
        shared = {"seed": config.seed + number, "init_from": policy}
        stages[labelled] = _with(
            config.pairs, data, shared | {"reward_model": config.reward_model}
        )
        training = {
            "pairs": str(folder / labelled / "comparisons.jsonl"),
            "reference_from": config.init_from if config.reference == "first" else "",
        }
        stages[trained] = _with(config.dpo, data, shared | training)
        policy = str(folder / trained)
    return stages


def _with(config: ConfigDict, data: Path, fields: dict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.data.path = str(data)
    config.update(fields)
    return config
