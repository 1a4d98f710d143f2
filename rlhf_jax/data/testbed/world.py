"""The testbed: a small world in English in which the true quality of text is known.

The testbed has prompts of eight intents and demonstrations to imitate, all from one
seed. The demonstrations are a mixture of good, padded and sloppy answers, so a model
that imitates them well can still become much better. The modules are:

    tables, kinds, facts, fiction, reasoning, tasks    prompts and answer keys
    demonstrations, capabilities                       demonstrations
    quality                                            true quality
    annotators, comparisons                            comparisons

True quality and the annotators' faults are for simulated annotation and evaluation;
training never sees them.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_jax.data.records import Dialogue, Prompt, write_records
from rlhf_jax.data.testbed import capabilities, tables
from rlhf_jax.data.testbed.demonstrations import pick, respond
from rlhf_jax.data.testbed.tasks import (
    INTENTS,
    KINDS,
    key_of,
    kinds_of,
    make_prompt,
    question,
    task_of,
)

# The number of distinct prompts of each intent, and the share of each pool.
PROMPTS_PER_INTENT = 750
POOL_SHARES = {"sft": 0.4, "comparisons": 0.25, "rl": 0.2, "evaluation": 0.15}


@dataclass(frozen=True)
class TestbedConfig:
    """The sizes of the testbed and the mixture of its demonstrations."""

    __test__ = False  # pytest would collect a class named Test...

    seed: int = 0
    model_name: str = "Glim"
    num_sft: int = 6000
    num_sft_test: int = 400
    num_comparison_prompts: int = 1200
    num_rl_prompts: int = 1000
    num_eval_prompts: int = 400
    num_probes: int = 20  # probes of each capability
    # Shares of all demonstrations.
    identity_share: float = 0.04
    json_share: float = 0.06
    # Shares of the other demonstrations; they add up to 1.
    good_share: float = 0.4
    padded_share: float = 0.3
    sloppy_share: float = 0.3


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a demonstrated response."""

    prompt: Prompt
    response: str
    mode: str  # good, padded, sloppy, identity or json

    @property
    def dialogue(self) -> Dialogue:
        answer = {"role": "assistant", "content": self.response}
        return Dialogue((*self.prompt.messages, answer), self.prompt.intent)


@dataclass(frozen=True)
class Testbed:
    """All parts of the testbed."""

    __test__ = False

    config: TestbedConfig
    sft: tuple[Demonstration, ...]
    sft_test: tuple[Demonstration, ...]
    comparison_prompts: tuple[Prompt, ...]
    rl_prompts: tuple[Prompt, ...]
    eval_prompts: tuple[Prompt, ...]
    identity_probes: tuple[Prompt, ...]
    json_probes: tuple[Prompt, ...]


def make_testbed(config: TestbedConfig) -> Testbed:
    """Build the testbed; each part is independent of the sizes of the others."""
    pools = _pools(config.seed)
    learned, held_out = capabilities.identity_prompts(_stream(config.seed, "identity"))
    json_probes = capabilities.json_probes(pools["evaluation"])

    def demonstrations(pool: str, count: int) -> tuple[Demonstration, ...]:
        rng = _stream(config.seed, f"demonstrations/{pool}")
        return tuple(_demonstrations(config, pools[pool], learned, count, rng))

    return Testbed(
        config=config,
        sft=demonstrations("sft", config.num_sft),
        sft_test=demonstrations("evaluation", config.num_sft_test),
        comparison_prompts=_first(
            pools["comparisons"], config.num_comparison_prompts, "comparisons"
        ),
        rl_prompts=_first(pools["rl"], config.num_rl_prompts, "reinforcement learning"),
        eval_prompts=_first(pools["evaluation"], config.num_eval_prompts, "evaluation"),
        identity_probes=_first(held_out, config.num_probes, "identity probes"),
        json_probes=_first(json_probes, config.num_probes, "JSON probes"),
    )


