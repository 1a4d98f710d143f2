"""Select the prompts that are worth asking; report the drops by reason.

ChatGLM-RLHF (arXiv 2404.00934), section 1:
1. Read prompts from files or data sets.
2. Drop prompts that are too short, too long, in the wrong language, duplicates or
   near-duplicates.
3. Drop prompts of low quality: clear intention, clear semantics and answerability,
   scored by `config.scorer`.
4. Keep at most `max_per_intent` prompts of each intent; report intents that have fewer
   than `min_per_intent`.

Writes prompts.jsonl, dropped.jsonl (with the reason), report.json and report.md.
"""

import functools
import json
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rlhf_jax.data.batching import pad_left, pad_right, round_up
from rlhf_jax.data.chat_client import FREE_SETTINGS, open_service, read_service
from rlhf_jax.data.cleaning import prompt_filters, prompt_quality
from rlhf_jax.data.cleaning.comparison_report import markdown, print_rows
from rlhf_jax.data.reading.json_lines import each_good
from rlhf_jax.data.reading.layouts import prompt_in
from rlhf_jax.data.reading.rows import sources
from rlhf_jax.data.records import Prompt, write_records
from rlhf_jax.data.sources import (
    fingerprints,
    tokenizer_fingerprint,
    tokenizer_of,
)
from rlhf_jax.data.tokenizers.chat import encode_prompt, encode_response
from rlhf_jax.files import write_json, write_text, writing_whole
from rlhf_jax.generation.scoring import response_scores
from rlhf_jax.parallel.sharding import fetch
from rlhf_jax.shared_work import is_first
from rlhf_jax.terminal import listed
from rlhf_jax.training import model_checks, options, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir

SCORERS = ("rules", "judge", "heads", "none")


def run(config, workdir: str) -> None:
    """Filter `config.prompts` and write the kept prompts into `workdir`."""
    check_options(config)
    workdir = open_workdir(
        workdir, config, free=[f"judge.{name}" for name in FREE_SETTINGS]
    )
    if done_before(workdir):
        return
    ask = None
    if config.scorer == "judge":
        cache = workdir / "judge.sqlite"
        ask = open_service(config.judge, cache, key="config.judge")

    # Read
    origins = [name.strip() for name in config.prompts.split(",") if name.strip()]
    report = workdir / "bad_records.jsonl" if is_first() else None
    prompts = [prompt for origin in origins for prompt in read(origin, config, report)]
    heads = heads_of(config) if config.scorer == "heads" else {}
    agree(
        workdir,
        fingerprints(*origins),
        tokenizer="",
        models=heads.values(),
    )
    score = make_scorer(config, ask)

    # Rules
    rules = prompt_filters.PromptRules(
        min_characters=config.min_characters,
        max_characters=config.max_characters,
        languages=tuple(filter(None, config.languages.split(","))),
        max_similarity=config.max_similarity,
    )
    reasons = np.array(prompt_filters.by_rule(prompts, rules), object)

    # Quality
    scores = np.full((len(prompts), len(prompt_quality.CRITERIA)), np.nan)
    rest = np.flatnonzero(reasons == "")
    if score is not None and len(rest):
        scores[rest] = score([prompts[i] for i in rest])
        reasons[rest] = prompt_filters.by_quality(scores[rest], config.min_score)

    # Intents
    intents = [prompt.intent for prompt in prompts]
    rest = np.flatnonzero(reasons == "")
    if config.max_per_intent:
        reasons[rest] = prompt_filters.by_intent(
            [intents[i] for i in rest], config.max_per_intent, config.seed
        )

    # Write
    kept = [prompts[i] for i in np.flatnonzero(reasons == "")]
    if not kept:
        raise ValueError(
            f"None of {len(prompts)} prompts is left: {listed(Counter(reasons))}."
        )
    write_records(workdir / "prompts.jsonl", kept)
    write_dropped(workdir / "dropped.jsonl", prompts, reasons, scores)
    finish(workdir, write_report(intents, reasons, config.min_per_intent, workdir))


def read(origin: str, config, report: Path) -> list[Prompt]:
    """Return the prompts of a file or of one split of a data set; `report` is the file
    that lists bad records. The log counts the fields that are not used."""
    prompts, unused = [], Counter()
    for source, rows in sources(origin, config.split):
        for parsed in each_good(
            rows,
            functools.partial(prompt_in, intent_field=config.intent_field),
            source=source,
            on_bad_record=config.on_bad_record,
            report=report,
        ):
            prompts += parsed.records
            unused.update(parsed.unused)
    if unused:
        logging.info("%s: rows with an unused field: %s.", origin, listed(unused))
    return prompts


