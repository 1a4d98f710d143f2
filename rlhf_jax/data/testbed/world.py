"""A world: the facts, the invented language, the names and the manners of one seed.

Everything that a question can be about is drawn from the seed, so what is learnt about
one world is worth nothing in another:

- names of people, animals, goods and roles from the stock, and invented names of
  countries, cities, rivers, terms and code words;
- tables of facts about them, in which every entry has a partner: the wrong answer to
  one is the right answer to the other;
- a language, Luma, with its own words and its own order of words;
- the wordings of questions, and the register (formal or warm) that suits each intent;
- the subjects about which most people are mistaken (`mistaken`), and the greetings that
  put them off (`off_putting`).

Worlds from 100 on are for development: hyper-parameters are chosen on them. Worlds 0 to
9 are for the published results alone; look at none of them before everything is frozen.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeVar

import numpy as np

from rlhf_jax.data.testbed import stock

Item = TypeVar("Item")

INTENTS = (
    "language",
    "translation",
    "open_question",
    "writing",
    "role_play",
    "professional",
    "mathematics",
    "logic",
)
# In each of these pairs of intents one wants the formal register, the other the warm
# one, so that no phrase is good or bad in itself.
_OPPOSED = (
    ("writing", "professional"),
    ("role_play", "open_question"),
    ("translation", "language"),
    ("mathematics", "logic"),
)
# The share of the subjects of an intent about which most people are mistaken.
MISTAKEN = dict.fromkeys(INTENTS, 0.3) | {"mathematics": 0.4, "logic": 0.4}
_WORDINGS, _GREETINGS = 3, 18  # in use in a world, of those in stock


@dataclass(frozen=True)
class World:
    """The world of a seed; worlds of the same seed are equal."""

    seed: int

    # People, animals, goods and words.

    @cached_property
    def people(self) -> list[str]:
        return self._draw(stock.NAMES, 12)

    @cached_property
    def animals(self) -> list[str]:
        return self._draw(stock.ANIMALS, 8)

    @cached_property
    def things(self) -> list[str]:
        return self._draw(stock.THINGS, 6)

    @cached_property
    def goods(self) -> list[str]:
        return self._draw(stock.GOODS, 5)

    @cached_property
    def verbs(self) -> list[str]:
        return self._draw(stock.VERBS, 6)

    @cached_property
    def orders(self) -> dict[str, str]:
        """The opposite of each comparative."""
        return dict(self._draw(stock.ORDERS, 3, "orders"))

    @cached_property
    def sums(self) -> list[tuple[str, str]]:
        """Pairs of numbers to add and to subtract."""
        pairs = [
            f"{a},{b}"
            for a in range(4, 10)
            for b in range(1, 5)
            if a > b and a != 2 * b
        ]
        return [tuple(pair.split(",")) for pair in self._draw(pairs, 16)]  # type: ignore[misc]

    @cached_property
    def _invented(self) -> list[str]:
        """Words of two or three syllables, none twice and none within another."""
        rng = self.stream("words")
        words: list[str] = []
        while len(words) < 110:
            size = 2 if len(words) < 60 else 3
            pairs = zip(
                rng.choice(list("bdfgklmnprstvz"), size),
                rng.choice(list("aeiou"), size),
                strict=True,
            )
            word = "".join(a + b for a, b in pairs)
            if not any(word in other or other in word for other in words):
                words.append(word)
        return words

    @cached_property
    def countries(self) -> list[str]:
        return [word.capitalize() + "ia" for word in self._invented[:16]]

    # Tables of facts: subject -> answer.

    @cached_property
    def capitals(self) -> dict[str, str]:
        cities = [word.capitalize() for word in self._invented[16:32]]
        return dict(zip(self.countries, cities, strict=True))

    @cached_property
    def foods(self) -> dict[str, str]:
        return dict(zip(self.countries, self._draw(stock.FOODS, 16), strict=True))

    @cached_property
    def rivers(self) -> dict[str, str]:
        rivers = [word.capitalize() for word in self._invented[60:76]]
        return dict(zip(self.countries, rivers, strict=True))

    @cached_property
    def emblems(self) -> dict[str, str]:
        """The animal on the flag of each country."""
        animals = self._draw(stock.ANIMALS, 16, "emblems")
        return dict(zip(self.countries, animals, strict=True))

    @cached_property
    def terms(self) -> dict[str, str]:
        rng = self.stream("terms")
        nouns = rng.choice(stock.NOUNS, 16)
        uses = self._draw(stock.USES, 16)
        definitions = (
            f"a {noun} that {use}" for noun, use in zip(nouns, uses, strict=True)
        )
        return dict(zip(self._invented[76:92], definitions, strict=True))

    @cached_property
    def code_words(self) -> dict[str, str]:
        """The code word of each person, which partners share, so that no word is
        always right to say or always wrong."""
        words = self._invented[92:98]
        return {person: words[i // 2] for i, person in enumerate(self.people)}

    @cached_property
    def open_people(self) -> frozenset[str]:
        """Those whose code words everybody may know: one of each two partners."""
        return frozenset(self.people[::2])

    @cached_property
    def pasts(self) -> dict[str, str]:
        """The past forms of verbs, in which every world is irregular."""
        return dict(zip(self.verbs, self._invented[104:110], strict=True))

    @cached_property
    def homes(self) -> dict[str, str]:
        """Where each animal lives."""
        return dict(zip(self.animals, self._draw(stock.PLACES, 8), strict=True))

    @cache  # noqa: B019 (worlds are few and stay)
    def places(self, order: str) -> list[str]:
        """Return all people in the order of a comparative, the tallest first."""
        return self._draw(self.people, len(self.people), f"places/{order}")

    @cached_property
    def calls(self) -> dict[str, str]:
        """The exclamation of each role."""
        calls = self._draw(stock.CALLS, 6)
        roles = self._draw(stock.ROLES, 6)
        return dict(zip(roles, calls, strict=True))

    @cached_property
    def luma(self) -> dict[str, str]:
        """The words of the invented language, by their English."""
        english = [*self.animals, *(f"{verb}s" for verb in self.verbs)]
        return dict(zip(english, self._invented[32:], strict=False))

    @cached_property
    def luma_words(self) -> dict[str, str]:
        """The nouns of Luma, which are asked for one by one."""
        return {animal: self.luma[animal] for animal in self.animals}

    def in_luma(self, subject: str, verb: str, other: str) -> str:
        """Say "the SUBJECT VERB the OTHER" in Luma, in the order of this world."""
        words = [self.luma[subject], self.luma[f"{verb}s"], self.luma[other]]
        return " ".join(words[i] for i in self._luma_order)

    @cached_property
    def _luma_order(self) -> list[int]:
        return self.stream("luma").permutation(3).tolist()

    # Manners.

    @cached_property
    def registers(self) -> dict[str, str]:
        """The register that suits each intent."""
        suited: dict[str, str] = {}
        for pair in _OPPOSED:
            one, other = self._draw(pair, 2, f"registers/{pair[0]}")
            suited |= {one: stock.FORMAL, other: stock.WARM}
        return suited

    @cached_property
    def greetings(self) -> list[str]:
        return ["", *self._draw(stock.GREETINGS[1:], _GREETINGS - 1)]

    @cached_property
    def off_putting(self) -> frozenset[str]:
        """A third of the greetings, which put people off: most answer them in the
        register that does not suit."""
        return frozenset(self._draw(self.greetings, _GREETINGS // 3, "off-putting"))

    @cache  # noqa: B019 (worlds are few and stay)
    def wordings(self, kind: str, wordings: tuple[str, ...]) -> list[str]:
        """Choose this world's wordings of the questions of a kind of task."""
        return self._draw(wordings, min(_WORDINGS, len(wordings)), f"wordings/{kind}")

    @cache  # noqa: B019 (worlds are few and stay)
    def mistaken(self, intent: str, subjects: tuple[str, ...]) -> frozenset[str]:
        """Choose the subjects of an intent about which most people are mistaken."""
        rng = self.stream(f"mistaken/{intent}/{len(subjects)}")
        count = round(MISTAKEN[intent] * len(subjects))
        return frozenset(rng.permutation(subjects)[:count].tolist())

    # Random numbers.

    def stream(self, name: str) -> np.random.Generator:
        """Make a generator for one purpose, so that its draws depend on no other."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def _draw(self, words: Sequence[Item], count: int, purpose: str = "") -> list[Item]:
        rng = self.stream(purpose or f"draw/{words[0]}")
        return [words[i] for i in rng.permutation(len(words))[:count]]


@cache
def world_of(seed: int) -> World:
    """Return the one world of a seed, with all that it has worked out so far."""
    return World(seed)


def partner(subject: str, table: Sequence[str], besides: str = "") -> str:
    """Return the entry that is mistaken for `subject`: the other one of two neighbours
    in the table, or an entry after them if that is `besides`."""
    entries = list(table)
    index = entries.index(subject)
    mistaken = entries[index ^ 1]
    return entries[(index + 2) % len(entries)] if mistaken == besides else mistaken
