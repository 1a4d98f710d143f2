"""Probes, by rule, of two abilities that a model must keep: its name, and JSON."""

from collections.abc import Sequence

from rlhf_jax.data.testbed.capabilities import is_identity, is_valid_json_answer

PROBES = ("identity", "json")


def share_passed(probe: str, texts: Sequence[str], *, model_name: str) -> float:
    """Return the share of the answers that pass: that contain the model's name, or that
    are valid JSON."""
    if probe == "identity":
        passed = [is_identity(text, model_name) for text in texts]
    else:
        passed = [is_valid_json_answer(text) for text in texts]
    return sum(passed) / len(passed)