def make_scorer(config, ask) -> prompt_quality.Scorer | None:
    """Return the function that scores prompts by `config.scorer`, None for "none".

    Args:
        ask: sends questions to the judge; None with another scorer.
    """
    if config.scorer == "none":
        return None
    if config.scorer == "rules":
        return prompt_quality.by_rules
    if config.scorer == "heads":
        folders = heads_of(config)
        heads = {name: load_head(folder, config) for name, folder in folders.items()}
        return prompt_quality.by_heads(lambda q, texts: heads[q.id](q, texts))
    return prompt_quality.by_judge(ask)


def load_head(folder: str, config):
    """Load a reward model as a function from a question and texts to their scores:
    float32 [texts]."""
    tokenizer = tokenizer_of(folder)
    model_checks.check_models(tokenizer, tokenizer_fingerprint, reward_models=[folder])
    model = weights.load_model(folder, dtype=config.dtype, param_dtype=config.dtype)
    step = jax.jit(response_scores)

    def scores(question: Prompt, texts: list[str]) -> np.ndarray:
        prompt = encode_prompt(question.messages, tokenizer)
        encoded = [encode_response(text, tokenizer) for text in texts]
        batches = []
        for i in range(0, len(encoded), config.batch_size):
            index = np.arange(i, i + config.batch_size) % len(encoded)
            batch = [encoded[j] for j in index]
            width = round_up(max(map(len, batch)), config.pad_to_multiple)
            prompts = pad_left([prompt] * len(batch), len(prompt), tokenizer.pad_id)
            tokens, mask = pad_right(batch, width, tokenizer.pad_id)
            scored = fetch(step(model, *prompts, tokens[:, None], mask[:, None]))
            batches.append(scored[:, 0])
        return np.concatenate(batches)[: len(texts)]

    return scores


def write_dropped(path: Path, prompts, reasons, scores) -> None:
    """Write a line for each dropped prompt: the reason, its scores and its messages."""
    with writing_whole(path) as file:
        for i in np.flatnonzero(reasons != ""):
            marks = [None if np.isnan(mark) else float(mark) for mark in scores[i]]
            line = {
                "reason": reasons[i],
                **dict(zip(prompt_quality.CRITERIA, marks, strict=True)),
                "id": prompts[i].id,
                "intent": prompts[i].intent,
                "messages": prompts[i].messages,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_report(intents, reasons, minimum: int, workdir: Path) -> dict:
    """Print the counts by step and by intent; write report.json and report.md."""
    counts = Counter(reasons)
    steps = {"in": len(intents)}
    steps |= {f"dropped: {why}": n for why, n in sorted(counts.items()) if why}
    steps["out"] = counts[""]
    kept = Counter(i for i, why in zip(intents, reasons, strict=True) if not why)
    tables = {
        "Prompts": [
            {"step": step, "prompts": n, "share": n / len(intents)}
            for step, n in steps.items()
        ],
        "Intents": [
            {
                "intent": intent,
                "in": n,
                "out": kept[intent],
                "short of": max(0, minimum - kept[intent]),
            }
            for intent, n in sorted(Counter(intents).items())
        ],
    }
    short = {row["intent"]: row["out"] for row in tables["Intents"] if row["short of"]}
    if short:
        logging.warning(
            "Intents with fewer than %d prompts: %s", minimum, listed(short)
        )
    for title, rows in tables.items():
        print_rows(title, rows)
    text = "\n".join(markdown(title, rows) for title, rows in tables.items())
    write_text(workdir / "report.md", text)
    write_json(workdir / "report.json", tables)
    return steps | {"intents that fall short": short}


def heads_of(config) -> dict[str, str]:
    """Parse `config.heads`: for each criterion, the folder of its reward model.

    Raises:
        ValueError: a criterion is missing, or there is an unknown one.
    """
    names = prompt_quality.CRITERIA
    folders = dict(part.partition("=")[::2] for part in config.heads.split(","))
    if set(folders) != set(names):
        expected = ",".join(f"{name}=FOLDER" for name in names)
        raise ValueError(f"{config.heads=} must be {expected}.")
    return {name: folders[name] for name in names}


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if not config.prompts:
        raise ValueError("Set config.prompts: files, or a data set.")
    options.one_of(config, "scorer", SCORERS)
    if config.scorer == "heads":
        heads_of(config)
    if config.scorer == "judge":
        read_service(config.judge, key="config.judge")
