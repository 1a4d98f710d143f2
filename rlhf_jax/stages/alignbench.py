"""Answer AlignBench greedily and have the answers marked (evaluation/alignbench.py).

Writes model_answer/NAME.jsonl and judgment/NAME.jsonl in the benchmark's own layout,
result.md and summary.json.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.chat_client import FREE_SETTINGS, open_service, read_service
from rlhf_jax.data.judge_messages import mark_messages, read_marks
from rlhf_jax.data.verdicts import tell_unread
from rlhf_jax.evaluation import alignbench
from rlhf_jax.evaluation.answers import answer
from rlhf_jax.files import write_text
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.terminal import print_markdown
from rlhf_jax.training import model_checks, options, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir


def run(config, workdir: str) -> None:
    """Evaluate `config.policy` on the questions of `config.questions`."""
    check_options(config)
    questions = alignbench.read_questions(config.questions)
    workdir = open_workdir(
        workdir, config, free=[f"service.{name}" for name in FREE_SETTINGS]
    )
    if done_before(workdir):
        return
    model_checks.check_kind(config.policy, ChatGLM)
    ask = None
    if config.judge == "marks":
        cache = workdir / "judge.sqlite"
        ask = open_service(config.service, cache, key="config.service")
    name = config.model_name or Path(config.policy).name

    # Model
    tokenizer = sources.tokenizer_of(config.policy)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.policy],
    )
    agree(
        workdir,
        sources.fingerprints(config.questions),
        tokenizer=tokenizer.fingerprint,
        models=[config.policy],
    )
    model = weights.load_model(
        config.policy, dtype=config.dtype, param_dtype=config.dtype
    )

    # Answers
    answers = answer(
        model,
        [question.prompt for question in questions],
        tokenizer,
        jax.random.key(config.seed),  # greedy decoding draws nothing from the key
        sampling_with(
            tokenizer, max_new_tokens=config.max_response_tokens, temperature=0.0
        ),
        max_prompt_tokens=config.max_prompt_tokens,
        batch_size=config.batch_size,
    )
    by_id = {str(question.id): question for question in questions}
    fitting = [by_id[prompt.id] for prompt in answers.prompts]
    if len(fitting) < len(questions):
        logging.warning(
            "%d of %d questions are longer than max_prompt_tokens=%d and left out: the "
            "numbers are not comparable with published ones.",
            len(questions) - len(fitting), len(questions), config.max_prompt_tokens,
        )  # fmt: skip
    answered = [
        alignbench.answer_record(question, name, text)
        for question, text in zip(fitting, answers.texts, strict=True)
    ]
    path = workdir / "model_answer" / f"{name}.jsonl"
    alignbench.write_lines(path, answered)
    summary = {
        "model": weights.fingerprint(config.policy),
        "too_long": len(questions) - len(fitting),
        "answer_length": float(answers.lengths.mean()),
    }
    if ask is None:
        finish(workdir, summary)
        return

    # Marks
    in_chinese = functools.partial(mark_messages, overall=alignbench.OVERALL)
    requests = [
        in_chinese(question.prompt, text, question.reference, question.dimensions)
        for question, text in zip(fitting, answers.texts, strict=True)
    ]
    verdicts = ask(requests)
    read = [read_marks(verdict, alignbench.OVERALL) for verdict in verdicts]
    scores = np.array([mark for _, mark in read])
    judged = np.flatnonzero(~np.isnan(scores))
    if not len(judged):
        said = next(filter(None, verdicts))
        raise ValueError(
            f"None of {len(verdicts)} verdicts holds a mark; the first: {said[:200]!r}."
            " Raise service.max_tokens, or ask another model."
        )
    tell_unread(verdicts, ~np.isnan(scores))
    judgments = [
        alignbench.judgment_record(
            answered[i],
            fitting[i].dimensions,
            "\n\n".join(message["content"] for message in requests[i]),
            verdicts[i],
            read[i][0],
        )
        for i in judged
    ]
    path = workdir / "judgment" / f"{name}.jsonl"
    alignbench.write_lines(path, judgments)
    numbers = alignbench.aggregate([question.category for question in fitting], scores)
    if len(judged) < len(fitting):
        logging.warning(
            "%d of %d answers have no mark and are left out.",
            len(fitting) - len(judged), len(fitting),
        )  # fmt: skip
    table = alignbench.markdown(name, numbers)
    write_text(workdir / "result.md", table)
    print_markdown(table)
    print(alignbench.headline(name, numbers))
    without = {"without_verdict": len(fitting) - len(judged)}
    finish(workdir, summary | without | numbers)


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    options.one_of(config, "judge", ("marks", "none"))
    if not config.policy or not config.questions:
        raise ValueError(
            "Give config.policy, a workdir or a Hugging Face folder, and "
            "config.questions, the benchmark's data_v1.1_release.jsonl."
        )
    if config.judge == "marks":
        read_service(config.service, key="config.service")
