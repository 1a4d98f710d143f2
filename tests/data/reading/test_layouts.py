"""Published layouts become records; what is left out has a reason, and what is not used
a name."""

import json
from collections import Counter
from math import nan
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_jax.data.reading.data_sets import read_data_set
from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.reading.layout_readers import LAYOUTS
from rlhf_jax.data.reading.layouts import (
    comparisons_of,
    detect,
    prompt_in,
    read_as,
    records_of,
)
from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    to_json,
)

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
        },
        {  # without the blank lines at the start
            "chosen": marked(USER["content"], "Blue.").strip(),
            "rejected": marked(USER["content"], "Green.").strip(),
        },
        {  # without blank lines
            "chosen": marked(USER["content"], "Blue.").replace("\n\n", "\n"),
            "rejected": marked(USER["content"], "Green.").replace("\n\n", "\n"),
        },
        {  # with blanks in them
            "chosen": marked(USER["content"], "Blue.").replace("\n\n", "\n \n"),
            "rejected": marked(USER["content"], "Green.").replace("\n\n", "\n \n"),
        },
        {
            "chosen": marked(USER["content"], "Blue.").replace("\n", "\r\n"),
            "rejected": marked(USER["content"], "Green.").replace("\n", "\r\n"),
        },
    ],
    "text": [
        {"prompt": USER["content"], "chosen": " Blue.", "rejected": "Green."},
        {
            "prompt": marked(USER["content"], ""),
            "chosen": "Blue.",
            "rejected": "Green.",
        },
        {
            "prompt": marked(USER["content"], "").replace("\n\n", "\n"),
            "chosen": "Blue.",
            "rejected": "Green.",
        },
        {  # the mark that asks for the answer begins it
            "prompt": marked(USER["content"]),
            "chosen": "\n\nAssistant: Blue.",
            "rejected": "\n\nAssistant: Green.",
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
        {"input": USER["content"], "chosen": "Blue.", "rejected": "Green."},
        {  # the prompt in a field and in both texts
            "prompt": USER["content"],
            "chosen": marked(USER["content"], "Blue."),
            "rejected": marked(USER["content"], "Green."),
        },
    ],
    "message_pairs": [
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
    "comparison": [
        {
            "version": 1,
            "prompt": {"messages": [USER]},
            "response_a": "Green.",
            "response_b": "Blue.",
            "preference": "b",
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


ASKED = Prompt("", (USER,))
OTHERS = {  # rows without a pair: what each becomes, but for a prompt's id
    "messages": [
        ({"messages": [USER, BLUE]}, Dialogue((USER, BLUE))),  # TRL
        (
            {"messages": [USER, BLUE], "intent": "sky", "version": 1},
            Dialogue((USER, BLUE), "sky"),
        ),
        ({"id": "p", "messages": [USER], "task": {"a": 1}}, ASKED),
        (
            {
                "conversations": [
                    {"from": "human", "value": USER["content"]},
                    {"from": "gpt", "value": "Blue."},
                ]
            },
            Dialogue((USER, BLUE)),
        ),
        ({"conversations": [USER]}, ASKED),
    ],
    "completion": [
        ({"prompt": USER["content"], "completion": " Blue."}, Dialogue((USER, BLUE))),
        ({"prompt": [USER], "completion": [BLUE]}, Dialogue((USER, BLUE))),
        (
            {"instruction": "What colour", "input": "is the sky?", "output": "Blue."},
            Dialogue(({**USER, "content": "What colour\n\nis the sky?"}, BLUE)),
        ),
        (
            {"instruction": USER["content"], "response": "Blue."},
            Dialogue((USER, BLUE)),
        ),
    ],
    "prompt": [
        ({"prompt": USER["content"]}, ASKED),
        ({"prompt": [USER]}, ASKED),
        ({"question": USER["content"]}, ASKED),
    ],
}


@pytest.mark.parametrize(
    ("layout", "row", "record"),
    [(layout, row, x) for layout, rows in OTHERS.items() for row, x in rows],
)
@pytest.mark.parametrize("context", ["", "Be brief."])
def test_a_row_without_a_pair_is_a_dialogue_or_a_prompt(layout, row, record, context):
    assert detect(row) == layout
    ((found,), left_out, unused) = records_of(row | {"system": context})
    assert (left_out, unused) == ({}, set())
    system = ({"role": "system", "content": context},) if context else ()
    assert type(found) is type(record)
    assert found.messages == system + record.messages
    assert found.intent == record.intent
    if isinstance(found, Prompt):
        assert found.id == row.get("id", found.id) != ""
        assert found.task == row.get("task")
    assert read_as(row | {"system": context}, type(found)).records == [found]
    with pytest.raises(RecordError, match="not a comparison, which needs chosen and"):
        comparisons_of(row)


def test_every_layout_has_an_example():
    assert set(ROWS) | set(OTHERS) == set(LAYOUTS)


def test_equal_prompts_have_equal_ids_in_every_layout():
    ids = {
        comparisons_of(row)[0][0].prompt.id
        for layout, row in CASES
        if layout not in PROMPTS
    }
    assert len(ids) == 1


SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(("layout", "row"), CASES)
@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("history", [[["Hi", "Hello"]], EARLIER])
def test_system_and_history_stand_before_the_prompt_in_every_layout(
    layout, row, name, history
):
    (comparison,), _, unused = records_of(row | {name: "Be brief.", "history": history})
    *context, asked = comparison.prompt.messages
    assert context == [SYSTEM, *EARLIER]
    assert asked["content"] == PROMPTS.get(layout, USER["content"])
    assert not unused & {name, "history"}


def test_a_system_text_that_stands_twice_is_used_once_and_two_are_refused():
    row = {"chosen": [SYSTEM, USER, BLUE], "rejected": [SYSTEM, USER, GREEN]}
    (comparison,), _ = comparisons_of(row | {"system": " Be brief."})
    assert comparison.prompt.messages == (SYSTEM, USER)
    for other in ({"system": "x"}, {"system": "Be brief.", "system_prompt": "x"}):
        with pytest.raises(RecordError, match="differs from another system text"):
            comparisons_of(row | other)


@pytest.mark.parametrize("tools", [[{"name": "weather"}], '[{"name": "weather"}]'])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_tools_of_a_row_stand_in_the_systems_message(tools, system):
    row = {"messages": [USER, BLUE], "tools": tools, "system": system}
    (dialogue,), _, unused = records_of(row)
    assert dialogue.messages[0] == {
        "role": "system",
        "content": system or "",
        "tools": [{"name": "weather"}],
    }
    assert not unused


@pytest.mark.parametrize(
    "row",
    [
        TEXT_ROW | {"messages": [USER], "label": 3, "prompt_id": "x"}
        for TEXT_ROW in (ROWS["text"][0], ROWS["message_pairs"][1])
    ],
)
def test_a_field_that_is_not_used_is_named(row):
    assert records_of(row).unused == {"messages", "label", "prompt_id"}


@pytest.mark.parametrize(
    ("row", "kind", "unused"),
    [
        ({"messages": [USER, BLUE | {"weight": 0}]}, Dialogue, "messages[].weight"),
        ({"messages": [USER | {"name": "Bo"}]}, Prompt, "messages[].name"),
        (
            {"prompt": "x", "completion": [BLUE | {"reasoning_content": "Hm."}]},
            Dialogue,
            "completion[].reasoning_content",
        ),
        (
            {
                "prompt": {"messages": [USER | {"name": "Bo"}]},
                "response_a": "x",
                "response_b": "y",
                "preference": "a",
            },
            Comparison,
            "prompt[].name",
        ),
    ],
)
def test_what_a_message_holds_that_no_record_keeps_is_named(row, kind, unused):
    assert read_as(row, kind).unused == {unused}
    nulls = [BLUE | {"weight": None, "name": "", "tool_calls": [], "metadata": "x"}]
    assert not read_as({"messages": [USER, *nulls]}, Dialogue).unused


def test_what_a_message_holds_beside_its_text_is_carried():
    call = {"role": "assistant", "content": "call()", "metadata": "weather"}
    seen = {"role": "observation", "content": "3"}
    offer = SYSTEM | {"tools": [{"name": "weather"}]}
    nulls = {**BLUE, "metadata": None, "tools": None}
    row = {"messages": [offer, USER, call, seen, nulls]}
    (dialogue,), left_out, _ = records_of(row)
    assert dialogue.messages == (offer, USER, call, seen, BLUE)
    assert left_out == {}
    pair = {"chosen": [offer, USER, BLUE], "rejected": [offer, USER, call]}
    assert records_of(pair).left_out == {"a response that calls a tool": 1}
    long = {"chosen": [USER, call, seen, BLUE], "rejected": [USER, call, seen, GREEN]}
    assert records_of(long).left_out == {"a response to a tool": 1}


@pytest.mark.parametrize(
    ("row", "kind", "records"),
    [
        (ROWS["text"][0], Dialogue, [Dialogue((USER, BLUE))]),
        (ROWS["text"][0] | {"score_chosen": 1, "score_rejected": 1}, Dialogue, []),
        ({"messages": [USER, BLUE], "extra": 1}, Dialogue, [Dialogue((USER, BLUE))]),
        (
            {
                "messages": [
                    {"from": "human", "value": USER["content"]},
                    {"role": "gpt", "content": "Blue."},
                ]
            },
            Dialogue,
            [Dialogue((USER, BLUE))],
        ),
    ],
)
def test_a_row_is_read_as_the_kind_that_is_asked_for(row, kind, records):
    assert read_as(row, kind).records == records


def test_a_row_that_does_not_hold_the_kind_is_refused():
    with pytest.raises(RecordError, match="must end with the user"):
        read_as({"messages": [USER, BLUE]}, Prompt)
    with pytest.raises(RecordError, match="must end with the assistant"):
        read_as({"prompt": "x"}, Dialogue)
    with pytest.raises(RecordError, match="is a prompt, not a comparison"):
        read_as({"prompt": "x"}, Comparison)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER["content"], "chosen": "x"},
        {"messages": [USER]},
        {x: marked(USER["content"], x) for x in ("chosen", "rejected")},
        {"id": "p", "messages": [USER], "prompt": "another"},
    ],
)
def test_the_prompt_of_any_row_can_be_taken(row):
    (prompt,), _, _ = prompt_in(row | {"kind": "sky", "note": 1}, "kind")
    assert prompt.messages == (USER,)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER]},
        {"prompt": USER["content"]},
        {"system": "", "messages": [USER]},
        {"question": USER["content"], "tools": None},
    ],
)
def test_a_prompt_keeps_its_reference_and_all_fields_that_a_checker_may_read(row):
    more = {"reference": 7, "answer": [7], "schema": {"type": "number"}, "none": None}
    expected = {"answer": [7], "schema": {"type": "number"}}
    for read in (
        read_as(row | more, Prompt),
        prompt_in(row | more, "kind"),
        records_of(row | more),
    ):
        (prompt,) = read.records
        assert (prompt.reference, prompt.extra) == ("7", expected)
        assert not read.unused - {"none"}
        line = json.loads(json.dumps(prompt, default=to_json))
        assert line["answer"] == [7] and "extra" not in line
        assert read_as(line, Prompt).records == [prompt]


