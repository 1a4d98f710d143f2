"""The reward of the variants: the testbed knows whether an answer is right."""

from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.tasks import key_of, task_of


def is_right(prompts, responses):
    """Return 1.0 for a response that does the whole task of its prompt, else 0.0."""
    return [
        float(key_of(task_of(prompt)).is_right(response.text, spoken(response.text)))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
