"""The closing lines of a command: the result of a stage, and the next command."""

import os
import re
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.rewards.spec import uses_model
from rlhf_jax.shared_work import is_first

WIDTH = 80
# Parts of a stage's result, from summary.json; a part with a missing number is left
# out. The first number of all is the one that a sweep shows.
RESULTS = {
    "alignbench": ("mark {overall:.2f} of 10",),
    "collect": (
        "{pairs:,} pairs of {responses:,} responses to {prompts:,} prompts",
        "{tasks:,} tasks for people",
    ),
    "compare_baselines": (
        "variance between prompts over within {ratio:.2f} [{ratio_low:.2f}, "
        "{ratio_high:.2f}]",
    ),
    "dpo": (
        "true quality {eval/quality:.2f} on held-out prompts",
        "KL {eval/kl:.2f} nats a response",
        "margin of chosen over rejected {rewards/margins:.2f}",
    ),
    "evaluate_reward": (
        "agrees with {accuracy:.1%} [{accuracy_low:.1%}, {accuracy_high:.1%}] of "
        "{pairs:,} comparisons",
    ),
    "pairs": ("{kept:,} pairs of {responses:,} responses to {prompts:,} prompts",),
    "ppo": (
        "score {eval/scores:.2f} on held-out prompts",
        "true quality {eval/quality:.2f}",
        "KL {objective/kl:.2f} nats a response",
    ),
    "prepare_comparisons": (
        "{out:,} of {in:,} comparisons to train on",
        "{held out:,} held out",
    ),
    "prepare_prompts": ("{out:,} of {in:,} prompts kept",),
    "reward": (
        "agrees with {eval/accuracy:.1%} [{eval/accuracy_low:.1%}, "
        "{eval/accuracy_high:.1%}] of {eval/pairs:,.0f} held-out comparisons",
        "always longer {eval/always_longer:.1%}",
        "always shorter {eval/always_shorter:.1%}",
        "bag of words {eval/bag_of_words:.1%}",
        "bag of bigrams {eval/bag_of_bigrams:.1%}",
    ),
    "select_prompts": (
        "{kept:,} prompts kept",
        "{dropped:,} dropped",
        "two halves of the responses agree with kappa {kappa of halves:.2f}",
    ),
    "sft": ("held-out loss {eval/loss:.3f} a token",),
}


def main_number(stage: str) -> str:
    """Return the key of a stage's main number in summary.json; "" without one."""
    key = re.search(r"\{([^:}]+)", "".join(RESULTS.get(stage, ())))
    return key.group(1) if key else ""


def result(stage: str, summary: Mapping, workdir: str | Path) -> str:
    """Return a stage's result in a few words, and the place of its files."""
    words = in_words(stage, summary)
    return f"{words}\nAll numbers: {_short(workdir)}/summary.json"


def in_words(stage: str, summary: Mapping) -> str:
    """Return a stage's result in a few words, in lines of a terminal."""
    parts = []
    for part in RESULTS.get(stage, ()):
        keys = re.findall(r"\{([^:}]+)", part)
        if all(isinstance(summary.get(key), int | float) for key in keys):
            parts.append(part.format_map(summary))
    if stage == "evaluate":
        rows = summary["models"].items()
        parts += [
            f"{name} {row['against_baseline']['net']:+.1%} net wins"
            for name, row in rows
            if "against_baseline" in row
        ]
    said = f"{stage}: {', '.join(parts) or 'done'}."
    return textwrap.fill(said, WIDTH, break_on_hyphens=False)


