"""Simulated annotators, who compare two responses as people with known faults do.

An honest annotator prefers a to b by Bradley and Terry's model, with probability

    sigmoid(sharpness * (q_a - q_b) + length_bias * (n_a - n_b) + shown first + noise)

where q is the true quality, n the number of words, and noise is drawn anew at every
comparison. Some annotators are not honest: the careless choose at random, and the
contradictory often follow a rule under which a beats b, b beats c and c beats a.
A record holds its annotator's kind, so that the cleaning of the data can be tested.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed.quality import DEFAULT_WEIGHTS, QualityWeights, explain

HONEST, CARELESS, CONTRADICTORY = "honest", "careless", "contradictory"
CRITERIA = ("helpfulness", "safety", "fluency")


@dataclass(frozen=True)
class AnnotatorConfig:
    """The number of annotators and the strength of each fault."""

    seed: int = 0
    num_annotators: int = 20
    careless_share: float = 0.1
    contradictory_share: float = 0.05
    tie_share: float = 0.6  # share of honest annotators who call ties
    sharpness: float = 0.55  # logits per point of true quality
    length_bias: float = 0.165  # logits per word of difference
    position_bias: float = 0.2  # logits in favour of the response shown first
    noise: float = 0.3  # standard deviation, in logits
    tie_margin: float = 0.1  # a smaller logit is a tie to annotators who call ties
    contradiction: float = 0.6  # probability that the contradictory follow their circle
    careless_seconds: float = 4.0  # median seconds of a careless comparison
    reading_seconds: float = 0.4  # seconds per word, for all other annotators


@dataclass(frozen=True)
class Annotator:
    """A simulated annotator."""

    id: str
    kind: str  # HONEST, CARELESS or CONTRADICTORY
    calls_ties: bool  # True if close pairs are ties to this annotator
    config: AnnotatorConfig
    weights: QualityWeights = DEFAULT_WEIGHTS


@dataclass(frozen=True)
class Annotation:
    """An annotator's labels of one pair of responses."""

    preference: str  # "a", "b" or "tie", as in the three criteria
    helpfulness: str
    safety: str
    fluency: str
    annotator: str
    annotator_kind: str
    order_shown: str  # "ab" or "ba", the response on the left first
    seconds: float  # seconds that the comparison took


def make_annotators(
    config: AnnotatorConfig, weights: QualityWeights = DEFAULT_WEIGHTS
) -> tuple[Annotator, ...]:
    """Make annotators, each kind counted by its share (rounded), in random order."""
    careless = round(config.careless_share * config.num_annotators)
    contradictory = round(config.contradictory_share * config.num_annotators)
    honest = config.num_annotators - careless - contradictory
    if honest < 0:
        raise ValueError(
            f"{config.careless_share=} and {config.contradictory_share=} leave no "
            f"room in {config.num_annotators=}."
        )
    with_ties = round(config.tie_share * honest)
    kinds = [(CARELESS, False)] * careless + [(CONTRADICTORY, False)] * contradictory
    kinds += [(HONEST, True)] * with_ties + [(HONEST, False)] * (honest - with_ties)
    order = np.random.default_rng(config.seed).permutation(len(kinds))
    return tuple(
        Annotator(f"annotator-{index:03d}", *kinds[where], config, weights)
        for index, where in enumerate(order)
    )


def annotate(
    prompt: Prompt,
    response_a: str,
    response_b: str,
    annotator: Annotator,
    rng: np.random.Generator,
    order: str = "",
) -> Annotation:
    """Compare two responses, which may be any strings, as this annotator would.

    Args:
        order: "ab" or "ba", the response shown first; "" draws the order at random.
    """
    config = annotator.config
    order = order or ("ab" if rng.random() < 0.5 else "ba")
    a, b = (
        explain(prompt, text, annotator.weights) for text in (response_a, response_b)
    )

    bias = config.position_bias if order == "ab" else -config.position_bias
    noise = rng.normal(0.0, config.noise)
    logit = config.sharpness * (a.quality - b.quality)
    logit += config.length_bias * (a.words - b.words) + bias + noise
    choice = "a" if rng.random() < _sigmoid(logit) else "b"

    if annotator.kind == CARELESS:
        labels = [_coin(rng) for _ in range(4)]
        seconds = config.careless_seconds * rng.lognormal(0.0, 0.3)
    else:
        if annotator.kind == CONTRADICTORY and rng.random() < config.contradiction:
            choice = _circle(response_a, response_b) or choice
        if annotator.calls_ties and abs(logit) < config.tie_margin:
            choice = "tie"
        labels = [
            choice,
            _label(a.helpful, b.helpful),
            _label(a.safe, b.safe),
            _label(
                a.fluency + a.form + a.repetition, b.fluency + b.form + b.repetition
            ),
        ]
        seconds = 2.0 + config.reading_seconds * (a.words + b.words)
        seconds *= rng.lognormal(0.0, 0.3)
    return Annotation(
        *labels,
        annotator=annotator.id,
        annotator_kind=annotator.kind,
        order_shown=order,
        seconds=round(float(seconds), 2),
    )


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def _coin(rng: np.random.Generator) -> str:
    return "a" if rng.random() < 0.5 else "b"


def _label(a: float, b: float, margin: float = 0.25) -> str:
    """Return one criterion's label: a tie if the scores are closer than `margin`."""
    if abs(a - b) < margin:
        return "tie"
    return "a" if a > b else "b"


def _circle(response_a: str, response_b: str) -> str | None:
    """Choose as in rock, paper, scissors: each text falls into one of three classes."""
    a, b = (zlib.crc32(text.encode()) % 3 for text in (response_a, response_b))
    return {0: None, 1: "a", 2: "b"}[(b - a) % 3]
