"""The whole pipeline: from nothing to an aligned model, and a table of what it gained.

python launch/pipeline.py --config=configs/pipeline.py:tiny --workdir=runs/tiny

    data -> sft -> collect -> reward -> ppo ------------> evaluate
                                     -> pairs -> dpo ---^

Every stage is the one that launch/train.py runs, in its own folder. At the end
WORKDIR/report.html shows all of it. Start the same command again and it goes on where
it stopped.
"""

from pathlib import Path

import jax
import start
from absl import logging
from ml_collections import ConfigDict
from report import write_report

from rlhf_jax.data import sources
from rlhf_jax.evaluation.tables import print_held_out
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.stages import collect, dpo, evaluate, pairs, ppo, reward, sft
from rlhf_jax.training.workdir import finish, is_finished, open_workdir, read_summary


def main(config: ConfigDict, workdir: str) -> None:
    folder = open_workdir(workdir, config)
    seed = config.seed
    config.data.testbed.seed = config.data.annotators.seed = seed
    data = sources.open_data(config.data, folder)

    def run(stage, config: ConfigDict, name: str, **fields) -> str:
        """Run a stage in its folder unless it is done; returns the folder."""
        target = folder / name
        config = prepare(config, seed, data, fields)
        if is_finished(target):
            logging.info("%s: done before.", name)
        else:
            logging.info("%s: %s", name, target)
            with jax.set_mesh(make_mesh(config.mesh)):
                stage.run(config, str(target))
        return str(target)

    policy = run(sft, config.sft, "sft")
    if config.human_comparisons:
        comparisons = data
    else:
        comparisons = Path(run(collect, config.collect, "collect", init_from=policy))
    scorer = run(
        reward,
        config.reward,
        "reward",
        init_from=policy,
        comparisons=str(comparisons / "comparisons.jsonl"),
        comparisons_test=str(comparisons / "comparisons_test.jsonl"),
    )
    by_ppo = run(ppo, config.ppo, "ppo", init_from=policy, reward_model=scorer)
    labelled = run(pairs, config.pairs, "pairs", init_from=policy, reward_model=scorer)
    pairs_file = str(Path(labelled) / "comparisons.jsonl")
    by_dpo = run(dpo, config.dpo, "dpo", init_from=policy, pairs=pairs_file)

    models = f"sft={policy},ppo={by_ppo},dpo={by_dpo}"
    evaluate_config = prepare(
        config.evaluate, seed, data, {"models": models, "reward_model": scorer}
    )
    with jax.set_mesh(make_mesh(evaluate_config.mesh)):
        evaluate.run(evaluate_config, str(folder / "evaluate"))
    summary = read_summary(folder / "evaluate")
    summary["reward"] = read_summary(folder / "reward")
    finish(folder, summary)
    print_held_out(summary["reward"])
    report = folder / "report.html"
    write_report([str(folder)], report, form="html", title=str(folder))
    logging.info("The runs, their curves and what the models say: %s", report)


def prepare(config: ConfigDict, seed: int, data: Path, fields: dict) -> ConfigDict:
    """A stage's config with this run's folders."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    config.data.path = str(data)
    config.update(fields)
    return config


if __name__ == "__main__":
    start.run(main)