@pytest.mark.parametrize("reference", [True, [7], {"answer": 7}])
def test_a_reference_is_a_text_or_a_number(reference):
    with pytest.raises(RecordError, match="'reference' must be text, not"):
        read_as({"messages": [USER], "reference": reference}, Prompt)


def test_every_pair_of_several_scored_responses_is_compared():
    row = {"prompt": "x", "responses": ["a", "b", "c"], "scores": [1, 3, 1]}
    comparisons, _ = comparisons_of(row)
    found = [(c.response_a, c.response_b, c.preference) for c in comparisons]
    assert found == [("a", "b", "b"), ("a", "c", "tie"), ("b", "c", "a")]


def test_every_annotator_who_voted_has_a_comparison():
    row = ROWS["pandalm"][0] | {"annotator2": 0, "annotator3": "2", "annotator4": None}
    comparisons, _ = comparisons_of(row | {"annotator5": "1.0", "annotator6": 2.0})
    assert [(c.annotator, c.preference) for c in comparisons] == [
        ("annotator1", "a"),
        ("annotator2", "tie"),
        ("annotator3", "b"),
        ("annotator5", "a"),
        ("annotator6", "b"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        ROWS["pandalm"][0] | {"annotator1": None},
        ROWS["pandalm"][0] | {"annotator1": " "},
        ROWS["qa_feedback"][0] | {"preference": [None]},
    ],
)
def test_a_pair_without_a_vote_is_left_out(row):
    assert comparisons_of(row) == ([], {"no vote": 1})


