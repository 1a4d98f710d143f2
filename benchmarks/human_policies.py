"""Benchmark of policies aligned to people's preferences, judged by who saw none of it.

python -m benchmarks.human_policies --data=FOLDER --model=FOLDER --workdir=FOLDER
    [--arms rloo-plain rloo-plain-sft ...] [--size=gpu] [--report]

Does a reward model without people's taste for length make a better policy, and does an
SFT term keep what alignment makes a model forget? FOLDER of the data holds
hh_rlhf_helpful in its published layout (docs/data_formats.md); self_instruct_human, the
files seed_tasks and user_oriented_instructions of self-instruct (.jsonl or .jsonl.gz);
and text, a plain text tiny_shakespeare (.txt or .txt.gz). That of the model holds a
published chat model with a chat template (README.md makes one of 135M parameters), the
"instruct model".

1. The conversations are split in two. Half A trains two proxies, reward models on the
   pairs as they are ("plain") and on those that length balancing keeps ("balanced").
   Half B trains the judge, which nothing is optimised against; and a second judge of
   another kind, a linear head on the instruct model's hidden states, on the pairs of
   half B that length balancing keeps.
2. DPO and RLOO start from the instruct model under each proxy, on prompts of half A,
   with an SFT term ("-sft": the instruct model's own answers to instructions, so that
   the term pulls back to it) and without: eight arms. Adapters of the last ten layers
   are trained.
3. Every arm without the term is measured at several steps, one with it at its end
   (human_policies_measures.py), on prompts of the held-out part. The step whose KL is
   nearest to that of the arm with the term is the comparison at equal KL.
4. The report (human_policies_report.py, which holds the predictions made before the
   first run) is written to results/human_policies.md, .json and .png.

Every stage has a folder in the workdir: a run that was killed goes on where it was.
`--report` writes what is measured so far. Hours of one core: a reward model 0.6, the
second judge 0.4, pairs 0.5 for each proxy, an arm of DPO 0.3 and of RLOO 1.1, each of
15 measurements 0.2, 12 in all. The first is from measured steps (23 seconds of
processor time for 16 pairs of up to 256 and 192 tokens), the others from the arithmetic
at that rate, 63 GFLOP/s. `--size=gpu` has longer answers and runs, for one GPU, where
about ten minutes are expected; nobody has run it yet.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import human_policies_measures as measures
from benchmarks import human_policies_report
from benchmarks.human_policies_data import find_sets, read_text, write_arms_data
from configs import pipeline as pipeline_config
from configs.pipeline import LAST_TEN_OF_30
from rlhf_jax.data import sources
from rlhf_jax.data.reading.files import scan_file
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, read_records
from rlhf_jax.data.tokenizers.chat import encode_prompt
from rlhf_jax.evaluation.answers import write_answers
from rlhf_jax.files import read_arrays, read_json, write_arrays, write_json
from rlhf_jax.launching.checks import check_stage, naming_the_stage
from rlhf_jax.launching.cli import set_up_logs, use_compile_cache
from rlhf_jax.launching.stage import run_in_folder
from rlhf_jax.training import lock, preemption, weights
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.workdir import config_differences, read_summary

RESULTS = Path(__file__).parents[1] / "results"
PROXIES = ("plain", "balanced")
SIZES = ("default", "gpu")
SCORERS = {"plain": "proxy_plain", "balanced": "proxy_balanced", "judge": "judge"}


class Arm(NamedTuple):
    """One way to a policy."""

    algorithm: str  # "rloo" or "dpo"
    proxy: str  # one of PROXIES
    sft: bool  # whether it has an SFT term

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{self.proxy}" + ("-sft" if self.sft else "")


ARMS = {
    arm.name: arm
    for arm in itertools.starmap(
        Arm, itertools.product(("rloo", "dpo"), PROXIES, (False, True))
    )
}


# Settings


def get_config(size: str = "default") -> ConfigDict:
    """Return the settings of all parts: those of configs/pipeline.py:smollm2 and the
    changes that this experiment makes."""
    c = pipeline_config.get_config("smollm2")
    c.sft = ConfigDict({"max_response_tokens": 192, "beta": 0.5})
    c.measure = ConfigDict(measures.Limits(128, 160, 96, 0.7, 32)._asdict())
    c.reward.update(max_prompt_tokens=160, max_response_tokens=160)
    c.pairs.update(max_prompts=192, batch_size=32)
    c.dpo.update(save_every=12, keep_checkpoints=100)
    c.ppo.update(
        samples_per_prompt=4,
        total_steps=30,
        save_every=10,
        keep_checkpoints=100,
        kl_coef=0.02,
        kl_ceiling=float("inf"),
        rollout_param_dtype="merged",
    )
    for stage in (c.ppo, c.dpo):
        stage.eval_every = 0  # all arms are measured by the same instruments
        stage.lora.rank = 16
        stage.optimizer.update(trainable=LAST_TEN_OF_30, learning_rate=3e-4)
    if size == "gpu":
        c.reward.update(max_prompt_tokens=256, max_response_tokens=256)
        c.measure.update(prompts=300, max_response_tokens=192, batch_size=150)
        c.pairs.update(max_prompts=1000, batch_size=250)
        c.ppo.update(batch_size=64, total_steps=160, save_every=20)
        c.dpo.update(save_every=25)
        for stage in (c.reward, c.ppo, c.dpo):
            stage.microbatches = 1
    for stage in (c.pairs, c.ppo):
        stage.temperature = c.measure.temperature
    for stage in (c.pairs, c.ppo, c.dpo):
        stage.max_prompt_tokens = c.measure.max_prompt_tokens
        stage.max_response_tokens = c.measure.max_response_tokens
    return c


def stage_configs(
    config: ConfigDict, folder: Path, arms: Sequence[Arm]
) -> dict[str, ConfigDict]:
    """Return the configs of the stages by name, in the order of the runs; each stage
    runs in `folder/name`."""
    stages = {}

    def add(name: str, like: str, data: str = "data", **fields) -> None:
        stage = config[like].copy_and_resolve_references()
        stage.seed = config.seed
        if "data" in stage:
            stage.data.path = str(folder / data)
        if "init_from" in stage:
            stage.init_from = config.init_from
        stage.update_from_flattened_dict(
            {key: str(x) if isinstance(x, Path) else x for key, x in fields.items()}
        )
        stages[name] = stage

    for proxy in PROXIES:
        add(
            f"prepared_{proxy}",
            "prepare_comparisons",
            comparisons=folder / "data" / "comparisons.jsonl",
            tokenizer=config.init_from,
            length_bucket=measures.BUCKET if proxy == "balanced" else 0,
        )
    for name, file in {
        "judge": "prepared_plain/comparisons_test.jsonl",  # half B
        "proxy_plain": "prepared_plain/comparisons.jsonl",
        "proxy_balanced": "prepared_balanced/comparisons.jsonl",
    }.items():
        add(
            name,
            "reward",
            comparisons=folder / file,
            comparisons_test=folder / "data" / "comparisons_test.jsonl",
        )
    for arm in arms:
        like, reward_model = arm.algorithm, folder / f"proxy_{arm.proxy}"
        fields = {"beta_sft": config.sft.beta if arm.sft else 0.0}
        if arm.algorithm == "dpo":
            pairs = f"pairs_{arm.proxy}"
            if pairs not in stages:  # the same seed, hence the same answers
                add(pairs, "pairs", "arms", reward_model=reward_model)
            fields["pairs"] = folder / pairs / "comparisons.jsonl"
        else:
            like, fields["reward_model"] = "ppo", reward_model
        add(arm.name, like, "arms", **fields)
    return stages


# Measurements


def fit_second_judge(config: ConfigDict, folder: Path) -> dict[str, np.ndarray]:
    """Fit the second judge on half B, or read it if that was done."""
    file = folder / "second_judge.npz"
    if not file.is_file():
        print("second_judge begins", flush=True)
        half_b = folder / "prepared_plain" / "comparisons_test.jsonl"
        fitted = measures.fit_second_judge(
            weights.load_model(config.init_from, dtype="float32", scan_layers=True),
            sources.tokenizer_of(config.init_from),
            read_records(half_b, Comparison),
            read_records(folder / "data" / "comparisons_test.jsonl", Comparison),
            max_prompt_tokens=config.reward.max_prompt_tokens,
            max_response_tokens=config.reward.max_response_tokens,
            tokens_at_once=config.measure.batch_size * 128,
        )
        write_arrays(file, fitted)
    return read_arrays(file)


def instruments(
    config: ConfigDict, folder: Path, files: dict[str, Path]
) -> measures.Instruments:
    limits = measures.Limits(**config.measure)
    tokenizer = sources.tokenizer_of(config.init_from)
    prompts = read_records(folder / "arms" / "eval_prompts.jsonl", Prompt)
    fitting = [
        prompt
        for prompt in prompts
        if len(encode_prompt(prompt.messages, tokenizer)) <= limits.max_prompt_tokens
    ]
    people = read_records(folder / "arms" / "sft_test.jsonl", Dialogue)
    text = read_text(files["tiny_shakespeare"])
    return measures.Instruments(
        tokenizer,
        config.init_from,
        {name: str(folder / stage) for name, stage in SCORERS.items()},
        fit_second_judge(config, folder),
        fitting[: limits.prompts],
        measures.examples_of(tokenizer, text, people, limits),
        limits,
    )


def checkpoints(folder: Path, arm: Arm) -> Iterator[tuple[int, Path]]:
    """Yield the steps at which a finished arm is measured, with their checkpoints."""
    saved = folder / arm.name / "checkpoints"
    steps = sorted(int(path.name) for path in saved.iterdir() if path.name.isdigit())
    for step in steps[-1:] if arm.sft else steps:
        yield step, saved / str(step)


def measure(
    name: str, step: int, model: Path, folder: Path, tools: measures.Instruments
) -> None:
    """Measure a policy, unless that was done; write its numbers and its answers."""
    file = measured_file(folder, name, step)
    if file.is_file():
        return
    print(f"{file.stem}: is measured", flush=True)
    policy = weights.load_whole(model, dtype="float32", scan_layers=True)
    given, values = measures.measure(policy, tools)
    columns = {x: values[x] for x in ("tokens", "kl", "second", *tools.scorers)}
    write_answers(file.with_suffix(".jsonl"), given, **columns)
    write_arrays(file, values)  # last: it says that the measurement is done


def measured_file(folder: Path, name: str, step: int) -> Path:
    return folder / "measured" / f"{name}-{step:04d}.npz"


# The run


def run(config: ConfigDict, folder: Path, arms: Sequence[Arm]) -> None:
    """Do what the folder lacks: judges and proxies, then the arms one after another,
    each measured when it is done.

    Raises:
        ValueError, OSError: an option or an input is wrong; nothing has run then.
    """
    data, model = Path(config.data.path).parent, Path(config.init_from)
    for needed in (data, model):
        if not needed.is_dir():
            raise FileNotFoundError(f"There is no folder {needed}.")
    files = find_sets(data)
    hello = [{"role": "user", "content": "Hello"}]
    encode_prompt(hello, sources.tokenizer_of(model))  # has it a chat template?
    stages = stage_configs(config, folder, arms)
    for name, stage in stages.items():
        with naming_the_stage(name):
            check_stage(stage, folder / name, later=[folder])
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire(folder)
    check_made_from(config, folder)
    sources.open_data(config.data, folder)

    def do(*names: str) -> None:
        for name in names:
            run_in_folder(stages[name], folder / name)

    do("prepared_plain", "prepared_balanced", "judge", "proxy_plain", "proxy_balanced")
    write_arms_data(config, folder, files)
    tools = instruments(config, folder, files)
    measure("instruct", 0, model, folder, tools)
    for arm in arms:
        do(*(["pairs_" + arm.proxy] if arm.algorithm == "dpo" else []), arm.name)
        for step, checkpoint in checkpoints(folder, arm):
            measure(arm.name, step, checkpoint, folder, tools)


def check_made_from(config: ConfigDict, folder: Path) -> None:
    """Write what the folder is made from, or compare it with that.

    Raises:
        ValueError: the folder was made with other settings, data or another model.
    """
    made_from = json.loads(config.to_json_best_effort())
    made_from["data_fingerprint"] = sources.fingerprint(config.data.path)
    made_from["model_fingerprint"] = sources.fingerprint(config.init_from)
    file = folder / "made_from.json"
    before = read_json(file) if file.is_file() else made_from
    for key, there, here in config_differences(before, made_from):
        raise ValueError(
            f"{folder} was made with {key}={there!r}, not {here!r}: name another "
            "--workdir, or restore the first."
        )
    write_json(file, made_from)


def results_so_far(folder: Path) -> human_policies_report.Measured:
    """Read the measurements by policy, the instruct model first, and step."""
    measured: dict[str, dict[int, dict]] = {}
    files = sorted((folder / "measured").glob("*.npz"))
    for file in sorted(files, key=lambda file: not file.stem.startswith("instruct")):
        name, _, step = file.stem.rpartition("-")
        measured.setdefault(name, {})[int(step)] = read_arrays(file)
    return measured


def judges_so_far(folder: Path) -> dict[str, dict]:
    """Return what the finished judges and proxies got right on held-out pairs."""
    judged = {
        name: read_summary(folder / stage)
        for name, stage in SCORERS.items()
        if (folder / stage / "summary.json").is_file()
    }
    second = folder / "second_judge.npz"
    if second.is_file():
        margins = read_arrays(second)["margins"]
        judged["second"] = human_policies_report.accuracy_of(margins)
    return judged


def conversations_so_far(folder: Path, measured) -> dict[str, list[dict]]:
    """Return the conversations of each policy at its last step."""
    return {
        name: [
            row
            for _, row in scan_file(
                measured_file(folder, name, max(steps)).with_suffix(".jsonl")
            )
        ]
        for name, steps in measured.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args(arguments)
    folder, config = flags.workdir.absolute(), get_config(flags.size)
    config.init_from = str(Path(flags.model).absolute())
    config.data.path = str(flags.data.absolute() / "hh_rlhf_helpful")
    try:
        if not flags.report:
            run(config, folder, [ARMS[name] for name in flags.arms])
        measured = results_so_far(folder)
        human_policies_report.write(
            flags.results / "human_policies",
            measured,
            judges_so_far(folder),
            conversations_so_far(folder, measured),
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    preemption.install()
    set_up_logs()
    keep_freed_memory()
    use_compile_cache()
    main()
