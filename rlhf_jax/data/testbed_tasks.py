"""What the testbed asks: kinds of task over eight intents, each with its answer key.

A task is a tuple of strings, (kind, *filling), such as ("capital", "France"). From
it alone everything else follows: the prompt's text by a wording, and by `key_of`
what a right answer is, how one is recognised, what goes wrong, what helps.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

from rlhf_jax.data import testbed_tables as tables

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


@dataclass(frozen=True)
class Prompt:
    id: str
    intent: str
    text: str
    task: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """All there is to say to one task."""

    answers: tuple[str, ...]  # right and complete
    wrong: tuple[str, ...]  # of the same form, and wrong
    details: tuple[str, ...]  # a sentence that helps beyond the answer
    short: str  # the bare answer
    # (response as written, response as spoken) -> share of the task done, 0 to 1
    credit: Callable[[str, str], float]


@dataclass(frozen=True)
class Kind:
    intent: str
    wordings: tuple[str, ...]  # {0}, {1}, ... are the filling's fields
    fillings: tuple[tuple[str, ...], ...]
    key: Callable[..., Key]
    # What a wording shows of a filling, where that is not the filling itself.
    shown: Callable[..., tuple[str, ...]] = lambda *filling: filling


WORD = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*")


def spoken(text: str) -> str:
    """Lower-case words between single spaces, so that " a b " is found in it."""
    return " " + " ".join(WORD.findall(text)).lower() + " "


@cache
def key_of(task: tuple[str, ...]) -> Key:
    kind, *filling = task
    if kind not in KINDS:
        raise ValueError(f"Unknown kind of task {kind!r}; known are {sorted(KINDS)}.")
    return KINDS[kind].key(*filling)


def kinds_of(intent: str) -> list[str]:
    return [name for name, kind in KINDS.items() if kind.intent == intent]


def question(task: tuple[str, ...], wording: int, greeting: int = 0) -> str:
    """The prompt's text for a task, in one of its wordings."""
    kind, *filling = task
    text = KINDS[kind].wordings[wording].format(*KINDS[kind].shown(*filling))
    return f"{tables.GREETINGS[greeting]} {text}".strip()


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


# How right answers are recognised.


def _says(answer: str, rivals) -> Callable[[str, str], float]:
    """The answer is said and no other answer that the question could have had."""
    wanted = spoken(answer)
    others = [spoken(rival) for rival in rivals if rival != answer]

    def credit(response: str, words: str) -> float:
        return float(wanted in words and not any(other in words for other in others))

    return credit


def _only_token(token: str, pattern: str) -> Callable[[str, str], float]:
    """The response's tokens of this pattern are exactly the wanted one."""
    compiled = re.compile(pattern)

    def credit(response: str, words: str) -> float:
        return float(set(compiled.findall(response)) == {token})

    return credit


def _others(answer: str, table, count: int = 4) -> list[str]:
    """Some wrong answers from the table, those that follow the right one."""
    values = list(dict.fromkeys(table))
    start = values.index(answer)
    steps = range(1, min(count, len(values) - 1) + 1)
    return [values[(start + step) % len(values)] for step in steps]


def _from_table(
    answer: str, table, forms: tuple[str, ...], details: tuple[str, ...]
) -> Key:
    """The key of a question whose answer is one entry of a table; forms have {}."""
    return Key(
        answers=tuple(capitalised(form.format(answer)) for form in forms),
        wrong=tuple(
            capitalised(form.format(other))
            for other in _others(answer, table)
            for form in forms
        ),
        details=details,
        short=answer,
        credit=_says(answer, table),
    )


# Fundamental language ability.

_OPPOSITE = {
    word: other for pair in tables.OPPOSITES for word, other in (pair, reversed(pair))
}
_PLURAL = dict(tables.PLURALS)
_PAST = dict(tables.PAST_TENSES)


