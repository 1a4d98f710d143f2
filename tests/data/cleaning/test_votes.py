import numpy as np

from rlhf_jax.data.cleaning.votes import UNNAMED, read_votes
from rlhf_jax.data.records import Comparison, Prompt

PROMPT = Prompt("p", ({"role": "user", "content": "Say something."},))


def vote(a, b, preference="a", annotator="", **fields):
    return Comparison(PROMPT, a, b, preference, annotator, **fields)


def lengths(texts):
    return map(len, texts)


def test_a_pair_reads_the_same_whichever_way_round_it_was_stored():
    columns = read_votes(
        [
            vote("x", "yy", "a", shown_first="b", info={"known_answer": "a"}),
            vote("yy", "x", "b", shown_first="a", info={"known_answer": "b"}),
        ],
        lengths,
    )
    for name in ("one", "other", "pair", "verdict", "shown_first", "known"):
        column = getattr(columns, name)
        assert column[0] == column[1], name
    chosen = columns.one if columns.verdict[0] > 0 else columns.other
    assert columns.lengths[chosen].tolist() == [1, 1]  # "x"
    assert columns.verdict[0] == columns.known[0] == -columns.shown_first[0] != 0


def test_every_distinct_response_is_measured_once_and_stripped():
    measured = []

    def measure(texts):
        measured.extend(texts)
        return map(len, texts)

    columns = read_votes(
        [vote("x", "yy"), vote(" yy\n", "zzz"), vote("x", "")], measure
    )
    assert sorted(measured) == ["", "x", "yy", "zzz"]
    both = np.stack([columns.one, columns.other])
    assert np.sort(columns.lengths[both], axis=0).T.tolist() == [[1, 2], [2, 3], [0, 1]]
    assert columns.empty.tolist() == [False, False, True]


def test_more_texts_than_a_batch_are_all_measured():
    texts = [str(number) for number in range(10_000)]
    sizes = []

    def measure(batch):
        sizes.append(len(batch))
        return map(int, batch)

    pairs = list(zip(texts[::2], texts[1::2], strict=True)) * 2
    columns = read_votes([vote(a, b) for a, b in pairs], measure)
    assert sum(sizes) == 10_000 and max(sizes) < 5_000 and len(sizes) == 3
    assert (
        np.abs(columns.lengths[columns.one] - columns.lengths[columns.other]).max() == 1
    )
    assert sorted(columns.lengths) == list(range(10_000))


def test_names_are_sorted_and_a_missing_one_is_unnamed():
    names = ["bob", "", "a\0", "a", "bob"]
    columns = read_votes([vote("x", "y", annotator=name) for name in names], lengths)
    assert columns.annotators == ["a", "a\0", "bob"]
    assert columns.annotator.tolist() == [2, UNNAMED, 1, 0, 2]


def test_what_is_not_said_speaks_for_neither_response():
    columns = read_votes([vote("x", "y", "tie")], lengths)
    for name in ("verdict", "shown_first", "known"):
        assert getattr(columns, name).tolist() == [0], name


def test_pairs_have_one_number_each():
    pairs = ["ab", "ac", "bc", "ad", "bd", "cd", "ba", "dc"]
    numbers = read_votes([vote(a, b) for a, b in pairs], lengths).pair
    assert len(set(numbers)) == 6
    assert (numbers[6], numbers[7]) == (numbers[0], numbers[5])


def test_a_conversation_has_its_place_by_its_first_question():
    def place(*messages):
        said = tuple({"role": role, "content": text} for role, text in messages)
        record = Comparison(Prompt("p", said), "x", "y", "a")
        return read_votes([record], lengths).conversation[0]

    first = ("user", "Say something.")
    assert place(first) == place(("system", "Be kind."), first)
    assert place(first) == place(first, ("assistant", "So."), ("user", "More."))
    places = [place(("user", str(number))) for number in range(200)]
    assert 0 <= min(places) < 0.1 and 0.9 < max(places) < 1


def test_only_a_and_b_are_known_answers():
    infos = [None, {}, {"known_answer": None}, {"known_answer": "tie"}]
    infos += [{"known_answer": 1}, {"known_answer": ["a"]}]
    columns = read_votes([vote("x", "y", info=info) for info in infos], lengths)
    assert not columns.known.any()


def test_half_a_character_is_text_too():
    columns = read_votes([vote("\ud800", "y")], lengths)
    assert not columns.empty.any()


def test_no_comparisons_make_empty_columns():
    columns = read_votes([], lengths)
    assert len(columns.pair) == len(columns.lengths) == 0
