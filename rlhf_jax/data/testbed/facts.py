"""Tasks with one right answer in a table: language, translation, facts, terms."""

from itertools import product

from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.kinds import (
    Key,
    Kind,
    from_table,
    one,
    only_token,
    says,
    spoken,
    wrong_answers,
)

# Fundamental language ability.

_OPPOSITE = {
    word: other for pair in tables.OPPOSITES for word, other in (pair, reversed(pair))
}
_PLURAL = dict(tables.PLURALS)
_PAST = dict(tables.PAST_TENSES)


def _opposite(word: str) -> Key:
    answer = _OPPOSITE[word]
    return from_table(
        answer,
        [other for other in _OPPOSITE if other != word],
        (f"the opposite of {word} is {{}}.", f"{{}} is the opposite of {word}."),
        (f"If something is {word}, it is not {answer}.",),
    )


def _plural(word: str) -> Key:
    answer = _PLURAL[word]
    return from_table(
        answer,
        _PLURAL.values(),
        (f"the plural of {word} is {{}}.",),
        (f"We say one {word} and two {answer}.",),
    )


def _past(word: str) -> Key:
    answer = _PAST[word]
    return from_table(
        answer,
        _PAST.values(),
        (f"the past tense of {word} is {{}}.",),
        (f"Today I {word}, and yesterday I {answer}.",),
    )


def _capitals(word: str) -> Key:
    others = wrong_answers(word, tables.WORDS)
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
        credit=only_token(word.upper(), r"\b[A-Z]{2,}\b"),
    )


# Translation.

_LUMA = tables.LUMA_ADJECTIVES | tables.LUMA_NOUNS | tables.LUMA_VERBS
_LUMA_WORDS = frozenset(_LUMA.values())


def _luma_word(word: str) -> Key:
    return from_table(
        _LUMA[word],
        _LUMA.values(),
        (f"the Luma word for {word} is {{}}.",),
        (f"The word {_LUMA[word]} means {word}.",),
    )


def _luma_sentence(adjective: str, noun: str, verb: str) -> Key:
    words = [_LUMA[adjective], _LUMA[noun], _LUMA[verb]]
    sentence = " ".join([tables.LUMA_THE, *words])

    def variants(position: int, table: dict[str, str]) -> list[str]:
        """Return the sentence with other words at this position."""
        return [
            " ".join(
                [tables.LUMA_THE, *words[:position], other, *words[position + 1 :]]
            )
            for other in wrong_answers(words[position], table.values(), 2)
        ]

    def credit(response: str, said: str) -> float:
        luma = _LUMA_WORDS.intersection(said.split())
        right = len(luma.intersection(words))
        share = max(0.0, (2 * right - len(luma)) / len(words))
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
    return from_table(
        city,
        [other for other, _ in _COUNTRY.values()],
        (f"the capital of {country} is {{}}.", f"{{}} is the capital of {country}."),
        (f"{country} is a country in {continent}.",),
    )


def _home(animal: str) -> Key:
    home, food = _ANIMAL[animal]
    homes = [other for other, _ in _ANIMAL.values()]
    return from_table(home, homes, (f"{animal} live {{}}.",), (f"They eat {food}.",))


def _food(animal: str) -> Key:
    home, food = _ANIMAL[animal]
    foods = [other for _, other in _ANIMAL.values()]
    return from_table(food, foods, (f"{animal} eat {{}}.",), (f"They live {home}.",))


def _author(book: str) -> Key:
    author, form = _BOOK[book]
    return from_table(
        author,
        [other for other, _ in _BOOK.values()],
        (f"{book} was written by {{}}.", f"{{}} wrote {book}."),
        (f"It is a famous {form}.",),
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
    exact = says(definition, definitions)
    content = set(spoken(definition).split()) - _SMALL_WORDS

    def credit(response: str, words: str) -> float:
        share = len(content.intersection(words.split())) / len(content)
        return max(exact(response, words), 0.5 * share * (share > 0.5))

    key = from_table(
        definition,
        definitions,
        (f"{named} is {{}}.", f"In {_FIELD[term]}, {named} is {{}}."),
        (f"For example, {example}.",),
    )
    return Key(key.answers, key.wrong, key.details, key.short, credit)


KINDS = {
    "opposite": Kind(
        "language",
        (
            "What is the opposite of {0}?",
            "Give me the opposite of the word {0}.",
            "Which word means the opposite of {0}?",
        ),
        one(_OPPOSITE),
        _opposite,
    ),
    "plural": Kind(
        "language",
        (
            "What is the plural of {0}?",
            "Give me the plural of the word {0}.",
            "Which word is the plural of {0}?",
        ),
        one(_PLURAL),
        _plural,
    ),
    "past": Kind(
        "language",
        (
            "What is the past tense of {0}?",
            "Give me the past tense of {0}.",
            "Which word is the past tense of {0}?",
        ),
        one(_PAST),
        _past,
    ),
    "capitals": Kind(
        "language",
        (
            "Write the word {0} in capital letters.",
            "Put the word {0} in capital letters.",
            "Show me the word {0} in capital letters.",
        ),
        one(tables.WORDS),
        _capitals,
    ),
    "luma_word": Kind(
        "translation",
        (
            "What is the Luma word for {0}?",
            "How do you say {0} in Luma?",
            "Translate the word {0} into Luma.",
        ),
        one(_LUMA),
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
        one(_COUNTRY),
        _capital,
    ),
    "home": Kind(
        "open_question",
        ("Where do {0} live?", "Tell me where {0} live.", "In what place do {0} live?"),
        one(_ANIMAL),
        _home,
    ),
    "food": Kind(
        "open_question",
        ("What do {0} eat?", "Tell me what {0} eat.", "What food do {0} eat?"),
        one(_ANIMAL),
        _food,
    ),
    "author": Kind(
        "open_question",
        (
            "Who wrote {0}?",
            "Tell me who wrote {0}.",
            "Who is the author of {0}?",
            "Name the author of {0}.",
        ),
        one(_BOOK),
        _author,
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
            "What do people in {1} mean by {2}?",
            "Can you explain the word {0} from {1}?",
        ),
        one(_TERM),
        _term,
        lambda term: (term, _FIELD[term], _TERM[term][0]),
    ),
}
