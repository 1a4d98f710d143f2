"""Collect comparisons: responses of a model, compared by annotators.

ChatGLM-RLHF (arXiv 2404.00934), section 1:
1. A model answers every prompt `num_responses` times.
2. Every two answers to a prompt are compared: by the testbed's annotators, whose raw
   choices are written to `comparisons.jsonl`, or by people, whose tasks are written to
   `tasks.jsonl`.
stages/prepare_comparisons.py makes a clean set of the comparisons.
"""

import itertools
from pathlib import Path

import jax
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.annotation.tasks import (
    Candidates,
    check_shares,
    make_tasks,
    read_known,
)
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Comparison, Prompt, write_records
from rlhf_jax.data.testbed.annotators import AnnotatorConfig, make_annotators
from rlhf_jax.data.testbed.comparisons import compare, right_against_wrong
from rlhf_jax.evaluation.candidates import sample_candidates
from rlhf_jax.terminal import listed
from rlhf_jax.training import model_checks, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir


def run(config, workdir: str) -> None:
    """Collect comparisons of responses of `config.init_from` in `workdir`."""
    check_options(config)
    workdir = open_workdir(workdir, config)
    if done_before(workdir):
        return
    sample_key, init_key = jax.random.split(jax.random.key(config.seed))

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.init_from],
    )
    files = (data / name for name in ("comparison_prompts.jsonl", "prompts.jsonl"))
    own = next(filter(Path.is_file, files), data)
    prompts, prompt_ids = encode_prompts(
        read(config.prompts or own, Prompt),
        tokenizer,
        config.max_prompt_tokens,
    )
    known_answers = []
    if config.annotator == "people" and config.known_share:
        known_answers = known_comparisons(prompts, config)
    agree(
        workdir,
        read.fingerprints | sources.fingerprints(config.known_comparisons),
        tokenizer=tokenizer.fingerprint,
        models=[config.init_from],
    )

    # Responses
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        **weights.computation(config),
    )
    responses = sample_candidates(
        policy,
        prompt_ids,
        tokenizer,
        sample_key,
        count=config.num_responses,
        batch_size=config.batch_size,
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    pairs = pairs_of(prompts, responses, config)
    report = {
        "prompts": len(prompts),
        "responses": len(prompts) * config.num_responses,
        "cut at the limit": sum(not r.ended for group in responses for r in group),
        "pairs": len(pairs),
    }

    # Tasks, for people
    if config.annotator == "people":
        tasks = make_tasks(
            pairs,
            known_answers,
            known_share=config.known_share,
            repeat_share=config.repeat_share,
            seed=config.seed,
        )
        write_records(workdir / "tasks.jsonl", tasks)
        num_known = sum(bool(task.known_answer) for task in tasks)
        repeats = sum(bool(task.repeat_of) for task in tasks)
        dropped = len(pairs) + num_known + repeats - len(tasks)
        report["dropped: identical or empty"] = dropped
        report |= {"known answers": num_known, "repeats": repeats, "tasks": len(tasks)}
        logging.info("Tasks for people: %s.", listed(report))
        finish(workdir, report)
        return

    # Comparison, by the testbed
    comparisons = compare(
        [(pair.prompt, pair.a, pair.b) for pair in pairs],
        make_annotators(AnnotatorConfig(**config.data.annotators)),
        seed=config.seed,
        stream="collect",
    )
    write_records(workdir / "comparisons.jsonl", comparisons)
    logging.info("Collected: %s.", listed(report))
    finish(workdir, report)


def known_comparisons(prompts, config) -> list[Comparison]:
    """Return comparisons whose answer is certain: from the config's file, or in the
    testbed a right answer against a wrong one."""
    if config.known_comparisons:
        return read_known(config.known_comparisons)
    if not all(prompt.task for prompt in prompts):
        raise ValueError(
            f"{config.known_share=} needs comparisons whose answer is certain, to "
            "measure the annotators: set known_comparisons=FILE, or known_share=0."
        )
    return right_against_wrong(prompts, seed=config.seed)


def pairs_of(prompts, responses, config) -> list[Candidates]:
    """Return every two responses to each prompt, each with its settings of sampling."""
    names = ("temperature", "top_k", "top_p", "max_response_tokens", "seed")
    settings = {"model": config.init_from, **{name: config[name] for name in names}}
    return [
        Candidates(
            prompt,
            group[a],
            group[b],
            {**settings, "sample": a},
            {**settings, "sample": b},
        )
        for prompt, group in zip(prompts, responses, strict=True)
        for a, b in itertools.combinations(range(len(group)), 2)
    ]


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if config.annotator not in ("testbed", "people"):
        raise ValueError(f"{config.annotator=} must be 'testbed' or 'people'.")
    check_shares(config.known_share, config.repeat_share)
