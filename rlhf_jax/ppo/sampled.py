"""The number of responses that a run of PPO sampled, for comparisons at equal cost."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.training.selection import summary_of_selection


def responses_sampled(
    config: ConfigDict, metrics: Sequence[dict], references: int
) -> dict:
    """Return the number of responses, in all and by use, for summary.json: those of the
    iterations, dynamic sampling's further draws included; those of the baseline, the
    reference's or the policy's greedy ones; and those of the selection that the prompts
    come from. Responses to evaluation prompts are not among them.

    Args:
        metrics: the lines of metrics.jsonl, one an iteration.
        references: the number of prompts that the reference has answered.
    """
    draws = int(sum(line.get("draws/count", 1) for line in metrics))
    baseline = references * max(config.baseline_samples, 1)
    if config.baseline == "greedy":
        baseline = draws * config.batch_size // config.samples_per_prompt
    selection = None
    if config.prompts:
        selection = summary_of_selection(Path(config.prompts).parent)
    uses = {
        "iterations": draws * config.batch_size,
        "baseline": baseline,
        "selection": selection["responses"] if selection else 0,
    }
    return {"responses": sum(uses.values()), "responses by use": uses}
