"""The data of benchmarks/human_policies.py: the sets of its folder, the prompts of the
arms, and the dialogues of their SFT term."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.data.reading.files import scan_file
from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    prompt_id,
    read_records,
    write_records,
)
from rlhf_jax.evaluation.answers import answer
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.training import weights

SETS = {  # the files of each set besides hh_rlhf_helpful, without their endings
    "self_instruct_human": ("seed_tasks", "user_oriented_instructions"),
    "text": ("tiny_shakespeare",),
}


def find_sets(data: Path) -> dict[str, Path]:
    """Return the files of SETS by their names without endings.

    Raises:
        FileNotFoundError: names what is missing.
    """
    if not (data / "hh_rlhf_helpful").is_dir():
        raise FileNotFoundError(f"{data} has no set hh_rlhf_helpful.")
    files = {}
    for name, stems in SETS.items():
        for stem in stems:
            matches = sorted((data / name).glob(f"{stem}.*"))
            if not matches:
                raise FileNotFoundError(f"{data} has no file {name}/{stem}.*.")
            files[stem] = matches[0]
    return files


def read_instructions(file: Path) -> list[tuple[Prompt, str]]:
    """Read the tasks of self-instruct: each with its first input, and people's answer
    to it.

    Raises:
        ValueError: the file is in another layout.
    """
    tasks = []
    for where, row in scan_file(file):
        try:
            first = row["instances"][0]
            text = "\n\n".join(filter(None, (row["instruction"], first["input"])))
            output = first["output"]
        except (TypeError, KeyError, IndexError):
            raise ValueError(
                f"{file}, line {where}: not a task of self-instruct, with instruction "
                "and instances of input and output."
            ) from None
        messages = ({"role": "user", "content": text},)
        tasks.append((Prompt(prompt_id(messages), messages), output))
    return tasks


def as_dialogues(answered: Sequence[tuple[Prompt, str]]) -> list[Dialogue]:
    return [
        Dialogue((*prompt.messages, {"role": "assistant", "content": text}))
        for prompt, text in answered
        if text.strip()
    ]


def read_text(file: Path) -> str:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as stream:
        return stream.read()


def write_arms_data(config: ConfigDict, folder: Path, files: dict[str, Path]) -> None:
    """Write the data folder of the arms, `folder/arms`, unless it is whole: prompts of
    half A, held-out prompts, the SFT term's dialogues (the instruct model's answers to
    the user-oriented instructions), and people's answers to the seed tasks."""
    arms = folder / "arms"
    if (arms / "sft.jsonl").is_file():  # written last
        return
    half = read_records(folder / "prepared_plain" / "comparisons.jsonl", Comparison)
    held_out = read_records(folder / "data" / "eval_prompts.jsonl", Prompt)
    for name, prompts in (
        ("prompts", [c.prompt for c in half]),
        ("eval_prompts", held_out),
    ):
        unique = list({prompt.id: prompt for prompt in prompts}.values())
        order = np.random.default_rng(config.seed).permutation(len(unique))
        write_records(arms / f"{name}.jsonl", [unique[i] for i in order])
    people = as_dialogues(read_instructions(files["seed_tasks"]))
    write_records(arms / "sft_test.jsonl", people)
    write_records(arms / "sft.jsonl", own_answers(config, files))


def own_answers(config: ConfigDict, files: dict[str, Path]) -> list[Dialogue]:
    """Let the instruct model answer the user-oriented instructions; return the answers
    that ended."""
    tokenizer = sources.tokenizer_of(config.init_from)
    tasks = read_instructions(files["user_oriented_instructions"])
    given = answer(
        weights.load_model(config.init_from, dtype="float32", scan_layers=True),
        [prompt for prompt, _ in tasks],
        tokenizer,
        jax.random.key(config.seed),
        sampling_with(
            tokenizer,
            max_new_tokens=config.sft.max_response_tokens,
            temperature=config.measure.temperature,
        ),
        max_prompt_tokens=config.measure.max_prompt_tokens,
        batch_size=config.measure.batch_size,
    )
    dialogues = as_dialogues(
        [
            (prompt, response.text)
            for prompt, response in zip(given.prompts, given.responses, strict=True)
            if response.ended
        ]
    )
    logging.info("%d answers to %d instructions ended.", len(dialogues), len(tasks))
    if not dialogues:
        raise ValueError(
            f"{config.init_from} ended none of its {len(tasks)} answers within "
            f"{config.sft.max_response_tokens} tokens: the SFT term has no data."
        )
    return dialogues