def _opposite(word: str) -> Key:
    answer = _OPPOSITE[word]
    return _from_table(
        answer,
        [other for other in _OPPOSITE if other != word],
        (f"the opposite of {word} is {{}}.", f"{{}} is the opposite of {word}."),
        (f"If something is {word}, it is not {answer}.",),
    )


def _plural(word: str) -> Key:
    answer = _PLURAL[word]
    return _from_table(
        answer,
        _PLURAL.values(),
        (f"the plural of {word} is {{}}.",),
        (f"We say one {word} and two {answer}.",),
    )


def _past(word: str) -> Key:
    answer = _PAST[word]
    return _from_table(
        answer,
        _PAST.values(),
        (f"the past tense of {word} is {{}}.",),
        (f"Today I {word}, and yesterday I {answer}.",),
    )


def _capitals(word: str) -> Key:
    others = _others(word, tables.WORDS)
    return Key(
        answers=(
            f"In capital letters, {word} is {word.upper()}.",
            f"Here is the word: {word.upper()}.",
        ),
        wrong=(
            *(f"Here is the word: {other.upper()}." for other in others),
            f"Here is the word: {word}.",
        ),
        details=(f"The word {word} has {len(word)} letters.",),
        short=word.upper(),
        credit=_only_token(word.upper(), r"\b[A-Z]{2,}\b"),
    )


def _spelling(word: str) -> Key:
    spelled = "-".join(word)
    others = ["-".join(other) for other in _others(word, tables.WORDS)]
    return Key(
        answers=(f"The word {word} is spelled {spelled}.",),
        wrong=tuple(f"The word {word} is spelled {other}." for other in others),
        details=(f"The word {word} has {len(word)} letters.",),
        short=spelled,
        credit=_only_token(spelled, r"[A-Za-z](?:-[A-Za-z])+"),
    )


# Translation.

_LUMA = tables.LUMA_ADJECTIVES | tables.LUMA_NOUNS | tables.LUMA_VERBS
_LUMA_WORDS = frozenset(_LUMA.values())


def _luma_word(word: str) -> Key:
    return _from_table(
        _LUMA[word],
        _LUMA.values(),
        (f"the Luma word for {word} is {{}}.",),
        (f"The word {_LUMA[word]} means {word}.",),
    )


def _luma_sentence(adjective: str, noun: str, verb: str) -> Key:
    words = [_LUMA[adjective], _LUMA[noun], _LUMA[verb]]
    sentence = " ".join([tables.LUMA_THE, *words])

    def variants(position: int, table: dict[str, str]) -> list[str]:
        """The sentence with the word at this position mistaken for another."""
        return [
            " ".join(
                [tables.LUMA_THE, *words[:position], other, *words[position + 1 :]]
            )
            for other in _others(words[position], table.values(), 2)
        ]

    def credit(response: str, said: str) -> float:
        found = _LUMA_WORDS.intersection(said.split())
        right = len(found.intersection(words))
        share = max(0.0, (2 * right - len(found)) / len(words))
        return 0.6 * share + 0.4 * (share == 1.0 and spoken(sentence) in said)

    form = "In Luma, this is: {}."
    return Key(
        answers=(form.format(sentence),),
        wrong=tuple(
            form.format(variant)
            for variant in variants(0, tables.LUMA_ADJECTIVES)
            + variants(1, tables.LUMA_NOUNS)
            + variants(2, tables.LUMA_VERBS)
        ),
        details=tuple(
            f"The word {_LUMA[word]} means {word}." for word in (adjective, noun, verb)
        ),
        short=sentence,
        credit=credit,
    )


# Open questions.

_COUNTRY = {country: (city, where) for country, city, where in tables.COUNTRIES}
_ANIMAL = {animal: (home, food) for animal, home, food in tables.ANIMALS}
_BOOK = {book: (author, form) for book, author, form in tables.BOOKS}


def _capital(country: str) -> Key:
    city, continent = _COUNTRY[country]
    return _from_table(
        city,
        [other for other, _ in _COUNTRY.values()],
        (f"the capital of {country} is {{}}.", f"{{}} is the capital of {country}."),
        (f"{country} is a country in {continent}.",),
    )


