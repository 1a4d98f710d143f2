"""Sets in the published layouts in one folder, with numbers by hand."""

import gzip
import json

import pytest

from benchmarks.preference_data import measure, table
from benchmarks.preference_sets import preference_files, read_set

SHORT, LONG = "a short one", "an answer that goes on for some more words"
SHORT_ZH, LONG_ZH = "这是一个回答。", "这是一个很长很长很长很长很长的回答，说了很多话。"


def hh(question, chosen, rejected, **fields):
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected, **fields}


def pandalm(question, *votes, a=SHORT, b=LONG):
    row = {"instruction": question, "input": "", "response1": a, "response2": b}
    return row | {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}


SETS = {
    # The longer wins in three of four; balancing keeps one of each and the equal one.
    "hh": [
        *(hh(f"Q{i}", LONG, SHORT, tranche="base") for i in range(3)),
        hh("Q3", SHORT, LONG, tranche="online"),
        hh("Q4", "one two", "three four", tranche="online"),
    ],
    "llmbar": [
        {"input": f"Q{i}", "output_1": SHORT, "output_2": LONG, "label": label}
        | {"subset": subset}
        for i, (label, subset) in enumerate(
            [(1, "Adversarial/A"), (1, "Adversarial/B"), (2, "Natural")]
        )
    ],
    "pandalm": [
        pandalm("Q0", 2, 2, 1),
        pandalm("Q1", 1, 1, 1),
        pandalm("Q2", 0, 0, 2),
        pandalm("Q3", 2, 2, 2),
        pandalm("Q4", 2, 2, 2, b=True),  # not text: a bad record
    ],
    "qa_feedback": [
        {
            "question": "Q",
            "passages": [["Title", "Text."]],
            **{f"prediction {i}": "word " * i for i in (1, 2, 3)},
            "preference": [2, 0, 1],
        }
    ],
    "oasst_zh": [
        {"instruction": f"问题{i}？", "input": "", "output": [LONG_ZH, SHORT_ZH]}
        for i in range(2)
    ],
    "answers": [{"prompt": "Q", "completion": "no comparison"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, rows in SETS.items():
        (folder / name).mkdir()
        halves = {"train": rows[:1], "test": rows[1:]} if len(rows) > 1 else {"t": rows}
        for split, half in halves.items():
            text = "".join(json.dumps(row) + "\n" for row in half)
            (folder / name / f"{split}.jsonl.gz").write_bytes(
                gzip.compress(text.encode())
            )
    (folder / "notes.txt").write_text("no set\n")
    return folder


@pytest.fixture(scope="module")
def sets(folder):
    return measure(folder, ["tranche", "subset"], width=10)["sets"]


@pytest.mark.parametrize(
    ("name", "pairs", "equal", "longer_wins", "kept", "unit"),
    [
        ("hh", 5, 1, 0.75, 0.6, "words"),
        ("llmbar", 3, 0, 1 / 3, 2 / 3, "words"),
        ("pandalm", 3, 0, 2 / 3, 2 / 3, "words"),  # by majority; a tie is left out
        ("qa_feedback", 2, 0, 1.0 / 2, 1.0, "words"),
        ("oasst_zh", 2, 0, 1.0, 0.0, "characters"),
    ],
)
def test_each_set_by_hand(sets, name, pairs, equal, longer_wins, kept, unit):
    numbers = sets[name]
    before = numbers["before"]
    assert (before["pairs"], before["equal"]) == (pairs, equal)
    assert before["longer_wins"] == pytest.approx(longer_wins)
    assert before["low"] < before["longer_wins"] or longer_wins == 0
    assert numbers["kept"] == pytest.approx(kept)
    assert numbers["after"].get("longer_wins", 0.5) == 0.5
    assert numbers["unit"] == unit


def test_what_holds_no_comparisons_is_passed_over(sets):
    assert set(sets) == set(SETS) - {"answers"}


def test_parts_are_those_that_the_rows_name_and_their_beginnings(sets):
    parts = sets["llmbar"]["parts"]
    pairs = {name: part["before"]["pairs"] for name, part in parts.items()}
    assert pairs == {
        "Adversarial": 2,
        "Adversarial/A": 1,
        "Adversarial/B": 1,
        "Natural": 1,
    }
    assert parts["Adversarial"]["before"]["longer_wins"] == 0
    assert sets["hh"]["parts"]["online"]["before"]["longer_wins"] == 0
    assert sets["oasst_zh"]["parts"] == {}


def test_several_annotators_go_through_prepare_comparisons(sets):
    people = sets["pandalm"]["agreement"]["annotators"]
    assert [row["votes"] for row in people] == [4, 4, 4]
    chosen = {row["annotator"]: row["longer chosen"] for row in people}
    shares = {name: (x["count"], x["of"]) for name, x in chosen.items()}
    assert shares == {
        "annotator1": (2, 3),
        "annotator2": (2, 3),
        "annotator3": (2, 4),
    }
    assert -1 < sets["pandalm"]["agreement"]["alpha"]["of all annotators"] < 1
    assert "agreement" not in sets["hh"]
    assert sets["pandalm"]["left_out"] == {"bad record": 1}


def test_the_page_has_a_row_for_every_set_and_part(sets):
    page = table({"bucket_width": 10, "sets": sets})
    for start in ("| hh | 5 |", "| - Adversarial/B | 1 |", "| pandalm | annotator3 |"):
        assert f"\n{start}" in page
    assert "75.0%" in page and "alpha" in page


def test_a_folder_without_sets_is_refused_in_a_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no set\n")
    with pytest.raises(FileNotFoundError, match="holds no set of comparisons"):
        preference_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        preference_files(tmp_path / "nowhere")


def test_files_of_the_folder_itself_are_sets(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps(SETS["hh"][0]) + "\n")
    ((name, files),) = preference_files(tmp_path).items()
    assert name == "mine"
    assert len(read_set(files, []).comparisons) == 1
