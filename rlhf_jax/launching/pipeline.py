"""The stages of the whole pipeline, one after another, each in its own folder."""

from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.launching import closing
from rlhf_jax.launching.checks import check_data
from rlhf_jax.launching.stage import run_stages
from rlhf_jax.training.workdir import finish, read_summary


def run(config: ConfigDict, workdir: str) -> None:
    """Run SFT, comparisons, reward model, PPO, DPO and evaluation; write the report.
    With `config.init_from` there is no SFT.

    Raises:
        ValueError, OSError: an option of a stage is invalid, or an input is missing; no
            stage has run then.
    """
    folder = Path(workdir)
    if config.held_out_judge and not config.human_comparisons:
        raise ValueError(
            "held_out_judge=True needs comparisons of people: set human_comparisons."
        )
    config.data.testbed.seed = config.data.annotators.seed = config.seed
    check_data(config.data)
    data = sources.data_folder(config.data, folder)
    stages = stage_configs(config, folder, data)
    parts = {name: [name] for name in stages if name != "judge"}
    if config.held_out_judge:
        parts["reward"] = ["reward", "judge"]
    run_stages(config, folder, stages, parts=parts)
    summary = read_summary(folder / "evaluate")
    summary["reward"] = read_summary(folder / "reward")
    if config.held_out_judge:
        summary["held_out_judge"] = read_summary(folder / "judge")
    finish(folder, summary)
    report = folder / "report.html"
    write_report([str(folder)], report, form="html", title=str(folder))
    print(closing.in_words("reward", summary["reward"]))
    print(f"The runs, their curves and what the models say: {report}")
    closing.say_next(closing.chat_command(str(folder / "ppo")))


def stage_configs(
    config: ConfigDict, folder: Path, data: Path
) -> dict[str, ConfigDict]:
    """Return the configs of all stages by name, in the order of the runs: every input
    is a file of `data` or of an earlier stage's folder."""
    stages = {}

    def add(name: str, like: str = "", **fields) -> Path:
        stage = config[like or name].copy_and_resolve_references()
        stage.seed = config.seed
        if "data" in stage:
            stage.data.path = str(data)
        stage.update({key: str(value) for key, value in fields.items()})
        stages[name] = stage
        return folder / name

    policy = Path(config.init_from) if config.init_from else add("sft")
    raw = data if config.human_comparisons else add("collect", init_from=policy)
    prepared = add(
        "prepare_comparisons",
        comparisons=raw / "comparisons.jsonl",
        tokenizer=policy,
    )
    held_out = data if config.human_comparisons else prepared
    scorer = add(
        "reward",
        init_from=policy,
        comparisons=prepared / "comparisons.jsonl",
        comparisons_test=held_out / "comparisons_test.jsonl",
    )
    judge: Path | str = ""
    if config.held_out_judge:  # on the conversations that the reward model never saw
        judge = add(
            "judge",
            like="reward",
            init_from=policy,
            comparisons=prepared / "comparisons_test.jsonl",
            comparisons_test=held_out / "comparisons_test.jsonl",
        )
    watched_by = judge if config.ppo.eval_every else ""
    by_ppo = add("ppo", init_from=policy, reward_model=scorer, judge_model=watched_by)
    pairs = add("pairs", init_from=policy, reward_model=scorer)
    by_dpo = add("dpo", init_from=policy, pairs=pairs / "comparisons.jsonl")
    start = "start" if config.init_from else "sft"
    models = f"{start}={policy},ppo={by_ppo},dpo={by_dpo}"
    add("evaluate", models=models, reward_model=scorer, judge_model=judge)
    return stages
