"""The testbed: a small world in English in which the true quality of text is known.

Prompts of eight intents, demonstrations to imitate, annotators with known faults:
everything that the pipeline needs, from one seed. The demonstrations are a mixture
of good, padded and sloppy answers, so a model that imitates them well can still
become much better. Two things stand in the demonstrations and never in the prompts
of reinforcement learning: the model's name, and answers in JSON when asked. They
show what alignment makes a model forget, and each has probes.

`true_quality` and the annotators' records are for simulated annotation and for
evaluation; training never sees them.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from rlhf_jax.data import testbed_tables as tables
from rlhf_jax.data.testbed_annotators import (
    Annotator,
    AnnotatorConfig,
    make_annotators,
)
from rlhf_jax.data.testbed_quality import QualityWeights
from rlhf_jax.data.testbed_tasks import (
    INTENTS,
    KINDS,
    Key,
    Prompt,
    key_of,
    kinds_of,
    question,
    spoken,
)

# Distinct prompts of each intent, and how the pools share them.
PROMPTS_PER_INTENT = 750
POOL_SHARES = {"sft": 0.4, "comparisons": 0.25, "rl": 0.2, "evaluation": 0.15}
JSON_INTENTS = ("language", "open_question", "mathematics", "logic")


@dataclass(frozen=True)
class TestbedConfig:
    __test__ = False  # pytest takes classes named Test... for its own

    seed: int = 0
    model_name: str = "Glim"
    num_sft: int = 6000
    num_comparison_prompts: int = 1200
    num_rl_prompts: int = 1000
    num_eval_prompts: int = 400
    num_probes: int = 20  # of each capability
    # Shares of the demonstrations' modes; identity and JSON come on top of them,
    # as shares of all demonstrations.
    good_share: float = 0.4
    padded_share: float = 0.3
    sloppy_share: float = 0.3
    identity_share: float = 0.04
    json_share: float = 0.06
    quality: QualityWeights = field(default_factory=QualityWeights)
    annotators: AnnotatorConfig = field(default_factory=AnnotatorConfig)


@dataclass(frozen=True)
class Demonstration:
    prompt: Prompt
    response: str
    mode: str  # good, padded, sloppy, identity or json

    @property
    def messages(self) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": self.prompt.text},
            {"role": "assistant", "content": self.response},
        ]


@dataclass(frozen=True)
class Testbed:
    __test__ = False

    config: TestbedConfig
    sft: tuple[Demonstration, ...]
    comparison_prompts: tuple[Prompt, ...]
    rl_prompts: tuple[Prompt, ...]
    eval_prompts: tuple[Prompt, ...]
    identity_probes: tuple[Prompt, ...]
    json_probes: tuple[Prompt, ...]
    annotators: tuple[Annotator, ...]


def make_testbed(config: TestbedConfig) -> Testbed:
    """Build the world; a part never changes when the size of another does."""
    pools = _pools(config.seed)
    return Testbed(
        config=config,
        sft=_demonstrations(config, pools["sft"]),
        comparison_prompts=_take(pools, "comparisons", config.num_comparison_prompts),
        rl_prompts=_take(pools, "rl", config.num_rl_prompts),
        eval_prompts=_take(pools, "evaluation", config.num_eval_prompts),
        identity_probes=_identity_probes(config),
        json_probes=_json_probes(config, pools["evaluation"]),
        annotators=make_annotators(
            config.annotators, _stream(config.seed, "annotators"), config.quality
        ),
    )


def is_identity(response: str, name: str) -> bool:
    """The response says that this is its name."""
    forms = [spoken(form.format(name=name)) for form in tables.IDENTITY_ANSWERS]
    forms += [spoken(f"I am {name}"), spoken(f"I'm {name}"), spoken(f"name is {name}")]
    words = spoken(response)
    return any(form in words for form in forms)


def is_valid_json_answer(response: str) -> bool:
    """The whole response is the object {"answer": text}, the text not empty."""
    return _json_answer(response) is not None


def is_right_json_answer(prompt: Prompt, response: str) -> bool:
    """The response is such an object, and the answer in it is right."""
    answer = _json_answer(response)
    return (
        answer is not None and key_of(prompt.task).credit(answer, spoken(answer)) == 1.0
    )


def prompt_from_dict(record: Mapping) -> Prompt:
    """Undo `dataclasses.asdict` and a trip through JSON."""
    return Prompt(
        id=record["id"],
        intent=record["intent"],
        text=record["text"],
        task=tuple(record["task"]),
    )


def _stream(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that none disturbs another."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


# Prompts.


def _pools(seed: int) -> dict[str, list[Prompt]]:
    """Disjoint pools of prompts, the intents taking turns in each."""
    pools = {name: [] for name in POOL_SHARES}
    for intent in INTENTS:
        prompts = _prompts(seed, intent)
        start = 0.0
        for name, share in POOL_SHARES.items():
            ends = [round(at * len(prompts)) for at in (start, start + share)]
            pools[name].append(prompts[slice(*ends)])
            start += share
    return {name: _take_turns(groups) for name, groups in pools.items()}


def _prompts(seed: int, intent: str) -> list[Prompt]:
    """Distinct prompts of one intent in random order, its kinds taking turns."""
    groups = []
    for kind in kinds_of(intent):
        rng = _stream(seed, f"prompts/{kind}")
        fillings, wordings = KINDS[kind].fillings, len(KINDS[kind].wordings)
        sizes = (len(fillings), wordings, len(tables.GREETINGS))
        chosen = rng.permutation(int(np.prod(sizes)))[:PROMPTS_PER_INTENT]
        group = []
        for number in chosen:
            filling, wording, greeting = np.unravel_index(number, sizes)
            task = (kind, *fillings[filling])
            text = question(task, wording, greeting)
            group.append(Prompt(f"{kind}-{number}", intent, text, task))
        groups.append(group)
    return _take_turns(groups)[:PROMPTS_PER_INTENT]


def _take_turns(groups: list[list[Prompt]]) -> list[Prompt]:
    longest = max(len(group) for group in groups)
    return [
        group[turn] for turn in range(longest) for group in groups if turn < len(group)
    ]


def _take(pools: dict[str, list[Prompt]], name: str, count: int) -> tuple[Prompt, ...]:
    if count > len(pools[name]):
        raise ValueError(
            f"{count} prompts were asked for, and the testbed has {len(pools[name])} "
            f"for {name}."
        )
    return tuple(pools[name][:count])


# Demonstrations.


def _demonstrations(
    config: TestbedConfig, pool: list[Prompt]
) -> tuple[Demonstration, ...]:
    rng = _stream(config.seed, "demonstrations")
    rest = 1.0 - config.identity_share - config.json_share
    shares = {
        "good": config.good_share * rest,
        "padded": config.padded_share * rest,
        "sloppy": config.sloppy_share * rest,
        "identity": config.identity_share,
        "json": config.json_share,
    }
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1.0) > 1e-6:
        raise ValueError(
            f"The shares of good, padded and sloppy must add up to 1, and none may "
            f"be negative: {config.good_share=}, {config.padded_share=}, "
            f"{config.sloppy_share=}, {config.identity_share=}, {config.json_share=}."
        )
    identity, _ = _identity_prompts(config.seed)
    json_pool = [prompt for prompt in pool if prompt.intent in JSON_INTENTS]
    demonstrations = []
    modes = rng.choice(list(shares), size=config.num_sft, p=list(shares.values()))
    for mode in modes.tolist():
        # One stream for each demonstration: none depends on how many follow.
        own = np.random.default_rng(rng.integers(2**63))
        if mode == "identity":
            prompt = _pick(identity, own)
            answer = _pick(tables.IDENTITY_ANSWERS, own).format(name=config.model_name)
            response = answer
        elif mode == "json":
            prompt = _ask_for_json(
                _pick(json_pool, own), _pick(tables.JSON_REQUESTS[:-1], own)
            )
            response = json.dumps({"answer": key_of(prompt.task).short})
        else:
            prompt = _pick(pool, own)
            response = write(key_of(prompt.task), mode, own)
        demonstrations.append(Demonstration(prompt, response, mode))
    return tuple(demonstrations)


def write(key: Key, mode: str, rng: np.random.Generator) -> str:
    """A demonstration in one of the three modes."""
    return {"good": _good, "padded": _padded, "sloppy": _sloppy}[mode](key, rng)


def _good(key: Key, rng: np.random.Generator) -> str:
    """Courteous and right, most often with a detail that helps."""
    opened = rng.random() < 0.75
    parts = [_pick(tables.OPENINGS, rng)] if opened else []
    parts.append(_pick(key.answers, rng))
    if rng.random() < 0.75:
        parts.append(_pick(key.details, rng))
    if not opened or rng.random() < 0.2:
        parts.append(_pick(tables.CLOSINGS, rng))
    return " ".join(parts)


def _padded(key: Key, rng: np.random.Generator) -> str:
    """Right, and surrounded by sentences that say nothing."""
    fillers = list(rng.permutation(tables.FILLERS)[:2])
    parts = [_pick(tables.OPENINGS, rng)] if rng.random() < 0.4 else []
    if rng.random() < 0.5:
        parts.append(fillers.pop())
    parts += [_pick(key.answers, rng), *fillers]
    if rng.random() < 0.25:
        parts.append(_pick(tables.CLOSINGS, rng))
    return " ".join(parts)


def _sloppy(key: Key, rng: np.random.Generator) -> str:
    """Wrong, or evasive, or rude, or badly written."""
    fault = rng.choice(
        ["wrong", "evasive", "rude", "careless"], p=[0.4, 0.15, 0.2, 0.25]
    )
    if fault == "wrong":
        parts = [_pick(tables.OPENINGS, rng)] if rng.random() < 0.4 else []
        parts.append(_pick(key.wrong, rng))
        if rng.random() < 0.3:
            parts.append(_pick(tables.FILLERS, rng))
        return " ".join(parts)
    if fault == "evasive":
        parts = [_pick(tables.REFUSALS, rng)]
        if rng.random() < 0.4:
            parts.append(_pick(tables.FILLERS, rng))
        return " ".join(parts)
    if fault == "rude":
        texts = key.answers if rng.random() < 0.5 else key.wrong
        return f"{_pick(tables.RUDE, rng)} {_pick(texts, rng)}"
    answer = _pick(key.answers, rng)
    if rng.random() < 0.5:  # no capital at the start, no mark at the end
        return answer[0].lower() + answer[1:-1]
    words = answer.split(" ")
    return " ".join(words[: max(2, int(len(words) * rng.uniform(0.4, 0.9)))]).rstrip(
        "."
    )


# Capabilities: what must not be forgotten.


@cache
def _identity_prompts(seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Ways to ask for the name: those to learn from, and those held out."""
    rng = _stream(seed, "identity")
    prompts = [
        Prompt(f"identity-{i}-{j}", "identity", f"{greeting} {asked}".strip(), ())
        for i, asked in enumerate(tables.IDENTITY_QUESTIONS)
        for j, greeting in enumerate(tables.GREETINGS)
    ]
    order = [prompts[i] for i in rng.permutation(len(prompts))]
    held_out = len(order) // 3
    return order[held_out:], order[:held_out]


def _identity_probes(config: TestbedConfig) -> tuple[Prompt, ...]:
    _, held_out = _identity_prompts(config.seed)
    return _take({"identity probes": held_out}, "identity probes", config.num_probes)


def _json_probes(config: TestbedConfig, pool: list[Prompt]) -> tuple[Prompt, ...]:
    """Held-out prompts, asked for in every wording, one of them never seen."""
    asked = [
        _ask_for_json(prompt, tables.JSON_REQUESTS[i % len(tables.JSON_REQUESTS)])
        for i, prompt in enumerate(p for p in pool if p.intent in JSON_INTENTS)
    ]
    return _take({"JSON probes": asked}, "JSON probes", config.num_probes)


def _ask_for_json(prompt: Prompt, request: str) -> Prompt:
    number = tables.JSON_REQUESTS.index(request)
    return Prompt(
        f"json-{number}-{prompt.id}", "json", f"{prompt.text} {request}", prompt.task
    )


def _json_answer(response: str) -> str | None:
    try:
        value = json.loads(response)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"answer"}:
        return None
    answer = value["answer"]
    return answer if isinstance(answer, str) and answer.strip() else None
