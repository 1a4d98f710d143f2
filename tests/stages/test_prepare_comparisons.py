"""From files to files: what is written is what was cleaned and balanced, and every
comparison that came in is accounted for."""

import ast
import gzip
import json
from pathlib import Path

import pytest

from configs import prepare_comparisons as config_file
from rlhf_jax.data.reading import json_lines
from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.records import (
    Comparison,
    Prompt,
    read_records,
    to_json,
    write_records,
)
from rlhf_jax.stages import prepare_comparisons

HARMLESS = Path(__file__).parents[2] / ".." / "shared" / "data" / "hh_rlhf_harmless"
SIDES = ("chosen", "rejected")


def vote(prompt, a, b, preference="a", annotator="", **fields):
    record = Prompt("id", ({"role": "user", "content": f"Question {prompt}"},))
    return Comparison(record, a, b, preference, annotator, **fields)


def question(comparison):
    return comparison.prompt.messages[0]["content"]


def lopsided(count, longer=2):
    """Pairs of which `longer` in three prefer the longer response."""
    texts = "a short one", "an answer that goes on for some more words"
    return [vote(i, *texts, "b" if i % 3 < longer else "a") for i in range(count)]


@pytest.fixture
def prepare(tmp_path):
    """`prepare(comparisons, test_share=0.5)`: run the stage; returns its workdir."""

    def run(comparisons, name="out", **fields):
        if not isinstance(comparisons, str):
            path = tmp_path / "comparisons.jsonl"
            write_records(path, comparisons)
            comparisons = str(path)
        config = config_file.get_config()
        config.vocab_size = 300
        config.test_share = 0.0
        config.update(fields, comparisons=comparisons)
        prepare_comparisons.run(config, str(tmp_path / name))
        return tmp_path / name

    return run


def out(folder, name="comparisons"):
    path = folder / f"{name}.jsonl"
    return read_records(path, Comparison) if path.read_text() else []


def report(folder):
    return json.loads((folder / "report.json").read_text())


def funnel(folder):
    return {row["step"]: row["comparisons"] for row in report(folder)["comparisons"]}


def test_what_comes_in_goes_out_or_is_counted(prepare):
    comparisons = [
        *lopsided(30),
        vote("tie", "x", "y", "tie"),
        vote("empty", "x", " "),
        vote("twins", "x", "x "),
        *(vote("split", "x", "y", choice, choice) for choice in "ab"),
        *(vote("agreed", "x", "y", "a", name) for name in ("ann", "bob")),
    ]
    folder = prepare(comparisons)
    found = funnel(folder)
    assert found == {
        "in": 37,
        "dropped: empty response": 1,
        "dropped: identical responses": 1,
        "dropped: tie": 1,
        "dropped: annotators disagree": 2,
        "dropped: same verdict, merged": 1,
        "dropped: length balance": 10,
        "held out": 0,
        "out": 21,
    }
    kept = out(folder)
    assert len(kept) == 21
    (agreed,) = (c for c in kept if question(c) == "Question agreed")
    assert agreed.info["votes"]["for"] == ["ann", "bob"]
    assert all(c in comparisons for c in kept if c is not agreed)


