"""Probes by rule of what a model must not forget: its name, and answering in JSON."""

from collections.abc import Sequence

from rlhf_jax.data.testbed.capabilities import is_identity, is_valid_json_answer

PROBES = ("identity", "json")


def share_passed(probe: str, texts: Sequence[str], *, model_name: str) -> float:
    """The share of the answers that say the model's name, or that are valid JSON."""
    if probe == "identity":
        passed = [is_identity(text, model_name) for text in texts]
    else:
        passed = [is_valid_json_answer(text) for text in texts]
    return sum(passed) / len(passed)
