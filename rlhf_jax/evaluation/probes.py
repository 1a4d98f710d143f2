"""Probes of the testbed's skills: what a model must not forget."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.encoding import response_ids
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.data.testbed.skills import is_right, is_valid_json_answer, right_answer
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.evaluation.answers import Answers


def probe(
    probes: Sequence[Prompt],
    answer: Callable[[Sequence[Prompt]], Answers],
    logprobs: Callable[[Answers], np.ndarray],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Measure each skill: the share of sampled answers that are right, and the mean
    log-probability of the right answer, in nats; for JSON also the share that is valid.

    Returns: "skills", the measures by skill, and their means over the skills as
        "skills_right" and "skills_logprob".

    Args:
        probes: prompts of skills, whose `intent` is the skill.
        answer: samples an answer to each prompt; too long prompts may be left out.
        logprobs: returns the log-probability of each answer, float [answers].
    """
    given = answer(probes)
    right = [Response(right_answer(prompt)) for prompt in given.prompts]
    right = [Response(one.text, True, response_ids(one, tokenizer)) for one in right]
    nats = logprobs(given._replace(responses=right))
    report: dict[str, dict[str, float]] = {}
    for skill in dict.fromkeys(prompt.intent for prompt in given.prompts):
        rows = [i for i, prompt in enumerate(given.prompts) if prompt.intent == skill]
        texts = [(given.prompts[i], given.texts[i]) for i in rows]
        report[skill] = {
            "right": float(np.mean([is_right(*pair) for pair in texts])),
            "logprob": float(np.mean(nats[rows])),
        }
        if skill == "json":
            valid = [is_valid_json_answer(text) for _, text in texts]
            report[skill]["valid"] = float(np.mean(valid))
    means = {
        f"skills_{measure}": float(np.mean([row[measure] for row in report.values()]))
        for measure in ("right", "logprob")
    }
    return {"skills": report} | means
