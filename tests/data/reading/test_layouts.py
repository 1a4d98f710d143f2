"""Published layouts become comparisons; every pair left out has a reason."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.reading.layouts import LAYOUTS, comparisons_of, detect
from rlhf_jax.data.reading.preference_sets import read_comparisons

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"

USER = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}


def marked(*turns: str) -> str:
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[i % 2] + turn for i, turn in enumerate(turns))


# Every row says that "Blue." is better than "Green." as the answer to USER.
ROWS = {
    "dialogues": [
        {
            "chosen": marked(USER["content"], "Blue."),
            "rejected": marked(USER["content"], "Green."),
        }
    ],
    "text": [
        {"prompt": USER["content"], "chosen": " Blue.", "rejected": "Green."},
        {
            "prompt": marked(USER["content"], ""),
            "chosen": "Blue.",
            "rejected": "Green.",
        },
        {
            "instruction": "What colour is the sky?",
            "input": "",
            "chosen": "Blue.",
            "rejected": "Green.",
        },
        {
            "question": USER["content"],
            "chosen": "Blue.",
            "rejected": "Green.",
            "score_chosen": 9.0,
            "score_rejected": 2,
        },
    ],
    "messages": [
        {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},  # TRL, implicit prompt
        {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},  # TRL, explicit
        {  # UltraFeedback binarized
            "prompt": USER["content"],
            "chosen": [USER, BLUE],
            "rejected": [USER, GREEN],
            "messages": [USER, BLUE],
            "score_chosen": 8.5,
            "score_rejected": 8.0,
        },
        {  # as TFDS stores lists of objects
            "chosen": {
                "role": ["user", "assistant"],
                "content": [USER["content"], "Blue."],
            },
            "rejected": [USER, GREEN],
        },
        {  # LLaMA-Factory's sharegpt
            "conversations": [{"from": "human", "value": USER["content"]}],
            "chosen": {"from": "gpt", "value": "Blue."},
            "rejected": {"from": "gpt", "value": "Green."},
        },
    ],
    "scored": [
        {
            "instruction": USER["content"],
            "completions": [
                {"model": "x", "response": "Green.", "overall_score": 1.0},
                {"model": "y", "response": "Blue.", "overall_score": 7.5},
            ],
        },
        {
            "prompt": USER["content"],
            "responses": ["Blue.", "Green."],
            "scores": [0.3, -2],
        },
        {
            "prompt": [USER],
            "completions": {"text": ["Blue.", "Green."], "score": [3, 1]},
        },
    ],
    "ranked": [
        {
            "instruction": USER["content"],
            "input": "",
            "output": ["Blue.", "Green."],
            "history": [],
        }
    ],
    "llmbar": [
        {
            "input": USER["content"],
            "output_1": "Green.",
            "output_2": "Blue.",
            "label": 2,
        }
    ],
    "pandalm": [
        {
            "instruction": "What colour",
            "input": "is the sky?",
            "response1": "Blue.",
            "response2": "Green.",
            "annotator1": 1,
        }
    ],
    "qa_feedback": [
        {
            "question": "What colour is it?",
            "passages": [["Sky", "It is above."]],
            "prediction 1": "Blue.",
            "prediction 2": "Green.",
            "preference": [1],
        }
    ],
}
PROMPTS = {
    "pandalm": "What colour\n\nis the sky?",
    "qa_feedback": "Sky It is above.\n\nWhat colour is it?",
}
CASES = [(layout, row) for layout, rows in ROWS.items() for row in rows]


@pytest.mark.parametrize(("layout", "row"), CASES)
def test_a_row_is_known_by_its_fields_and_becomes_a_comparison(layout, row):
    assert detect(row) == layout
    (comparison,), left_out = comparisons_of(row)
    assert left_out == Counter()
    assert (comparison.chosen, comparison.rejected) == ("Blue.", "Green.")
    assert [m["role"] for m in comparison.prompt.messages] == ["user"]
    assert comparison.prompt.messages[0]["content"] == PROMPTS.get(
        layout, USER["content"]
    )
    assert comparisons_of(row, layout) == ([comparison], left_out)


def test_every_layout_has_an_example():
    assert set(ROWS) == set(LAYOUTS)


def test_equal_prompts_have_equal_ids_in_every_layout():
    ids = {
        comparisons_of(row)[0][0].prompt.id
        for layout, row in CASES
        if layout not in PROMPTS
    }
    assert len(ids) == 1


def test_system_and_history_stand_before_the_prompt():
    row = ROWS["ranked"][0] | {"system": "Be brief.", "history": [["Hi", "Hello"]]}
    (comparison,), _ = comparisons_of(row)
    assert [(m["role"], m["content"]) for m in comparison.prompt.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", USER["content"]),
    ]


def test_every_pair_of_several_scored_responses_is_compared():
    row = {"prompt": "x", "responses": ["a", "b", "c"], "scores": [1, 3, 1]}
    comparisons, _ = comparisons_of(row)
    found = [(c.response_a, c.response_b, c.preference) for c in comparisons]
    assert found == [("a", "b", "b"), ("a", "c", "tie"), ("b", "c", "a")]


def test_every_annotator_has_a_comparison():
    row = ROWS["pandalm"][0] | {"annotator2": 0, "annotator3": "2"}
    comparisons, _ = comparisons_of(row)
    assert [(c.annotator, c.preference) for c in comparisons] == [
        ("annotator1", "a"),
        ("annotator2", "tie"),
        ("annotator3", "b"),
    ]


TEXT = ROWS["text"][0]
DIALOGUE = {"chosen": marked("Hi", "Hello!"), "rejected": marked("Hi", "Go away.")}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (DIALOGUE | {"rejected": marked("Hey", "Hello!")}, "prompts differ"),
        (DIALOGUE | {"rejected": marked("Hi", "")}, "empty response"),
        (DIALOGUE | {"rejected": DIALOGUE["chosen"]}, "identical responses"),
        (
            {name: marked("Hi") + DIALOGUE[name] for name in DIALOGUE},
            "roles do not alternate",
        ),
        (
            {name: DIALOGUE[name] + marked("Hm") for name in DIALOGUE},
            "no response at the end",
        ),
        ({"chosen": marked("Hi"), "rejected": marked("Hi")}, "no response at the end"),
        ({"chosen": "", "rejected": ""}, "no response at the end"),
        (TEXT | {"prompt": " "}, "empty prompt"),
        (TEXT | {"chosen": " "}, "empty response"),
        (
            TEXT | {"score_chosen": 1, "score_rejected": 2},
            "scores contradict the choice",
        ),
        (
            {"prompt": [USER, BLUE], "chosen": [BLUE], "rejected": [GREEN]},
            "roles do not alternate",
        ),
    ],
)
def test_a_pair_that_is_no_comparison_is_left_out_with_its_reason(row, reason):
    comparisons, left_out = comparisons_of(row)
    assert (comparisons, left_out) == ([], {reason: 1})


def test_equal_scores_are_a_tie():
    row = TEXT | {"score_chosen": 5, "score_rejected": 5.0}
    assert [c.preference for c in comparisons_of(row)[0]] == ["tie"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (TEXT | {"rejected": None}, "rejected"),
        (TEXT | {"prompt": 3}, "prompt"),
        (TEXT | {"score_chosen": "9", "score_rejected": 1}, "score_chosen"),
        ({"chosen": [USER, "x"], "rejected": [USER, GREEN]}, "chosen[1]"),
        ({"chosen": [], "rejected": [USER, GREEN]}, "chosen"),
        (
            {"chosen": [{"role": "boss", "content": "x"}], "rejected": [GREEN]},
            "chosen[0].role",
        ),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "prompt"),
        ({"prompt": "x", "responses": ["a", 3], "scores": [1, 2]}, "responses"),
        ({"prompt": "x", "responses": ["a", "b"], "scores": [1]}, "scores"),
        (
            {"prompt": "x", "completions": [{"response": "a"}]},
            "completions[0].overall_score",
        ),
        (ROWS["ranked"][0] | {"history": [[1, 2]]}, "history[0]"),
        (ROWS["llmbar"][0] | {"label": True}, "label"),
        (ROWS["llmbar"][0] | {"label": 3}, "label"),
        (ROWS["pandalm"][0] | {"annotator2": None}, "annotator2"),
        (ROWS["qa_feedback"][0] | {"preference": [1, 2]}, "preference"),
        (ROWS["qa_feedback"][0] | {"passages": ["x"]}, "passages[0]"),
        ({"text": "x"}, ""),
    ],
)
def test_a_field_of_a_wrong_type_is_named(row, field):
    with pytest.raises(RecordError) as error:
        comparisons_of(row)
    assert error.value.field == field


def test_an_unknown_layout_lists_the_known():
    with pytest.raises(RecordError, match=r"has the fields text; .*scored"):
        comparisons_of({"text": "x"})


names = st.sampled_from(
    sorted(
        {name for _, row in CASES for name in row}
        | {"role", "content", "history", "system", "score", "response"}
    )
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    layout=st.sampled_from(["", *LAYOUTS]),
    base=st.sampled_from([row for _, row in CASES]),
    change=st.dictionaries(names, values, max_size=4),
    gone=st.sets(names, max_size=2),
)
def test_any_row_gives_pairs_reasons_or_a_record_error(layout, base, change, gone):
    row = {name: item for name, item in (base | change).items() if name not in gone}
    try:
        comparisons, left_out = comparisons_of(row, layout)
    except RecordError:
        return
    for c in comparisons:
        assert c.response_a.strip() and c.response_b.strip()
        assert c.prompt.messages[-1]["role"] == "user"
    assert all(count > 0 for count in left_out.values())


PUBLISHED = {  # rows, bad rows, pairs as their README counts them, known faults
    ("hh_rlhf_helpful", "train"): (4700, 0, 4700, {"identical responses"}),
    ("hh_rlhf_helpful", "test"): (319, 0, 319, {"identical responses"}),
    ("hh_rlhf_harmless", "train"): (
        1599,
        0,
        1599,
        {"prompts differ", "empty response"},
    ),
    ("hh_rlhf_harmless", "test"): (201, 0, 201, {"prompts differ"}),
    ("oasst1_zh_ranked", "train"): (531, 0, 1225, {"identical responses"}),
    ("oasst1_zh_ranked", "test"): (68, 0, 171, set()),
    ("pandalm_human", "test"): (720, 6, 3 * 714, {"empty response"}),
    ("qa_feedback", "train"): (390, 0, 2340, set()),
    ("llmbar", "test"): (885, 0, 885, {"empty response"}),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published sets are not at hand")
@pytest.mark.parametrize(("name", "split"), PUBLISHED)
def test_published_sets_load_whole_with_their_known_faults_counted(
    tmp_path, name, split
):
    rows, bad, pairs, faults = PUBLISHED[name, split]
    report = tmp_path / "bad.jsonl"
    comparisons, counts = read_comparisons(
        str(SHARED / name), split, on_bad_record="skip", report=report
    )
    assert counts["rows"] == rows - bad
    assert counts["pairs"] == pairs
    dropped = {name: n for name, n in counts.items() if name.startswith("left out: ")}
    assert len(comparisons) + sum(dropped.values()) == pairs
    assert {f"left out: {fault}" for fault in faults} <= set(dropped)
    assert len(comparisons) > 0.9 * pairs
    listed = report.read_text().splitlines() if report.exists() else []
    assert len(listed) == bad