def _home(animal: str) -> Key:
    home, food = _ANIMAL[animal]
    homes = [other for other, _ in _ANIMAL.values()]
    return _from_table(home, homes, (f"{animal} live {{}}.",), (f"They eat {food}.",))


def _food(animal: str) -> Key:
    home, food = _ANIMAL[animal]
    foods = [other for _, other in _ANIMAL.values()]
    return _from_table(food, foods, (f"{animal} eat {{}}.",), (f"They live {home}.",))


def _author(book: str) -> Key:
    author, form = _BOOK[book]
    return _from_table(
        author,
        [other for other, _ in _BOOK.values()],
        (f"{book} was written by {{}}.", f"{{}} wrote {book}."),
        (f"It is a famous {form}.",),
    )


# Writing.

_MENTIONS = (
    "And there I see a little {thing}.",
    "I find {a_thing} along the way.",
)


def _poem(topic: str, thing: str) -> Key:
    couplets = [[spoken(line) for line in c] for c in tables.COUPLETS[topic]]
    foreign = [
        spoken(line)
        for other, pairs in tables.COUPLETS.items()
        if other != topic
        for pair in pairs
        for line in pair
    ]

    def credit(response: str, words: str) -> float:
        rhymed = max(sum(line in words for line in c) / len(c) for c in couplets)
        strayed = sum(line in words for line in foreign) / 2
        mentioned = spoken(thing) in words
        return max(0.0, rhymed - strayed) * (0.6 + 0.4 * mentioned)

    def poem(about: str, lines: tuple[str, str], mentioned: str) -> str:
        line = _MENTIONS[len(about + mentioned) % len(_MENTIONS)]
        mention = line.format(thing=mentioned, a_thing=with_article(mentioned))
        return "\n".join([*lines, mention])

    return Key(
        answers=tuple(poem(topic, pair, thing) for pair in tables.COUPLETS[topic]),
        wrong=tuple(
            poem(other, tables.COUPLETS[other][0], thing)
            for other in _others(topic, tables.COUPLETS)
        )
        + tuple(
            poem(topic, pair, other)
            for other in _others(thing, tables.THINGS, 2)
            for pair in tables.COUPLETS[topic]
        ),
        details=(f"My heart is glad when I think of {topic}.",),
        short=tables.COUPLETS[topic][0][0],
        credit=credit,
    )


def _story(hero: str, thing: str) -> Key:
    start = "Once upon a time, there was {a_hero}."
    forms = (
        f"{start} The {{hero}} found {{a_thing}} and lived happily ever after.",
        f"{start} A friend gave it {{a_thing}}, and they lived happily ever after.",
    )
    beginning = spoken(start.format(a_hero=with_article(hero)))
    others = [spoken(other) for other in tables.HEROES if other != hero]

    def credit(response: str, words: str) -> float:
        told = 0.5 * (beginning in words) + 0.5 * (" happily ever after " in words)
        strayed = 0.5 * any(other in words for other in others)
        mentioned = spoken(thing) in words
        return max(0.0, told - strayed) * (0.6 + 0.4 * mentioned)

    def story(form: str, about: str, mentioned: str) -> str:
        return form.format(
            hero=about,
            a_hero=with_article(about),
            a_thing=with_article(mentioned),
        )

    return Key(
        answers=tuple(story(form, hero, thing) for form in forms),
        wrong=tuple(
            story(form, other, thing)
            for other in _others(hero, tables.HEROES, 2)
            for form in forms
        )
        + tuple(
            story(form, hero, other)
            for other in _others(thing, tables.THINGS, 2)
            for form in forms
        ),
        details=(f"Everyone loved the kind {hero}.",),
        short=start.format(a_hero=with_article(hero)),
        credit=credit,
    )


# Role play.

_ROLE = {role: (call, place, gift) for role, call, place, gift in tables.ROLES}
_SCENE = dict(tables.SCENES)


