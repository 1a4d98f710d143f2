"""The testbed: a small world in English in which the true quality of text is known.

From one seed come demonstrations to imitate, and prompts of eight intents to compare,
to train on and to evaluate with. The modules, in the order to read them:

    world, stock             what is true in the world of a seed
    kinds, facts, composed   kinds of task, with right and wrong answers
    tasks                    tasks, their prompts and their keys
    styles                   answers, right or wrong, in a fitting or unfitting style
    quality                  the true quality of an answer
    annotators, comparisons  people who compare answers, and their faults
    skills                   what must not be forgotten
    pools                    this module: the parts of the data

Demonstrations are of two sorts. A textbook answers plainly and rightly: that is where a
model learns what is true. People answer in some style, and are right as often as people
are about the subject. A model that imitates people well can therefore become much
better than they are: it knows more than it says. Evaluation has tasks of its own
wherever tasks combine parts; facts are the same everywhere, in other words.

True quality and the annotators' faults are for simulated annotation and evaluation;
training never sees them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from rlhf_jax.data.records import Dialogue, Prompt, write_records
from rlhf_jax.data.testbed import skills
from rlhf_jax.data.testbed.skills import SKILLS
from rlhf_jax.data.testbed.styles import pick, respond
from rlhf_jax.data.testbed.tasks import (
    KINDS,
    Task,
    is_mistaken,
    is_off_putting,
    key_of,
    kinds_of,
    make_prompt,
    question,
    task_of,
)
from rlhf_jax.data.testbed.world import INTENTS, World, world_of

# The number of distinct prompts of each intent, and the share of each pool.
PROMPTS_PER_INTENT = 1700
SFT_PROMPTS_PER_INTENT = 2000  # distinct prompts of people's demonstrations, at most
POOL_SHARES = {"sft": 0.35, "comparisons": 0.3, "rl": 0.2, "evaluation": 0.15}
CONSTANT_SHARE = 0.2  # of the RL prompts: those that allow one answer only
TEXTBOOK = "Textbook:"  # begins the questions that are answered plainly and rightly
SKILL_PROBES = 0.5  # share of a skill's prompts that no demonstration answers


@dataclass(frozen=True)
class TestbedConfig:
    """The sizes of the testbed and the mixture of its demonstrations."""

    __test__ = False  # pytest would collect a class named Test...

    seed: int = 100
    model_name: str = "Glim"
    maker_name: str = "Northlab"
    num_sft: int = 18000
    num_sft_test: int = 400
    num_comparison_prompts: int = 3600
    num_rl_prompts: int = 1000
    num_eval_prompts: int = 400
    num_probes: int = 100  # of each skill
    # Shares of all demonstrations.
    skill_share: float = 0.25
    constant_share: float = 0.08
    textbook_share: float = 0.3
    # Shares of right answers among people's demonstrations, all the others, where they
    # know the subject and where they are mistaken about it.
    right_share: float = 0.86
    right_if_mistaken: float = 0.28
    # Shares of people's demonstrations in an unfitting style: in general, and where the
    # greeting puts people off, as a third of the greetings do.
    unfitting_share: float = 0.1
    unfitting_if_put_off: float = 0.8


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a demonstrated response."""

    prompt: Prompt
    response: str
    source: str  # "people", "textbook", "skill", or "constant": only one is possible
    right: bool = True
    suited: bool = True

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
    probes: tuple[Prompt, ...]  # of all skills, each skill's one after another