def next_command(
    config: ConfigDict, workdir: str | Path, preset: str, overrides: Mapping
) -> str:
    """Return the next command, which uses the output of a stage, in lines of a
    terminal; "" without one. Words in capitals stand for values that the user must fill
    in.

    Args:
        preset: the preset of the config.
        overrides: key -> value of the flags given besides the config file; those about
            the data are repeated, those about rewards where rewards come next, and
            those about adapters where training comes next.
    """
    if preset in ("", "default"):  # of the stages that have no model
        preset = "tiny"
    here, parent = _short(workdir), Path(_short(workdir)).parent
    start = config.get("init_from") or "SFT_RUN"
    rewards = config.get("rewards", "model=1.0")
    scorer, functions = {}, {}
    if uses_model(rewards):
        scorer["reward_model"] = config.get("reward_model") or "REWARD_RUN"
    if rewards != "model=1.0":
        functions["rewards"] = rewards
        functions |= {k: v for k, v in overrides.items() if k.startswith("reward_")}
        functions.pop("reward_model", None)
    own_data = config.get("data", {}).get("path") != "testbed"
    data = {k: v for k, v in overrides.items() if k.startswith("data.")}
    adapters = {k: v for k, v in overrides.items() if k.startswith("lora.")}

    def command(script: str, stage: str, **fields) -> str:
        flags = [
            f"--config=configs/{stage}.py:{preset}",
            f"--workdir={parent / stage}",
        ]
        keys = {key: value for key, value in fields.items() if value}
        if stage != "prepare_comparisons":  # it reads files alone
            keys |= data
        if script == "train":
            keys |= adapters
        flags += [f"--config.{key}={value}" for key, value in keys.items()]
        return _lines(["python", f"launch/{script}.py", *flags])

    pairs = {
        "comparisons": f"{here}/comparisons.jsonl",
        "comparisons_test": f"{here}/comparisons_test.jsonl",
    }
    match config.stage:
        case "prepare_prompts":
            fields = {"init_from": start, **scorer, **functions}
            return command("train", "ppo", **fields, prompts=f"{here}/prompts.jsonl")
        case "sft":
            if own_data:
                return command("train", "reward", init_from=here)
            return command("collect", "collect", init_from=here)
        case "collect" if config.annotator == "people":
            return _lines(["python", "launch/annotate.py", f"--workdir={here}"])
        case "collect":
            raw = {"comparisons": pairs["comparisons"], "tokenizer": start}
            return command("prepare_comparisons", "prepare_comparisons", **raw)
        case "prepare_comparisons":
            model = config.tokenizer if has_checkpoints(config.tokenizer) else start
            return command("train", "reward", init_from=model, **pairs)
        case "reward":
            return command("train", "ppo", init_from=start, reward_model=here)
        case "compare_baselines":
            fields = {"init_from": config.policy, **scorer, **functions}
            return command("train", "ppo", **fields, prompts=config.prompts)
        case "select_prompts":
            fields = {"init_from": start, **scorer, **functions}
            return command("train", "ppo", **fields, prompts=f"{here}/prompts.jsonl")
        case "pairs":
            file = pairs["comparisons"]
            return command("train", "dpo", init_from=start, pairs=file)
        case "ppo" | "dpo" if not own_data or "reward_model" in config:
            judge = {"reward_model": config.get("reward_model", ""), **functions}
            if own_data:
                judge["judge"] = "reward_model" if uses_model(rewards) else "rewards"
            models = f"sft={start},{config.stage}={here}"
            return command("evaluate", "evaluate", models=models, **judge)
        case "ppo" | "dpo":
            return chat_command(workdir)
        case "evaluate":
            return chat_command(config.models.rpartition("=")[2])
    return ""


def has_checkpoints(folder: str) -> bool:
    """Return True if a folder is the workdir of a model, not only of a tokenizer."""
    return bool(folder) and (Path(folder) / "checkpoints").is_dir()


def say_next(command: str) -> None:
    """Print the next command, if there is one, in process 0."""
    if command and is_first():
        print(f"Next:\n{command}")


def chat_command(checkpoint: str | Path) -> str:
    """Return the command that chats with a model."""
    flags = [f"--checkpoint={_short(checkpoint)}", "--chat", "--temperature=0"]
    return _lines(["python", "launch/generate.py", *flags])


def _short(path: str | Path) -> str:
    """Return a path relative to the current folder, if it lies in it."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near


def _lines(words: list[str]) -> str:
    """Break a command into lines that fit the width of the terminal."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH - 3:
            lines.append("    ")
        lines[-1] += word if lines[-1].isspace() or not lines[-1] else f" {word}"
    return " \\\n".join(lines)
