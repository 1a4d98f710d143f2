"""Prompts and responses for tests of rewards."""

from rlhf_jax.data.records import Prompt, Response

USER = {"role": "user", "content": "?"}


def prompt(reference="", name="q1", **extra) -> Prompt:
    return Prompt(name, (USER,), reference=reference, extra=extra)


def reward_of(function, response, reference="", **extra) -> float:
    """The reward of one response, a text or a record, to one prompt."""
    if isinstance(response, str):
        response = Response(response, True, [1])
    (value,) = function([prompt(reference, **extra)], [response])
    return float(value)