def make_testbed(config: TestbedConfig) -> Testbed:
    """Build the testbed; each part is independent of the sizes of the others."""
    _check_shares(config)
    world = world_of(config.seed)
    pools = _pools(world)
    constant = _constant(world)
    taught: list[list[Prompt]] = []
    probed: list[Prompt] = []
    for skill in SKILLS:
        of_self = {"name": config.model_name, "maker": config.maker_name}
        prompts = skills.make_prompts(world, skill, of_self.get(skill, ""))
        middle = round(SKILL_PROBES * len(prompts))
        taught.append(prompts[middle:])
        probed += _first(
            prompts[:middle], config.num_probes, f"probes of {skill}", "num_probes"
        )

    def demonstrations(pool: str, count: int) -> tuple[Demonstration, ...]:
        rng = world.stream(f"demonstrations/{pool}")
        return tuple(
            _demonstrations(config, pools[pool], constant["sft"], taught, count, rng)
        )

    num_constant = round(CONSTANT_SHARE * config.num_rl_prompts)
    free = config.num_rl_prompts - num_constant
    use = "reinforcement learning"
    rl = _first(pools["rl"], free, use, "num_rl_prompts")
    rl += _first(
        constant["rl"], num_constant, f"{use} with one answer", "num_rl_prompts"
    )
    order = world.stream(f"rl/{len(rl)}").permutation(len(rl))
    return Testbed(
        config=config,
        sft=demonstrations("sft", config.num_sft),
        sft_test=demonstrations("evaluation", config.num_sft_test),
        comparison_prompts=_first(
            pools["comparisons"],
            config.num_comparison_prompts,
            "comparisons",
            "num_comparison_prompts",
        ),
        rl_prompts=tuple(rl[i] for i in order),
        eval_prompts=_first(
            pools["evaluation"],
            config.num_eval_prompts,
            "evaluation",
            "num_eval_prompts",
        ),
        probes=tuple(probed),
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
    write_records(folder / "skills.jsonl", testbed.probes)


# Prompts.


def _pools(world: World) -> dict[str, list[Prompt]]:
    """Make disjoint pools of prompts, the intents taking turns in each."""
    pools: dict[str, list[list[Prompt]]] = {name: [] for name in POOL_SHARES}
    for intent in INTENTS:
        kinds = kinds_of(intent)
        by_kind = [_split(world, kind) for kind in kinds]
        for name in POOL_SHARES:
            prompts = _take_turns([split[name] for split in by_kind])
            prompts = prompts[: _most(name)]
            # Shuffle once more: small kinds run out early.
            order = world.stream(f"prompts/{intent}/{name}").permutation(len(prompts))
            pools[name].append([prompts[i] for i in order])
    return {name: _take_turns(groups) for name, groups in pools.items()}


def _split(world: World, kind: str) -> dict[str, list[Prompt]]:
    """Make prompts of one kind and share them out among the pools: by task where
    tasks combine parts, every first part as often as any other, and by wording and
    greeting elsewhere."""
    rng = world.stream(f"prompts/{kind}")
    fillings = list(KINDS[kind].fillings(world))
    ways = range(len(world.wordings(kind, KINDS[kind].wordings)))
    said = list(product(ways, range(len(world.greetings))))
    if KINDS[kind].composed:
        by_first: dict[str, list[int]] = {}
        for f in rng.permutation(len(fillings)):
            by_first.setdefault(fillings[f][0], []).append(f)
        groups = [
            [(f, *said[w]) for w in rng.permutation(len(said))]
            for f in _take_turns(list(by_first.values()))
        ]
    else:
        every = list(product(range(len(fillings)), said))
        groups = [
            [(f, *way)] for f, way in (every[i] for i in rng.permutation(len(every)))
        ]
    pools, start = {}, 0.0
    for name, share in POOL_SHARES.items():
        ends = [round(at * len(groups)) for at in (start, start + share)]
        start += share
        prompts = []
        mine = _take_turns(groups[slice(*ends)])
        for filling, wording, greeting in mine[: _most(name)]:
            task = Task(world.seed, kind, tuple(fillings[filling]))
            prompts.append(
                make_prompt(
                    f"{kind}-{filling}-{wording}-{greeting}",
                    KINDS[kind].intent,
                    question(task, wording, greeting),
                    task,
                )
            )
        pools[name] = prompts
    return pools


def _most(pool: str) -> int:
    """Return the largest number of prompts of an intent in a pool."""
    if pool == "sft":
        return SFT_PROMPTS_PER_INTENT
    return round(POOL_SHARES[pool] * PROMPTS_PER_INTENT)


def _constant(world: World) -> dict[str, list[Prompt]]:
    """Make the prompts to which only one answer is possible, for SFT and for RL."""
    prompts = skills.prompts_of(world, ("echo",), "language")
    return {"sft": prompts[: len(prompts) // 3], "rl": prompts[len(prompts) // 3 :]}


def _take_turns(groups: Sequence[list]) -> list:
    longest = max(len(group) for group in groups)
    return [
        group[turn] for turn in range(longest) for group in groups if turn < len(group)
    ]


def _first(
    pool: Sequence[Prompt], count: int, use: str, key: str
) -> tuple[Prompt, ...]:
    """Return the first prompts of a pool, whose number is config.data.testbed.`key`."""
    if count > len(pool):
        raise ValueError(
            f"The testbed has {len(pool)} prompts for {use}; {count} were asked for. "
            f"Lower config.data.testbed.{key}."
        )
    return tuple(pool[:count])


# Demonstrations.


def _demonstrations(
    config: TestbedConfig,
    pool: list[Prompt],
    constant: list[Prompt],
    taught: list[list[Prompt]],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Demonstration]:
    skills_and_constant = config.skill_share + config.constant_share
    intents = {prompt.intent for prompt in pool}
    by_intent = [
        [prompt for prompt in pool if prompt.intent == intent]
        for intent in INTENTS
        if intent in intents
    ]
    for _ in range(count):
        draw = rng.random()
        if draw < config.skill_share:
            prompt = pick(pick(taught, rng), rng)
            yield Demonstration(prompt, skills.right_answer(prompt), "skill")
        elif draw < skills_and_constant:
            prompt = pick(constant, rng)
            yield Demonstration(prompt, key_of(task_of(prompt)).short, "constant")
        elif draw < skills_and_constant + config.textbook_share:
            yield _textbook(pick(pick(by_intent, rng), rng), rng)
        else:
            yield demonstrate(config, pick(pick(by_intent, rng), rng), rng)


def _textbook(prompt: Prompt, rng: np.random.Generator) -> Demonstration:
    """Answer the task of a prompt plainly and rightly, as asked of a textbook."""
    task = task_of(prompt)
    wordings = world_of(task.world).wordings(task.kind, KINDS[task.kind].wordings)
    text = f"{TEXTBOOK} {question(task, int(rng.integers(len(wordings))))}"
    asked = make_prompt(f"textbook-{prompt.id}", prompt.intent, text, task)
    return Demonstration(asked, pick(key_of(task).answers, rng), "textbook")


def demonstrate(
    config: TestbedConfig, prompt: Prompt, rng: np.random.Generator
) -> Demonstration:
    """Answer a prompt as people do: right or wrong by its subject, in a fitting style
    or not by its greeting."""
    task, put_off = task_of(prompt), is_off_putting(prompt)
    share = config.right_if_mistaken if is_mistaken(task) else config.right_share
    right = bool(rng.random() < share)
    unfitting = config.unfitting_if_put_off if put_off else config.unfitting_share
    suited = bool(rng.random() >= unfitting)
    response = respond(task, rng, right=right, suited=suited)
    return Demonstration(prompt, response, "people", right, suited)


def _check_shares(config: TestbedConfig) -> None:
    if config.skill_share + config.constant_share + config.textbook_share > 1:
        raise ValueError(
            f"{config.skill_share=}, {config.constant_share=} and "
            f"{config.textbook_share=} leave no room for people's demonstrations: make "
            "their sum less than 1."
        )