@pytest.mark.parametrize("score", [7, 7.5, "7", " 7.5", "75e-1", "+.5"])
def test_a_score_may_be_the_text_of_a_number(score):
    row = TEXT | {"score_chosen": score, "score_rejected": "-1"}
    assert len(comparisons_of(row)[0]) == 1


def test_a_null_is_no_field():
    nulls = dict.fromkeys(name for _, row in CASES for name in row)
    for layout, row in CASES:
        if layout != "pandalm":  # annotators are fields of any number
            assert detect(nulls | row) == layout
            assert comparisons_of(nulls | row) == comparisons_of(row)


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
        ({"messages": [USER, BLUE | {"content": " "}]}, "empty response"),
        ({"messages": [BLUE]}, "empty prompt"),
        ({"messages": [USER, USER, BLUE]}, "roles do not alternate"),
        ({"prompt": " "}, "empty prompt"),
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
    assert records_of(row)[:2] == ([], {reason: 1})


def test_equal_scores_are_a_tie():
    row = TEXT | {"score_chosen": 5, "score_rejected": 5.0}
    assert [c.preference for c in comparisons_of(row)[0]] == ["tie"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (TEXT | {"rejected": None}, "rejected"),
        (TEXT | {"prompt": 3}, "prompt"),
        (TEXT | {"score_chosen": "nan", "score_rejected": 1}, "score_chosen"),
        (TEXT | {"score_chosen": "1_0", "score_rejected": 1}, "score_chosen"),
        (TEXT | {"score_chosen": True, "score_rejected": 1}, "score_chosen"),
        ({"chosen": "no marks", "rejected": "here"}, "chosen"),
        ({"prompt": "x", "completion": "y", "label": False}, "label"),
        ({"messages": [USER, BLUE | {"tool_calls": [1]}]}, "messages[1].tool_calls"),
        ({"messages": [USER, BLUE | {"metadata": 1}]}, "messages[1].metadata"),
        ({"messages": [USER | {"tools": "x"}, BLUE]}, "messages[0].tools"),
        ({"messages": [USER, SYSTEM]}, "messages"),
        ({"messages": [USER, BLUE], "version": 2}, "version"),
        (TEXT | {"tools": "weather"}, "tools"),
        (ROWS["ranked"][0] | {"history": [["Hi", "Hello", "Hm"]]}, "history[0]"),
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
        (ROWS["pandalm"][0] | {"annotator2": 0.5}, "annotator2"),
        (ROWS["qa_feedback"][0] | {"preference": [1, 2]}, "preference"),
        (ROWS["qa_feedback"][0] | {"passages": ["x"]}, "passages[0]"),
        ({"text": "x"}, ""),
    ],
)
def test_a_field_of_a_wrong_type_is_named(row, field):
    with pytest.raises(RecordError) as error:
        records_of(row)
    assert error.value.field == field