def test_the_report_shows_the_bias_and_that_it_is_gone(prepare, capsys):
    folder = prepare(lopsided(30))
    length = report(folder)["length"]
    assert length["cleaned"]["longer_is_better"] == pytest.approx(2 / 3)
    assert length["balanced"]["longer_is_better"] == 0.5
    (bucket,) = report(folder)["length balance"]
    assert (bucket["better is longer"], bucket["better is shorter"]) == (20, 10)
    assert bucket["kept of each"] == 10
    text = (folder / "report.md").read_text()
    assert "| dropped: length balance | 10 | 33.3% |" in text
    assert "(length_difference.png)" in text
    assert (folder / "length_difference.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "dropped: length balance" in printed and "66.7%" in printed


def test_conversations_are_held_out_whole_and_are_not_balanced(prepare):
    comparisons = lopsided(60, longer=3)  # nothing of this survives balancing
    comparisons += [vote(i, "one", "two") for i in range(60)]
    folder = prepare(comparisons, test_share=0.3)
    train, test = out(folder), out(folder, "comparisons_test")
    assert 10 < len(test) / 2 < 30
    assert {question(c) for c in test}.isdisjoint({question(c) for c in train})
    assert sum(c.response_a == "a short one" for c in test) == len(test) / 2
    assert funnel(folder)["held out"] == len(test)


def test_careless_annotators_are_named_with_the_evidence(prepare, capsys):
    known = [
        vote(f"k{i}", "x", "y", choice, name, info={"known_answer": "a"})
        for i in range(20)
        for name, choice in (("ann", "a"), ("bob", "ab"[i % 2]))
    ]
    data = [vote(i, "x", "y", "a", ("ann", "bob")[i % 2]) for i in range(9)]
    folder = prepare([*known, *data])
    rows = report(folder)["annotators"]
    assert [(row["annotator"], row["out"]) for row in rows] == [
        ("bob", True),
        ("ann", False),
    ]
    assert rows[0]["known answers right"]["count"] == 10
    assert len(out(folder)) == 5
    assert "bob" in capsys.readouterr().out


def test_several_files_and_gzip_are_read_as_one(prepare, tmp_path):
    comparisons = lopsided(30)
    write_records(tmp_path / "first.jsonl", comparisons[:10])
    write_records(tmp_path / "more.jsonl", comparisons[10:])
    packed = gzip.compress((tmp_path / "more.jsonl").read_bytes())
    (tmp_path / "more.jsonl.gz").write_bytes(packed)
    both = f"{tmp_path / 'first.jsonl'}, {tmp_path / 'more.jsonl.gz'}"
    assert out(prepare(both)) == out(prepare(comparisons, "again"))


def test_a_published_set_is_read_and_its_faults_are_counted(prepare, tmp_path):
    start = "\n\nHuman: Hello\n\nAssistant:"
    rows = [
        {"chosen": f"{start} A longer answer {i}.", "rejected": f"{start} No {i}."}
        for i in range(4)
    ]
    rows += [{"chosen": r["rejected"] + "!", "rejected": r["chosen"]} for r in rows]
    rows.append({"chosen": f"{start} Yes.", "rejected": f"{start} "})
    rows.append(
        {"chosen": f"{start} Yes.", "rejected": "\n\nHuman: Hi\n\nAssistant: A"}
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(text)
    found = funnel(prepare(str(tmp_path / "set")))
    assert found["in"] == 10
    assert found["dropped: empty response"] == found["dropped: prompts differ"] == 1
    assert found["out"] == 8


def test_bad_records_stop_the_run_or_are_left_out_and_listed(prepare, tmp_path):
    lines = [json.dumps(c, default=to_json) for c in lopsided(30)]
    lines[3] = '{"response_a": 1}'
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(RecordError, match="line 4"):
        prepare(str(tmp_path / "bad.jsonl"))
    folder = prepare(str(tmp_path / "bad.jsonl"), "skipped", on_bad_record="skip")
    assert funnel(folder)["in"] == 30
    assert funnel(folder)["dropped: bad record"] == 1
    assert json.loads((folder / "bad_records.jsonl").read_text())["line"] == 4


def test_the_same_seed_gives_the_same_files_and_another_one_others(prepare):
    folders = [prepare(lopsided(60), f"{i}", seed=s) for i, s in enumerate((0, 0, 1))]
    texts = [(folder / "comparisons.jsonl").read_bytes() for folder in folders]
    assert texts[0] == texts[1] != texts[2]


def test_a_run_that_is_done_is_left_as_it_is(prepare):
    folder = prepare(lopsided(30))
    (folder / "comparisons.jsonl").write_text("mine")
    prepare(lopsided(30))
    assert (folder / "comparisons.jsonl").read_text() == "mine"


def test_what_cannot_be_prepared_is_refused_in_words(prepare, tmp_path):
    with pytest.raises(ValueError, match=r"Set config.comparisons"):
        prepare(" , ")
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        prepare(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="There is no file"):
        prepare(str(tmp_path / "nowhere.jsonl"), "file")
    with pytest.raises(ValueError, match=r"None of 1 comparisons is left.*tie 1"):
        prepare([vote("p", "x", "y", "tie")], "other")


def test_files_and_folders_of_several_kinds_are_prepared_together(
    prepare, tmp_path, monkeypatch, caplog
):
    """The rows that are read again are those that were read, bad ones between them."""
    caplog.set_level("INFO", logger="absl")
    pairs = [
        {"prompt": f"{n}?", "chosen": f"the answer {n}", "rejected": "no", "note": 1}
        for n in range(12)
    ]
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps([{}, *pairs[:4]]))
    too_long = json.dumps({"prompt": "x" * 900}) + "\n"
    others = tmp_path / "others.jsonl"
    others.write_text("".join([lines[4], too_long, "{\n", *lines[5:8]]))
    table = tmp_path / "table.csv"
    rows = [",".join(str(value) for value in pair.values()) for pair in pairs[8:]]
    table.write_text("\n".join(["prompt,chosen,rejected,note", *rows, "bad"]))
    monkeypatch.setattr(json_lines, "MAX_LINE", 500)
    places = f"{tmp_path / 'set'},{others},{table}"
    found = prepare(places, on_bad_record="skip", test_share=0.3, length_bucket=0)
    kept = out(found) + out(found, "comparisons_test")
    assert {c.chosen for c in kept} <= {pair["chosen"] for pair in pairs}
    steps = funnel(found)
    assert (steps["in"], steps["dropped: bad record"]) == (16, 4)
    assert len(kept) == steps["held out"] + steps["out"] >= 8
    bad = (found / "bad_records.jsonl").read_text().splitlines()
    where = [
        (Path(json.loads(line)["file"]).name, json.loads(line)["line"]) for line in bad
    ]
    assert where == [
        ("train.json", 1),
        (others.name, 2),
        (others.name, 3),
        (table.name, 6),
    ]
    assert "Rows with a field that is not used: {'note': 12}" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("test_share", 1.0), ("test_share", -0.1), ("length_bucket", -1)],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(
    prepare, tmp_path, field, value
):
    with pytest.raises(ValueError, match=f"config.{field}={value} must be"):
        prepare(lopsided(3), **{field: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not HARMLESS.is_dir(), reason="needs the data sets")
def test_hh_rlhf_loads_whole_and_its_known_faults_are_found(prepare, capsys):
    files = [HARMLESS / "train.jsonl.gz", HARMLESS / "test.jsonl.gz"]
    mark = "\n\nAssistant:"
    count = differ = empty = 0
    text = b"".join(gzip.decompress(file.read_bytes()) for file in files)
    for line in text.splitlines():
        sides = [json.loads(line)[field].rpartition(mark) for field in SIDES]
        count += 1
        differ += sides[0][0].strip() != sides[1][0].strip()
        empty += not all(response.strip() for _, _, response in sides)
    found = funnel(prepare(",".join(map(str, files))))
    assert found["in"] == count == 1800
    assert found["dropped: prompts differ"] == differ > 0
    assert found["dropped: empty response"] == empty > 0
    assert sum(found.values()) == 2 * found["in"]
    assert "dropped: prompts differ" in capsys.readouterr().out


def test_a_file_that_changes_while_it_is_read_is_noticed(
    prepare, tmp_path, monkeypatch
):
    again = prepare_comparisons.read_again
    monkeypatch.setattr(
        prepare_comparisons, "read_again", lambda *args: list(again(*args))[1:]
    )
    with pytest.raises(ValueError):
        prepare(lopsided(30))
    assert not (tmp_path / "out" / "comparisons.jsonl").exists()


def test_every_option_is_read_and_every_option_read_exists():
    source = ast.parse(Path(prepare_comparisons.__file__).read_text())
    read = {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "config"
    }
    assert read | {"stage"} == set(config_file.get_config())


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="no preset 'x'; it has: default"):
        config_file.get_config("x")
