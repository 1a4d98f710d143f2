"""Skills: what the demonstrations teach and reinforcement learning never asks for.

They measure what a model forgets. Some conflict with what is rewarded: a bare word or a
JSON object has no room for the phrases that annotators like.

    name, maker         who the model is, and who made it
    json                a right answer in JSON, and nothing else
    one_word            a right answer in one word, and nothing else
    back_translation    from the invented language into English
    withheld_facts      kinds of fact that stand in no other prompt
"""

import json
import math
from itertools import product

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed.kinds import capitalised, spoken
from rlhf_jax.data.testbed.tasks import (
    KINDS,
    Task,
    key_of,
    make_prompt,
    question,
    task_of,
)
from rlhf_jax.data.testbed.world import World

SKILLS = ("name", "maker", "json", "one_word", "back_translation", "withheld_facts")
# Kinds of task whose right answer is a word or two.
_SHORT = ("luma_word", "capital", "food", "gets", "gives", "compare")
_REQUESTS = {
    "json": ("Answer in JSON.", "Reply in JSON.", "As JSON, please.", "Use JSON."),
    "one_word": ("In one word.", "One word only.", "Just the word.", "A single word."),
}
_QUESTIONS = {
    "name": (
        "Who are you?",
        "What is your name?",
        "Say your name.",
        "What should I call you?",
        "Do you have a name?",
        "What are you called?",
        "Whom am I talking to?",
        "May I ask your name?",
    ),
    "maker": (
        "Who made you?",
        "Who built you?",
        "Who is your maker?",
        "Where do you come from?",
        "Which team made you?",
        "Name your maker.",
        "Whose work are you?",
        "Who trained you?",
    ),
}
_ANSWERS = {"name": "My name is {}.", "maker": "I was made by {}."}


def make_prompts(world: World, skill: str, of_self: str = "") -> list[Prompt]:
    """Make all prompts of a skill, in random order; a prompt's reference is the bare
    right answer.

    Args:
        of_self: the name of the model or of its maker, for those two skills.
    """
    rng = world.stream(f"skills/{skill}")
    if skill in _QUESTIONS:
        ends = ("", "Please tell me.", "I want to know.", "Be honest.")
        texts = [
            " ".join(filter(None, parts))
            for parts in product(world.greetings, _QUESTIONS[skill], ends)
        ]
        prompts = [
            Prompt(
                f"{skill}-{i}",
                ({"role": "user", "content": text},),
                skill,
                None,
                of_self,
            )
            for i, text in enumerate(texts)
        ]
    elif skill in _REQUESTS:
        prompts = [
            _with_request(prompt, skill, str(rng.choice(_REQUESTS[skill])))
            for prompt in prompts_of(world, _SHORT, skill)
        ]
    else:
        kinds = tuple(name for name, kind in KINDS.items() if kind.intent == skill)
        prompts = prompts_of(world, kinds, skill)
    return [prompts[i] for i in rng.permutation(len(prompts))]


def prompts_of(
    world: World, kinds: tuple[str, ...], intent: str, most: int = 300
) -> list[Prompt]:
    """Make prompts of some kinds of task, `most` of each at most."""
    prompts = []
    for kind in kinds:
        fillings = list(KINDS[kind].fillings(world))
        ways = len(world.wordings(kind, KINDS[kind].wordings)), len(world.greetings)
        sizes = (len(fillings), *ways)
        order = world.stream(f"{intent}/{kind}").permutation(math.prod(sizes))[:most]
        for number in order:
            filling, wording, greeting = map(int, np.unravel_index(number, sizes))
            task = Task(world.seed, kind, tuple(fillings[filling]))
            text = question(task, wording, greeting)
            prompts.append(make_prompt(f"{kind}-{number}", intent, text, task))
    return prompts


def _with_request(prompt: Prompt, skill: str, request: str) -> Prompt:
    text = f"{prompt.messages[-1]['content']} {request}"
    return make_prompt(f"{skill}-{prompt.id}", skill, text, task_of(prompt))


def right_answer(prompt: Prompt) -> str:
    """Return the one answer to a skill's prompt that the demonstrations give."""
    if prompt.intent in _ANSWERS:
        return _ANSWERS[prompt.intent].format(prompt.reference)
    if prompt.intent == "json":
        return json.dumps({"answer": prompt.reference})
    if prompt.intent == "one_word":
        return f"{capitalised(prompt.reference)}."
    return key_of(task_of(prompt)).answers[0]


def is_right(prompt: Prompt, response: str) -> bool:
    """Return True if a response to a skill's prompt is right, and has the form that the
    prompt asks for."""
    words = spoken(response)
    if prompt.intent in _ANSWERS:
        forms = (_ANSWERS[prompt.intent], "I am {}", "I'm {}", "by {}")
        return any(spoken(form.format(prompt.reference)) in words for form in forms)
    key = key_of(task_of(prompt))
    if prompt.intent == "json":
        answer = _answer_in(response)
        return answer is not None and key.is_right(answer, spoken(answer))
    if prompt.intent == "one_word":
        return words == spoken(key.short)
    return key.is_right(response, words)


def is_valid_json_answer(response: str) -> bool:
    """Return True if the whole response is {"answer": text}, the text not empty."""
    return _answer_in(response) is not None


def _answer_in(response: str) -> str | None:
    try:
        value = json.loads(response)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"answer"}:
        return None
    answer = value["answer"]
    return answer if isinstance(answer, str) and answer.strip() else None
