"""Benchmark of cleaning: careless annotators found, agreement with true quality.

The testbed knows which annotators are careless and the true quality of every response;
the cleaning sees neither.
Annotators answer tasks as launch/collect.py makes them: every pair of responses to
three people, one task in ten with a known answer, one in ten repeated.

python -m benchmarks.annotators [--seeds=10]      JSON lines, one per seed, then the sum
"""

import argparse
import itertools
import json

import numpy as np

from configs.prepare_comparisons import get_config
from rlhf_jax.data.annotation.tasks import Candidates, make_tasks
from rlhf_jax.data.cleaning.annotator_quality import Limits
from rlhf_jax.data.cleaning.filters import chosen_and_rejected, clean
from rlhf_jax.data.cleaning.length_balance import length_balance
from rlhf_jax.data.cleaning.votes import Votes, read_votes
from rlhf_jax.data.records import Comparison, Response
from rlhf_jax.data.testbed.annotators import (
    CARELESS,
    CONTRADICTORY,
    HONEST,
    AnnotatorConfig,
    annotate,
    make_annotators,
)
from rlhf_jax.data.testbed.pools import TestbedConfig, demonstrate, make_testbed
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.styles import respond
from rlhf_jax.data.testbed.tasks import task_of

LIMITS = Limits(**get_config().annotators)
FIRST_WORLD = 100  # worlds 0 to 9 are for published results
CLEAR = 3.0  # points of true quality between the responses of a known-answer task


def campaign(
    seed: int,
    *,
    prompts: int = 300,
    responses: int = 4,
    people: int = 20,
    each: int = 3,
    known_share: float = 0.1,
    repeat_share: float = 0.1,
    **faults,
) -> list[Comparison]:
    """Simulate annotation; `info["annotator_kind"]` is the kind of the annotator.

    Args:
        each: the number of people who answer a task.
        faults: fields of AnnotatorConfig.
    """
    rng = np.random.default_rng(seed)
    testbed = TestbedConfig(
        seed=FIRST_WORLD + seed,
        num_sft=0,
        num_sft_test=0,
        num_comparison_prompts=prompts,
    )
    pairs, certain = [], []
    for prompt in make_testbed(testbed).comparison_prompts:
        given = [
            Response(demonstrate(testbed, prompt, rng).response)
            for _ in range(responses)
        ]
        pairs += [Candidates(prompt, *two) for two in itertools.combinations(given, 2)]
        task = task_of(prompt)
        a, b = (respond(task, rng, right=x, suited=x) for x in (True, False))
        if true_quality(prompt, a) - true_quality(prompt, b) > CLEAR:
            certain.append(Comparison(prompt, a, b, "a"))
    known_share = min(known_share, len(certain) / len(pairs))
    tasks = make_tasks(
        pairs, certain, known_share=known_share, repeat_share=repeat_share, seed=seed
    )

    annotators = make_annotators(AnnotatorConfig(seed, people, **faults))
    assigned, comparisons = {}, []
    for task in tasks:
        chosen = rng.choice(people, each, replace=False)
        assigned[task.id] = assigned.get(task.repeat_of, chosen)
        order = "ab" if task.shown_first == "a" else "ba"
        for person in assigned[task.id]:
            shown = (task.prompt, task.response_a, task.response_b)
            note = annotate(*shown, annotators[person], rng, order)
            info = {"annotator_kind": note.annotator_kind}
            if task.known_answer:
                info["known_answer"] = task.known_answer
            comparisons.append(
                Comparison(
                    *shown,
                    note.preference,
                    note.annotator,
                    shown_first=task.shown_first,
                    info=info,
                )
            )
    return comparisons


def study(comparisons: list[Comparison], limits: Limits, width: int, seed: int) -> dict:
    """Measure the effects of cleaning and balancing on one campaign."""
    votes = read_votes(comparisons, lambda texts: [len(t.split()) for t in texts])
    cleaning = clean(votes, limits)
    kept = np.flatnonzero(cleaning.reason == 0)
    better, worse = chosen_and_rejected(votes, kept)
    balance = length_balance(
        votes.lengths[better], votes.lengths[worse], width=width, seed=seed
    )
    balanced = kept[balance.keep]

    kind = {c.annotator: c.info["annotator_kind"] for c in comparisons}
    out = dict(zip(votes.annotators, cleaning.annotators.careless, strict=True))
    rows = np.flatnonzero((votes.known == 0) & (votes.one != votes.other))
    return {
        "comparisons": len(comparisons),
        "dropped": dict(cleaning.dropped()),
        "out": {
            name: [
                sum(bool(out[n]) for n in kind if kind[n] == name),
                list(kind.values()).count(name),
            ]
            for name in (CARELESS, CONTRADICTORY, HONEST)
        },
        "agreement": {
            "before": agreement_with_truth(comparisons, rows),
            "cleaned": agreement_with_truth(comparisons, kept),
            "balanced": agreement_with_truth(comparisons, balanced),
        },
        "length_correlation": {
            "before": length_correlation(votes, rows),
            "cleaned": length_correlation(votes, kept),
            "balanced": length_correlation(votes, balanced),
        },
    }


def agreement_with_truth(comparisons: list[Comparison], rows: np.ndarray) -> float:
    """Return the share of these comparisons, without ties, whose preferred response has
    the higher true quality."""
    right = []
    for comparison in (comparisons[row] for row in rows):
        texts = comparison.chosen, comparison.rejected
        margin = np.subtract(*(true_quality(comparison.prompt, t) for t in texts))
        if comparison.preference != "tie" and margin:
            right.append(margin > 0)
    return float(np.mean(right))


def length_correlation(votes: Votes, rows: np.ndarray) -> float:
    """Correlate the label (1: `one` is better, -1: `other` is better) with the
    difference of the two lengths in words."""
    rows = rows[votes.verdict[rows] != 0]
    difference = votes.lengths[votes.one[rows]] - votes.lengths[votes.other[rows]]
    return float(np.corrcoef(votes.verdict[rows], difference)[0, 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    studies = []
    for seed in range(parser.parse_args().seeds):
        effects = study(campaign(seed), LIMITS, width=4, seed=seed)
        studies.append(effects)
        print(json.dumps({"seed": seed, **effects}), flush=True)
    total = {
        kind: np.sum([s["out"][kind] for s in studies], axis=0).tolist()
        for kind in studies[0]["out"]
    }
    mean = {
        name: {
            when: float(np.mean([s[name][when] for s in studies]))
            for when in ("before", "cleaned", "balanced")
        }
        for name in ("agreement", "length_correlation")
    }
    worst = max(abs(s["length_correlation"]["balanced"]) for s in studies)
    print(json.dumps({"out": total, **mean, "largest_correlation": worst}))


if __name__ == "__main__":
    main()
