"""The stages of the whole pipeline, one after another, each in its own folder."""

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.launching import closing
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training.workdir import finish, is_finished, open_workdir, read_summary


def run(config: ConfigDict, workdir: str) -> None:
    """Run SFT, comparisons, reward model, PPO, DPO and evaluation; leave the report."""
    folder = open_workdir(workdir, config)
    seed = config.seed
    config.data.testbed.seed = config.data.annotators.seed = seed
    data = sources.open_data(config.data, folder)

    def run_in_folder(config: ConfigDict, name: str, **fields) -> str:
        """Run a stage in its folder unless it is done; returns the folder."""
        target = folder / name
        config = prepare(config, seed, data, fields)
        if is_finished(target):
            logging.info("%s: done before.", name)
        else:
            logging.info("%s: %s", name, target)
            run_stage(config, target)
        return str(target)

    policy = run_in_folder(config.sft, "sft")
    raw = data
    if not config.human_comparisons:
        raw = Path(run_in_folder(config.collect, "collect", init_from=policy))
    prepared = run_in_folder(
        config.prepare_comparisons,
        "prepare_comparisons",
        comparisons=str(raw / "comparisons.jsonl"),
        tokenizer=policy,
    )
    held_out = data if config.human_comparisons else Path(prepared)
    scorer = run_in_folder(
        config.reward,
        "reward",
        init_from=policy,
        comparisons=str(Path(prepared) / "comparisons.jsonl"),
        comparisons_test=str(held_out / "comparisons_test.jsonl"),
    )
    both = {"init_from": policy, "reward_model": scorer}
    by_ppo = run_in_folder(config.ppo, "ppo", **both)
    labelled = run_in_folder(config.pairs, "pairs", **both)
    pairs_file = str(Path(labelled) / "comparisons.jsonl")
    by_dpo = run_in_folder(config.dpo, "dpo", init_from=policy, pairs=pairs_file)

    models = f"sft={policy},ppo={by_ppo},dpo={by_dpo}"
    evaluate_config = prepare(
        config.evaluate, seed, data, {"models": models, "reward_model": scorer}
    )
    run_stage(evaluate_config, folder / "evaluate")
    summary = read_summary(folder / "evaluate")
    summary["reward"] = read_summary(folder / "reward")
    finish(folder, summary)
    report = folder / "report.html"
    write_report([str(folder)], report, form="html", title=str(folder))
    print(f"The runs, their curves and what the models say: {report}")
    closing.say_next(closing.chat_command(by_ppo))


def prepare(config: ConfigDict, seed: int, data: Path, fields: dict) -> ConfigDict:
    """A stage's config with this run's folders."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    if "data" in config:
        config.data.path = str(data)
    config.update(fields)
    return config