def _role_play(role: str, scene: str, listener: str) -> Key:
    call, place, gift = _ROLE[role]

    def line(what: str, where: str, person: str) -> str:
        return _SCENE[what].format(place=where, person=person)

    said = spoken(line(scene, place, listener))
    near = [spoken(line(scene, place, person)) for person in tables.LISTENERS]
    out_of_role = [spoken(other) for other, _, _ in _ROLE.values() if other != call]
    other_scenes = [
        spoken(line(what, place, person))
        for what in _SCENE
        for person in tables.LISTENERS
        if what != scene
    ]

    def credit(response: str, words: str) -> float:
        if any(other in words for other in out_of_role):
            return 0.0
        spoke = 0.6 if said in words else 0.3 * any(other in words for other in near)
        strayed = 0.4 * any(other in words for other in other_scenes)
        return max(0.0, 0.4 * (spoken(call) in words) + spoke - strayed)

    return Key(
        answers=(f"{call} {line(scene, place, listener)}",),
        wrong=tuple(
            f"{_ROLE[other][0]} {line(scene, _ROLE[other][1], listener)}"
            for other in _others(role, _ROLE, 2)
        )
        + tuple(
            f"{call} {line(other, place, listener)}"
            for other in _others(scene, _SCENE, 2)
        )
        + tuple(
            line(scene, place, other)
            for other in _others(listener, tables.LISTENERS, 1)
        ),
        details=(f"I will share my {gift} with you.",),
        short=line(scene, place, listener),
        credit=credit,
    )


# Professional knowledge.

_TERM = {term: rest for _, term, *rest in tables.TERMS}
_FIELD = {term: field for field, term, *_ in tables.TERMS}
_SMALL_WORDS = frozenset(
    ["a", "an", "and", "at", "by", "for", "in", "is", "it", "of", "on", "one", "or"]
).union(["that", "the", "to", "when", "who", "you"])


def _term(term: str) -> Key:
    named, definition, example = _TERM[term]
    definitions = [other for _, other, _ in _TERM.values()]
    exact = _says(definition, definitions)
    content = set(spoken(definition).split()) - _SMALL_WORDS

    def credit(response: str, words: str) -> float:
        share = len(content.intersection(words.split())) / len(content)
        return max(exact(response, words), 0.5 * share * (share > 0.5))

    key = _from_table(
        definition,
        definitions,
        (f"{named} is {{}}.", f"In {_FIELD[term]}, {named} is {{}}."),
        (f"For example, {example}.",),
    )
    return Key(key.answers, key.wrong, key.details, key.short, credit)


# Mathematics.

_NUMBER = re.compile(r"\d+")


def _number(given: tuple[str, str], result: int, forms, details) -> Key:
    """The result is said, and no number that is neither given nor the result."""
    allowed = {*given, str(result)}

    def credit(response: str, words: str) -> float:
        numbers = set(_NUMBER.findall(response))
        return float(str(result) in numbers and numbers <= allowed)

    mistakes = [n for n in (result + 1, result - 1, result + 2, result - 2) if n > 0]
    return Key(
        answers=tuple(form.format(result) for form in forms),
        wrong=tuple(form.format(n) for n in mistakes for form in forms),
        details=tuple(details),
        short=str(result),
        credit=credit,
    )


def _plus(a: str, b: str) -> Key:
    result = int(a) + int(b)
    forms = (f"{a} plus {b} is {{}}.", "The answer is {}.")
    return _number((a, b), result, forms, [f"To check, {result} minus {b} is {a}."])


def _minus(a: str, b: str) -> Key:
    result = int(a) - int(b)
    forms = (f"{a} minus {b} is {{}}.", "The answer is {}.")
    return _number((a, b), result, forms, [f"To check, {result} plus {b} is {a}."])


def _gets(name: str, goods: str, a: str, b: str) -> Key:
    result = int(a) + int(b)
    forms = (f"{name} has {{}} {goods} now.",)
    return _number(
        (a, b), result, forms, [f"This is because {a} plus {b} is {result}."]
    )