@pytest.mark.parametrize("row", [TEXT | {"chosen": 5}, TEXT | {"rejected": 5.0}])
def test_an_answer_that_is_a_number_is_called_so(row):
    with pytest.raises(RecordError, match="must be text, not number"):
        comparisons_of(row)


def test_another_layout_than_the_fields_look_like_is_named():
    row = {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    with pytest.raises(RecordError, match="look like message_pairs, not layout='mess"):
        comparisons_of(row, "messages")


def test_an_unknown_layout_lists_the_known():
    with pytest.raises(RecordError, match=r"has the fields text\. A text .*scored"):
        comparisons_of({"text": "x"})


names = st.sampled_from(
    sorted(
        {name for _, row in CASES for name in row}
        | {"role", "content", "history", "system", "score", "response", "tools"}
        | {"messages", "completion", "label", "metadata", "version", "id"}
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
@example(
    layout="",
    base={"messages": [USER], "task": {"a": 1}},
    change={"n": nan},
    gone=set(),
)
@given(
    layout=st.sampled_from(["", *LAYOUTS]),
    base=st.sampled_from(
        [row for _, row in CASES] + [row for rows in OTHERS.values() for row, _ in rows]
    ),
    change=st.dictionaries(names, values, max_size=4),
    gone=st.sets(names, max_size=2),
)
def test_any_row_gives_pairs_reasons_or_a_record_error(layout, base, change, gone):
    row = {name: item for name, item in (base | change).items() if name not in gone}
    try:
        records, left_out, _ = records_of(row, layout)
    except RecordError:
        return
    for record in records:
        # It can be written, and read as it was. NaN is equal to nothing.
        line = json.dumps(record, default=to_json)
        assert repr(type(record).from_json(json.loads(line))) == repr(record)
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
    comparisons, counts = read_data_set(
        str(SHARED / name), split, on_bad_record="skip", report=report
    )
    assert counts["rows"] == rows - bad
    assert counts["pairs"] == len(comparisons)
    dropped = {name: n for name, n in counts.items() if name.startswith("left out: ")}
    assert len(comparisons) + sum(dropped.values()) == pairs
    assert {f"left out: {fault}" for fault in faults} <= set(dropped)
    assert len(comparisons) > 0.9 * pairs
    listed = report.read_text().splitlines() if report.exists() else []
    assert len(listed) == bad
