import json
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common
from rlhf_jax.data import sources
from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    read_records,
    to_json,
)
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer


def dialogue(*turns: str) -> str:
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[i % 2] + turn for i, turn in enumerate(turns))


GOOD = {
    "chosen": dialogue("Hi", "Hello!", "How are you?", "Fine."),
    "rejected": dialogue("Hi", "Hello!", "How are you?", "Go away."),
}


def config(path: Path, vocab_size=300) -> ConfigDict:
    c = common.data("hh")
    c.path, c.vocab_size = str(path), vocab_size
    return c


def write_split(folder: Path, **lines: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in lines.items():
        (folder / f"{name}.jsonl").write_text(text)


def test_a_folder_in_the_hh_layout_is_laid_out(tmp_path):
    line = json.dumps(GOOD) + "\n"
    bad = json.dumps(GOOD | {"rejected": GOOD["chosen"]}) + "\n"
    write_split(tmp_path / "hh", train=line * 3 + bad, test=line)
    data = sources.open_data(config(tmp_path / "hh"), tmp_path / "run")
    assert len(read_records(data / "sft.jsonl", Dialogue)) == 1  # three times the same
    assert len(read_records(data / "comparisons.jsonl", Comparison)) == 3
    assert len(read_records(data / "comparisons_test.jsonl", Comparison)) == 1
    assert len(read_records(data / "prompts.jsonl", Prompt)) == 1
    tokenizer = sources.open_tokenizer(
        config(tmp_path / "hh"), data, "", tmp_path / "run"
    )
    assert tokenizer.decode(tokenizer.encode("How are you?")) == "How are you?"
    # A folder that is laid out already is taken as it is.
    assert sources.open_data(config(data), tmp_path / "other") == data


def test_a_split_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is empty"):
        sources.open_data(config(tmp_path), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        sources.open_data(config(tmp_path / "none"), tmp_path / "run")
    write_split(tmp_path / "hh", train=json.dumps(GOOD) + "\n")
    with pytest.raises(
        FileNotFoundError, match="no file for the split 'test', only: t"
    ):
        sources.open_data(config(tmp_path / "hh"), tmp_path / "run")


def test_a_broken_line_stops_or_is_left_out_as_the_config_says(tmp_path):
    line = json.dumps(GOOD) + "\n"
    bad = json.dumps(GOOD | {"rejected": 3}) + "\n"
    write_split(tmp_path / "hh", train=line + bad, test=line)
    c = config(tmp_path / "hh")
    with pytest.raises(ValueError, match=r"hh/train.jsonl, line 2, field 'rejected'"):
        sources.open_data(c, tmp_path / "run")
    c.on_bad_record, c.layout = "skip", "dialogues"
    data = sources.open_data(c, tmp_path / "run")
    assert len(read_records(data / "comparisons.jsonl", Comparison)) == 1
    listed = (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()
    assert [json.loads(bad)["line"] for bad in listed] == [2]
    # A reader of the stages does the same.
    file = data / "prompts.jsonl"
    file.write_text(file.read_text() + "{\n")
    assert len(sources.Reader(c, tmp_path / "run")(file, Prompt)) == 1
    listed = (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()
    assert [json.loads(bad)["file"] for bad in listed][1:] == [str(file)]


def test_without_a_test_split_whole_conversations_are_held_out(tmp_path):
    rows = [
        {
            "system": "Be brief.",
            "prompt": f"question {n % 50}",
            "chosen": f"yes {n}",
            "rejected": "no",
        }
        for n in range(200)
    ]
    write_split(tmp_path / "set", train="".join(json.dumps(r) + "\n" for r in rows))
    c = config(tmp_path / "set")
    c.test_split, c.test_share = "", 0.3
    data = sources.open_data(c, tmp_path / "run")
    train, test = (
        read_records(data / name, Comparison)
        for name in ("comparisons.jsonl", "comparisons_test.jsonl")
    )
    assert len(train) + len(test) == 200
    assert 20 < len(test) < 100
    sides = [{c.prompt.id for c in part} for part in (train, test)]
    assert not sides[0] & sides[1]
    prompts = read_records(data / "prompts.jsonl", Prompt)
    assert [p.id for p in prompts] == list(dict.fromkeys(c.prompt.id for c in train))
    c.test_share = 0.0
    with pytest.raises(ValueError, match="leaves no pairs to hold out"):
        sources.open_data(c, tmp_path / "other")


def test_mistakes_in_the_config_are_named_before_anything_is_read(tmp_path):
    c = config(tmp_path / "none")
    c.layout = "dialogs"
    with pytest.raises(ValueError, match="layout='dialogs' is unknown"):
        sources.open_data(c, tmp_path / "run")
    c.layout, c.test_split = "", "train"
    with pytest.raises(ValueError, match="must differ"):
        sources.open_data(c, tmp_path / "run")


def test_ties_are_comparisons_but_nothing_to_imitate(tmp_path):
    rows = [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 1, 2]},
        {"prompt": "q", "responses": ["c", "a"], "scores": [2, 1]},
    ]
    line = "".join(json.dumps(row) + "\n" for row in rows)
    write_split(tmp_path / "set", train=line, test=line)
    data = sources.open_data(config(tmp_path / "set"), tmp_path / "run")
    comparisons = read_records(data / "comparisons.jsonl", Comparison)
    assert [c.preference for c in comparisons] == ["tie", "b", "b", "a"]
    (dialogue,) = read_records(data / "sft.jsonl", Dialogue)
    assert dialogue.messages[-1]["content"] == "c"


@pytest.mark.parametrize("model", ["run", "run/checkpoints/best", "run/tokenizer"])
def test_a_tokenizer_is_found_from_a_workdir_or_one_of_its_checkpoints(model, tmp_path):
    train_tokenizer(["a text"], 270, tmp_path / "run" / "tokenizer")
    assert sources.tokenizer_of(tmp_path / model).vocab_size <= 270


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No tokenizer in any of .*none"):
        sources.tokenizer_of(tmp_path / "none")


@pytest.fixture
def made(tmp_path):
    """A preference set, its config, and the data folder made from both."""
    write_split(
        tmp_path / "set", train=json.dumps(GOOD) + "\n", test=json.dumps(GOOD) + "\n"
    )
    c = config(tmp_path / "set")
    return tmp_path / "set", c, sources.open_data(c, tmp_path / "run")


def touch_all(folder: Path) -> None:
    """Make it visible whether a folder is made anew."""
    (folder / "mark").touch()


def test_data_that_have_not_changed_are_used_again(made, tmp_path):
    _, c, data = made
    touch_all(data)
    assert sources.open_data(c, tmp_path / "run") == data
    assert (data / "mark").exists()


def change_a_line(source, c, data):
    text = json.dumps(GOOD).replace("Fine.", "Well.")
    (source / "train.jsonl").write_text(text + "\n")


def change_a_setting(source, c, data):
    c.vocab_size = 290


def remove_the_tokenizer(source, c, data):
    for file in (data / "tokenizer").iterdir():
        file.unlink()


def halve_the_tokenizer(source, c, data):
    (data / "tokenizer" / "tokenizer.json").write_text("{")


def remove_a_file(source, c, data):
    (data / "prompts.jsonl").unlink()


@pytest.mark.parametrize(
    "change",
    [
        change_a_line,
        change_a_setting,
        remove_the_tokenizer,
        halve_the_tokenizer,
        remove_a_file,
    ],
)
def test_data_that_are_stale_or_not_whole_are_made_anew(change, made, tmp_path):
    source, c, data = made
    touch_all(data)
    change(source, c, data)
    assert sources.open_data(c, tmp_path / "run") == data
    assert not (data / "mark").exists()
    assert sources.is_whole(data)
    assert (change is change_a_line) == ("Well." in (data / "sft.jsonl").read_text())


def test_what_a_kill_left_is_no_data(made, tmp_path, monkeypatch):
    _, c, data = made
    text = (data / "sft.jsonl").read_text()
    (data / "made_from.json").unlink()
    (data / "sft.jsonl").unlink()  # as of a version that wrote in place
    (data / "own.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "train_tokenizer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sources.open_data(c, tmp_path / "run")
    assert not sources.is_whole(data)
    assert sources.open_data(c, tmp_path / "run") == data
    assert (data / "sft.jsonl").read_text() == text
    (before,) = (tmp_path / "run").glob("data.before.*")
    assert (before / "own.txt").exists()  # perhaps the user's: nothing is lost
    assert not (tmp_path / "run" / "data.making").exists()


def test_a_reader_notes_what_it_read(made, tmp_path):
    _, c, data = made
    read = sources.Reader(c, tmp_path / "run")
    read(data / "sft.jsonl", Dialogue)
    first = dict(read.fingerprints)
    assert list(first) == [str(data / "sft.jsonl")]
    with (data / "sft.jsonl").open("a") as file:
        file.write("\n")
    read(data / "sft.jsonl", Dialogue)
    assert read.fingerprints != first


# --- Data of one's own ---

ASKED = {"role": "user", "content": "你好"}
SAID = {"role": "assistant", "content": "你好！"}
QUESTIONS = [f"{n} 加 1 等于几？" for n in range(20)]
OWN = {  # the rows of a file: (row of each question, kinds that can be read from it)
    "messages": (
        lambda q: {"messages": [ASKED | {"content": q}, SAID]},
        {Dialogue, Prompt},
    ),
    "completion": (lambda q: {"prompt": q, "completion": "1"}, {Dialogue, Prompt}),
    "completion of messages": (
        lambda q: {"prompt": [ASKED | {"content": q}], "completion": [SAID]},
        {Dialogue, Prompt},
    ),
    "prompt": (lambda q: {"prompt": q}, {Prompt}),
    "prompt of messages": (lambda q: {"prompt": [ASKED | {"content": q}]}, {Prompt}),
    "pairs": (
        lambda q: {"prompt": q, "chosen": "1", "rejected": "2"},
        {Dialogue, Prompt, Comparison},
    ),
    "pairs of messages": (
        lambda q: {
            "prompt": [ASKED | {"content": q}],
            "chosen": [SAID],
            "rejected": [SAID | {"content": "x"}],
        },
        {Dialogue, Prompt, Comparison},
    ),
    "pairs with the prompt in both": (
        lambda q: {
            "chosen": [ASKED | {"content": q}, SAID],
            "rejected": [ASKED | {"content": q}, SAID | {"content": "x"}],
        },
        {Dialogue, Prompt, Comparison},
    ),
}
FILES = {  # by kind: of the training part, of the test part
    Dialogue: ("sft.jsonl", "sft_test.jsonl"),
    Prompt: ("prompts.jsonl", "eval_prompts.jsonl"),
    Comparison: ("comparisons.jsonl", "comparisons_test.jsonl"),
}


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("file", ["own.jsonl", "own.json"])
def test_one_file_of_ones_own_is_all_that_a_stage_needs(name, file, tmp_path):
    make, kinds = OWN[name]
    c = config(write_rows(tmp_path / file, map(make, QUESTIONS)))
    data = sources.open_data(c, tmp_path / "run")
    read = sources.Reader(c, tmp_path / "run")
    for kind, names in FILES.items():
        if kind in kinds:
            train, test = (read(data / name, kind) for name in names)
            assert len(train) + len(test) == len(QUESTIONS)
            assert len(test) >= 1
        else:
            message = r"own.json.* holds no dialogues|There is no file .*comparisons"
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                read(data / names[0], kind)
    tokenizer = sources.open_tokenizer(c, data, "", tmp_path / "run")
    assert tokenizer.decode(tokenizer.encode(QUESTIONS[0])) == QUESTIONS[0]


@pytest.mark.parametrize("name", OWN)
def test_what_a_data_folder_lacks_is_made_of_what_it_has(name, tmp_path):
    make, kinds = OWN[name]
    rows = list(map(make, QUESTIONS))
    kind = max(kinds, key=list(FILES).index)  # the one that the file is named for
    own = tmp_path / "own"
    write_rows(own / FILES[kind][0], rows)
    train_tokenizer(["你好"], 270, own / "tokenizer")
    data = sources.open_data(config(own), tmp_path / "run")
    assert sum(len(read_records(data / f, kind)) for f in FILES[kind]) == len(rows)
    kept, made = (load_tokenizer(f / "tokenizer").fingerprint for f in (own, data))
    assert kept == made


def test_the_prompts_to_compare_are_kept_as_they_are(tmp_path):
    own, kept = tmp_path / "own", "comparison_prompts.jsonl"
    write_rows(own / "sft.jsonl", map(OWN["messages"][0], QUESTIONS))
    write_rows(own / kept, map(OWN["prompt"][0], QUESTIONS[:3]))
    data = sources.open_data(config(own), tmp_path / "run")
    prompts = read_records(data / kept, Prompt)
    assert [p.messages[0]["content"] for p in prompts] == QUESTIONS[:3]
    told = json.loads((data / "source.json").read_text())
    assert told[kept] == {"rows": 3, "prompts": 3}


def test_each_file_of_a_data_folder_may_be_in_a_published_layout(tmp_path):
    own = tmp_path / "own"
    for kind, files in FILES.items():
        make = OWN["pairs of messages" if kind is Comparison else "messages"][0]
        make = OWN["prompt"][0] if kind is Prompt else make
        for file in files:
            write_rows(own / file, map(make, QUESTIONS))
    c = config(own)
    assert sources.open_data(c, tmp_path / "run") == own
    read = sources.Reader(c, tmp_path / "run")
    for kind, files in FILES.items():
        assert [len(read(own / file, kind)) for file in files] == [20, 20]
    # Without a tokenizer one is trained, once, beside the run's.
    for _ in range(2):
        tokenizer = sources.open_tokenizer(c, own, "", tmp_path / "run")
        assert tokenizer.vocab_size > 270
    assert not (own / "tokenizer").exists()


def test_what_is_left_out_and_not_used_is_told(tmp_path):
    make = OWN["pairs"][0]
    rows = [make(q) | {"note": "x"} for q in QUESTIONS]
    rows += [make("again") | {"rejected": "1"}, make("other") | {"system": "Hm."}]
    data = sources.open_data(
        config(write_rows(tmp_path / "own.jsonl", rows)), tmp_path / "run"
    )
    told = json.loads((data / "source.json").read_text())["train"]
    assert told == {
        "rows": 22,
        "pairs": 21,
        "left out: identical responses": 1,
        "rows with an unused field: note": 20,
    }


def test_of_few_conversations_one_is_held_out_and_one_is_not_enough(tmp_path):
    make = OWN["messages"][0]
    c = config(write_rows(tmp_path / "two.jsonl", map(make, QUESTIONS[:2])))
    data = sources.open_data(c, tmp_path / "run")
    parts = [read_records(data / file, Dialogue) for file in FILES[Dialogue]]
    assert [len(part) for part in parts] == [1, 1]
    c.path = str(write_rows(tmp_path / "one.jsonl", map(make, QUESTIONS[:1])))
    with pytest.raises(ValueError, match="leaves no dialogues to hold out: 1 conv"):
        sources.open_data(c, tmp_path / "other")


def test_an_answer_that_was_cut_is_nothing_to_imitate(tmp_path):
    prompt = Prompt("p", (ASKED,))
    pairs = [
        Comparison(prompt, "yes", "no", "a", ended_a=False),
        Comparison(prompt, "maybe", "no", "a", ended_b=False),
    ]
    rows = [json.loads(json.dumps(vars(pair), default=to_json)) for pair in pairs]
    path = write_rows(tmp_path / "own" / "comparisons.jsonl", rows)
    write_rows(path.with_name("comparisons_test.jsonl"), rows)
    data = sources.open_data(config(path.parent), tmp_path / "run")
    (dialogue,) = read_records(data / "sft.jsonl", Dialogue)
    assert dialogue.messages[-1]["content"] == "maybe"
    assert read_records(data / "comparisons.jsonl", Comparison) == pairs
    found = sources.Reader(config(path), tmp_path / "run")(path, Dialogue)
    assert found == [dialogue]


@pytest.fixture
def own_folder(tmp_path):
    """A laid-out folder of data with a tokenizer, and its config."""
    own = tmp_path / "own"
    own.mkdir()
    talk = [
        {"role": "user", "content": "Hi you"},
        {"role": "assistant", "content": "A"},
    ]
    prompt = {"id": "p", "messages": talk[:1]}
    for name in sources.FOLDER:
        record = {"messages": talk} if name.startswith("sft") else prompt
        (own / name).write_text(json.dumps(record) + "\n")
    train_tokenizer(["some text"], 270, own / "tokenizer")
    return own


def spoil(folder, way):
    if way == "gone":
        shutil.rmtree(folder)
    elif way == "empty":
        for file in folder.iterdir():
            file.unlink()
    elif way == "half":
        path = folder / "tokenizer.json"
        path.write_bytes(path.read_bytes()[:100])
    elif way == "without a file":
        (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("way", ["gone", "empty", "half", "without a file"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_damaged_tokenizer_of_a_run_is_made_anew(own_folder, tmp_path, way, trained):
    """The copy in the workdir, or the one that was trained there."""
    if trained:
        shutil.rmtree(own_folder / "tokenizer")
    c, run = config(own_folder), tmp_path / "run"
    before = sources.open_tokenizer(c, own_folder, "", run).fingerprint
    (run / "checkpoints" / "4").mkdir(parents=True)
    spoil(run / "tokenizer", way)
    assert sources.open_tokenizer(c, own_folder, "", run).fingerprint == before
    assert load_tokenizer(run / "tokenizer").fingerprint == before


def test_another_tokenizer_is_refused_by_a_run_that_has_begun(own_folder, tmp_path):
    c, run = config(own_folder), tmp_path / "run"
    sources.open_tokenizer(c, own_folder, "", run)
    train_tokenizer(["quite another text"], 280, own_folder / "tokenizer")
    changed = load_tokenizer(own_folder / "tokenizer").fingerprint
    # Before the first checkpoint a corrected command may name another.
    sources.open_tokenizer(c, own_folder, "", run)
    assert load_tokenizer(run / "tokenizer").fingerprint == changed
    (run / "checkpoints" / "4").mkdir(parents=True)
    train_tokenizer(["some text"], 270, own_folder / "tokenizer")
    with pytest.raises(ValueError, match=r"another tokenizer than .*run/tokenizer"):
        sources.open_tokenizer(c, own_folder, "", run)
    assert load_tokenizer(run / "tokenizer").fingerprint == changed


@pytest.mark.parametrize(
    ("named", "start", "message"),
    [
        ("nowhere", "", r"data.tokenizer: nowhere holds no tokenizer"),
        ("", "nowhere", r"set data.tokenizer to the one that nowhere was trained with"),
    ],
)
def test_a_tokenizer_that_is_nowhere_is_named(
    own_folder, tmp_path, named, start, message
):
    shutil.rmtree(own_folder / "tokenizer")
    c = config(own_folder)
    c.tokenizer = named
    with pytest.raises(FileNotFoundError, match=message):
        sources.open_tokenizer(c, own_folder, start, tmp_path / "run")
    c.tokenizer = ""  # and the corrected command works
    assert sources.open_tokenizer(c, own_folder, "", tmp_path / "run").vocab_size


@pytest.mark.parametrize("way", ["half", "without a file"])
def test_a_damaged_tokenizer_of_the_data_is_named(own_folder, tmp_path, way):
    spoil(own_folder / "tokenizer", way)
    with pytest.raises(
        ValueError, match=r"own/tokenizer cannot be read: .*files again"
    ):
        sources.open_tokenizer(config(own_folder), own_folder, "", tmp_path / "run")
