"""Two capabilities that a model must not forget: its name, and answers in JSON.

Both are in the demonstrations and never in the prompts of reinforcement learning, so
probes of these capabilities measure the alignment tax.
"""

import json

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.tasks import key_of, make_prompt, task_of

# The intents whose answers are a word or two, which fit in {"answer": ...}.
JSON_INTENTS = ("language", "open_question", "mathematics", "logic")
# The last wording is never seen in training.
JSON_REQUESTS_SEEN = tables.JSON_REQUESTS[:-1]


def identity_prompts(rng: np.random.Generator) -> tuple[list[Prompt], list[Prompt]]:
    """Make prompts that ask for the name, two thirds for training, a third held out."""
    prompts = [
        make_prompt(
            f"identity-{i}-{j}", "identity", f"{greeting} {question}".strip(), None
        )
        for i, question in enumerate(tables.IDENTITY_QUESTIONS)
        for j, greeting in enumerate(tables.GREETINGS)
    ]
    order = [prompts[i] for i in rng.permutation(len(prompts))]
    held_out = len(order) // 3
    return order[held_out:], order[:held_out]


def is_identity(response: str, name: str) -> bool:
    """Return True if the response gives `name` as the model's name."""
    forms = [spoken(form.format(name=name)) for form in tables.IDENTITY_ANSWERS]
    forms += [spoken(f"I am {name}"), spoken(f"I'm {name}"), spoken(f"name is {name}")]
    words = spoken(response)
    return any(form in words for form in forms)


def ask_for_json(prompt: Prompt, request: str) -> Prompt:
    number = tables.JSON_REQUESTS.index(request)
    name = f"json-{number}-{prompt.id}"
    text = f"{prompt.messages[-1]['content']} {request}"
    return make_prompt(name, "json", text, task_of(prompt))


def json_probes(prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompts with short answers, with the JSON requests in turn."""
    short = [prompt for prompt in prompts if prompt.intent in JSON_INTENTS]
    return [
        ask_for_json(prompt, tables.JSON_REQUESTS[i % len(tables.JSON_REQUESTS)])
        for i, prompt in enumerate(short)
    ]


def json_answer(prompt: Prompt) -> str:
    return json.dumps({"answer": key_of(task_of(prompt)).short})


def is_valid_json_answer(response: str) -> bool:
    """Return True if the whole response is {"answer": text}, the text not empty."""
    return _answer_in(response) is not None


def is_right_json_answer(prompt: Prompt, response: str) -> bool:
    """Return True if the response is a valid JSON answer, and the answer is right."""
    answer = _answer_in(response)
    if answer is None:
        return False
    return key_of(task_of(prompt)).credit(answer, spoken(answer)) == 1.0


def _answer_in(response: str) -> str | None:
    try:
        value = json.loads(response)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"answer"}:
        return None
    answer = value["answer"]
    return answer if isinstance(answer, str) and answer.strip() else None