def _gives(name: str, goods: str, a: str, b: str) -> Key:
    result = int(a) - int(b)
    forms = (f"{name} has {{}} {goods} left.",)
    return _number(
        (a, b), result, forms, [f"This is because {a} minus {b} is {result}."]
    )


_SUMS = tuple(
    (str(a), str(b))
    for a, b in product(range(2, 10), repeat=2)
    if a + b <= tables.LARGEST_SUM
)
# a - b = b is left out: repeating the question would answer it.
_DIFFERENCES = tuple(
    (str(a), str(b))
    for a, b in product(range(4, 11), range(2, 9))
    if a - b >= 2 and a != 2 * b
)


# Logic.


def _order(kind: str, sorted_names: tuple[str, str, str], most: bool) -> Key:
    more, top, bottom = next(row for row in tables.ORDERS if row[0] == kind)
    superlative = top if most else bottom
    first, second, third = sorted_names
    answer = first if most else third
    names = "|".join(tables.NAMES)
    claim = re.compile(
        rf"\b({names}) is the {superlative}"
        rf"|{superlative}(?: of the three)? is ({names})"
    )
    relation = re.compile(rf"\b({names}) is {more} than ({names})")
    true = {(first, second), (second, third), (first, third)}

    def credit(response: str, words: str) -> float:
        claimed = {a or b for a, b in claim.findall(response)}
        if not claimed:  # a bare name is an answer too
            claimed = set(re.findall(names, response))
        honest = set(relation.findall(response)) <= true
        return float(claimed == {answer}) * (1.0 if honest else 0.5)

    forms = (f"{{}} is the {superlative}.", f"The {superlative} of the three is {{}}.")
    return Key(
        answers=tuple(form.format(answer) for form in forms),
        wrong=tuple(
            form.format(name)
            for name in sorted_names
            if name != answer
            for form in forms
        ),
        details=(
            f"{first} is {more} than {second}, and {second} is {more} than {third}.",
        ),
        short=answer,
        credit=credit,
    )


def _compare(more: str, ask: str, order: str, *names: str) -> Key:
    return _order(more, names, ask in {row[1] for row in tables.ORDERS})


def _compare_shown(more: str, ask: str, order: str, *names: str) -> tuple[str, ...]:
    first, second, third = names
    sentences = [
        f"{first} is {more} than {second}.",
        f"{second} is {more} than {third}.",
    ]
    if order == "backward":
        sentences.reverse()
    return (*sentences, ask)


def _one(table) -> tuple[tuple[str, ...], ...]:
    return tuple((entry,) for entry in table)