def write(config: TestbedConfig, folder: str | Path) -> None:
    """Write the testbed as files of records."""
    folder = Path(folder)
    testbed = make_testbed(config)
    write_records(folder / "sft.jsonl", [d.dialogue for d in testbed.sft])
    write_records(folder / "sft_test.jsonl", [d.dialogue for d in testbed.sft_test])
    write_records(folder / "comparison_prompts.jsonl", testbed.comparison_prompts)
    write_records(folder / "prompts.jsonl", testbed.rl_prompts)
    write_records(folder / "eval_prompts.jsonl", testbed.eval_prompts)
    write_probes(testbed, folder)


def write_probes(testbed: Testbed, folder: Path) -> None:
    write_records(folder / "identity_probes.jsonl", testbed.identity_probes)
    write_records(folder / "json_probes.jsonl", testbed.json_probes)


def _stream(seed: int, name: str) -> np.random.Generator:
    """Make a generator for each purpose, so that their draws are independent."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# Prompts.


def _pools(seed: int) -> dict[str, list[Prompt]]:
    """Make disjoint pools of prompts, the intents taking turns in each."""
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
    """Make distinct prompts of one intent in random order, its kinds taking turns."""
    groups = []
    for kind in kinds_of(intent):
        rng = _stream(seed, f"prompts/{kind}")
        fillings, wordings = KINDS[kind].fillings, len(KINDS[kind].wordings)
        sizes = (len(fillings), wordings, len(tables.GREETINGS))
        chosen = rng.permutation(int(np.prod(sizes)))[:PROMPTS_PER_INTENT]
        group = []
        for number in chosen:
            filling, wording, greeting = map(int, np.unravel_index(number, sizes))
            task = (kind, *fillings[filling])
            text = question(task, wording, greeting)
            group.append(make_prompt(f"{kind}-{number}", intent, text, task))
        groups.append(group)
    prompts = _take_turns(groups)[:PROMPTS_PER_INTENT]
    # Shuffle once more: small kinds run out early, and every pool must have all kinds.
    order = _stream(seed, f"prompts/{intent}").permutation(len(prompts))
    return [prompts[i] for i in order]


def _take_turns(groups: list[list[Prompt]]) -> list[Prompt]:
    longest = max(len(group) for group in groups)
    return [
        group[turn] for turn in range(longest) for group in groups if turn < len(group)
    ]


def _first(pool: list[Prompt], count: int, use: str) -> tuple[Prompt, ...]:
    if count > len(pool):
        raise ValueError(
            f"The testbed has {len(pool)} prompts for {use}; {count} were asked for."
        )
    return tuple(pool[:count])


# Demonstrations.


def _demonstrations(
    config: TestbedConfig,
    pool: list[Prompt],
    identity: list[Prompt],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Demonstration]:
    shares = _mode_shares(config)
    short = [p for p in pool if p.intent in capabilities.JSON_INTENTS]
    for _ in range(count):
        mode = str(rng.choice(list(shares), p=list(shares.values())))
        if mode == "identity":
            prompt = pick(identity, rng)
            name = config.model_name
            response = pick(tables.IDENTITY_ANSWERS, rng).format(name=name)
        elif mode == "json":
            request = pick(capabilities.JSON_REQUESTS_SEEN, rng)
            prompt = capabilities.ask_for_json(pick(short, rng), request)
            response = capabilities.json_answer(prompt)
        else:
            prompt = pick(pool, rng)
            response = respond(key_of(task_of(prompt)), mode, rng)
        yield Demonstration(prompt, response, mode)


def _mode_shares(config: TestbedConfig) -> dict[str, float]:
    rest = 1.0 - config.identity_share - config.json_share
    shares = {
        "identity": config.identity_share,
        "json": config.json_share,
        "good": config.good_share * rest,
        "padded": config.padded_share * rest,
        "sloppy": config.sloppy_share * rest,
    }
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1.0) > 1e-6:
        raise ValueError(
            "The shares of good, padded and sloppy demonstrations must add up to 1, "
            "those of identity and JSON must leave room, and none may be negative: "
            f"{config.good_share=}, {config.padded_share=}, {config.sloppy_share=}, "
            f"{config.identity_share=}, {config.json_share=}."
        )
    return shares