KINDS: dict[str, Kind] = {
    "opposite": Kind(
        "language",
        (
            "What is the opposite of {0}?",
            "Give me the opposite of the word {0}.",
            "Which word means the opposite of {0}?",
        ),
        _one(_OPPOSITE),
        _opposite,
    ),
    "plural": Kind(
        "language",
        ("What is the plural of {0}?", "Give me the plural of the word {0}."),
        _one(_PLURAL),
        _plural,
    ),
    "past": Kind(
        "language",
        ("What is the past tense of {0}?", "Give me the past tense of {0}."),
        _one(_PAST),
        _past,
    ),
    "capitals": Kind(
        "language",
        (
            "Write the word {0} in capital letters.",
            "Put the word {0} in capital letters.",
        ),
        _one(tables.WORDS),
        _capitals,
    ),
    "spelling": Kind(
        "language",
        ("How do you spell {0}?", "Spell the word {0} with dashes."),
        _one(tables.WORDS),
        _spelling,
    ),
    "luma_word": Kind(
        "translation",
        (
            "What is the Luma word for {0}?",
            "How do you say {0} in Luma?",
            "Translate the word {0} into Luma.",
        ),
        _one(_LUMA),
        _luma_word,
    ),
    "luma_sentence": Kind(
        "translation",
        (
            "Translate into Luma: the {0} {1} {2}.",
            "How do you say this in Luma: the {0} {1} {2}.",
        ),
        tuple(product(tables.LUMA_ADJECTIVES, tables.LUMA_NOUNS, tables.LUMA_VERBS)),
        _luma_sentence,
    ),
    "capital": Kind(
        "open_question",
        (
            "What is the capital of {0}?",
            "Which city is the capital of {0}?",
            "Tell me the capital of {0}.",
        ),
        _one(_COUNTRY),
        _capital,
    ),
    "home": Kind(
        "open_question",
        ("Where do {0} live?", "Tell me where {0} live."),
        _one(_ANIMAL),
        _home,
    ),
    "food": Kind(
        "open_question",
        ("What do {0} eat?", "Tell me what {0} eat."),
        _one(_ANIMAL),
        _food,
    ),
    "author": Kind(
        "open_question",
        ("Who wrote {0}?", "Tell me who wrote {0}.", "Who is the author of {0}?"),
        _one(_BOOK),
        _author,
    ),
    "poem": Kind(
        "writing",
        (
            "Write a short poem about {0}. Mention {1}.",
            "Write a poem about {0} and mention {1}.",
        ),
        tuple(product(tables.COUPLETS, tables.THINGS)),
        _poem,
        lambda topic, thing: (topic, with_article(thing)),
    ),
    "story": Kind(
        "writing",
        (
            "Tell me a short story about {0}. Mention {1}.",
            "Write a story about {0} and mention {1}.",
        ),
        tuple(product(tables.HEROES, tables.THINGS)),
        _story,
        lambda hero, thing: (with_article(hero), with_article(thing)),
    ),
    "role_play": Kind(
        "role_play",
        (
            "Pretend to be a {0} and {1}.",
            "Play the role of a {0} and {1}.",
            "Speak like a {0} and {1}.",
        ),
        tuple(product(_ROLE, _SCENE, tables.LISTENERS)),
        _role_play,
        lambda role, scene, person: (
            role,
            scene.format(listener=with_article(person)),
        ),
    ),
    "term": Kind(
        "professional",
        (
            "What does the word {0} mean in {1}?",
            "Explain the word {0} from {1}.",
            "In {1}, what is meant by {2}?",
            "What is {2} in {1}?",
            "Tell me what the word {0} means in {1}.",
            "I work in {1}. Explain what {2} is.",
        ),
        _one(_TERM),
        _term,
        lambda term: (term, _FIELD[term], _TERM[term][0]),
    ),
    "plus": Kind(
        "mathematics",
        ("What is {0} plus {1}?", "Add {0} and {1}.", "How much is {0} plus {1}?"),
        _SUMS,
        _plus,
    ),
    "minus": Kind(
        "mathematics",
        (
            "What is {0} minus {1}?",
            "Subtract {1} from {0}.",
            "How much is {0} minus {1}?",
        ),
        _DIFFERENCES,
        _minus,
    ),
    "gets": Kind(
        "mathematics",
        ("{0} has {2} {1} and gets {3} more. How many {1} does {0} have now?",),
        tuple((n, g, *s) for n, g, s in product(tables.NAMES, tables.GOODS, _SUMS)),
        _gets,
    ),
    "gives": Kind(
        "mathematics",
        ("{0} has {2} {1} and gives away {3}. How many {1} are left?",),
        tuple(
            (n, g, *d) for n, g, d in product(tables.NAMES, tables.GOODS, _DIFFERENCES)
        ),
        _gives,
    ),
    "compare": Kind(
        "logic",
        ("{0} {1} Who is the {2}?", "{0} {1} Tell me who is the {2}."),
        tuple(
            (more, ask, order, *names)
            for more, *asks in tables.ORDERS
            for ask in asks
            for order in ("forward", "backward")
            for names in permutations(tables.NAMES, 3)
        ),
        _compare,
        _compare_shown,
    ),
}
