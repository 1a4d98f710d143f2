import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, read_records

HH = Path(__file__).parents[2] / ".." / "shared" / "data" / "hh_rlhf_harmless"


def dialogue(*turns: str) -> str:
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[i % 2] + turn for i, turn in enumerate(turns))


GOOD = {
    "chosen": dialogue("Hi", "Hello!", "How are you?", "Fine."),
    "rejected": dialogue("Hi", "Hello!", "How are you?", "Go away."),
}


def test_an_hh_pair_becomes_a_comparison():
    comparison, reason = sources.hh_comparison(GOOD, "p")
    assert reason == ""
    assert [m["content"] for m in comparison.prompt.messages] == [
        "Hi",
        "Hello!",
        "How are you?",
    ]
    assert (comparison.chosen, comparison.rejected) == ("Fine.", "Go away.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected": dialogue("Hey", "x", "How?", "No.")}, "prompts differ"),
        ({"rejected": dialogue("Hi", "Hello!", "How are you?", "")}, "empty response"),
        ({"rejected": GOOD["chosen"]}, "identical responses"),
        (
            {k: dialogue("Hi") + GOOD[k] for k in GOOD},  # two users in a row
            "roles do not alternate",
        ),
    ],
)
def test_an_unusable_pair_is_left_out_with_its_reason(change, reason):
    assert sources.hh_comparison(GOOD | change, "p") == (None, reason)


def config(path: Path, vocab_size=300) -> ConfigDict:
    return ConfigDict({"path": str(path), "tokenizer": "", "vocab_size": vocab_size})


def write_split(folder: Path, **lines: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in lines.items():
        (folder / f"{name}.jsonl").write_text(text)


def test_a_folder_in_the_hh_layout_is_laid_out(tmp_path):
    line = json.dumps(GOOD) + "\n"
    bad = json.dumps(GOOD | {"rejected": GOOD["chosen"]}) + "\n"
    write_split(tmp_path / "hh", train=line * 3 + bad, test=line)
    data = sources.open_data(config(tmp_path / "hh"), tmp_path / "run")
    assert len(read_records(data / "sft.jsonl", Dialogue)) == 3
    assert len(read_records(data / "comparisons.jsonl", Comparison)) == 3
    assert len(read_records(data / "comparisons_test.jsonl", Comparison)) == 1
    assert len(read_records(data / "prompts.jsonl", Prompt)) == 3
    tokenizer = sources.open_tokenizer(
        config(tmp_path / "hh"), data, "", tmp_path / "run"
    )
    assert tokenizer.decode(tokenizer.encode("How are you?")) == "How are you?"
    # A folder that is laid out already is taken as it is.
    assert sources.open_data(config(data), tmp_path / "other") == data


def test_a_folder_without_the_files_says_which(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.jsonl\[.gz\] is missing"):
        sources.open_data(config(tmp_path), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        sources.open_data(config(tmp_path / "none"), tmp_path / "run")


def test_a_broken_line_is_named(tmp_path):
    line = json.dumps(GOOD) + "\n"
    write_split(tmp_path / "hh", train=line + '{"chosen": 3}\n', test=line)
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: field 'chosen'"):
        sources.open_data(config(tmp_path / "hh"), tmp_path / "run")


@pytest.mark.skipif(not HH.is_dir(), reason="the hh-rlhf files are not at hand")
def test_the_published_pairs_load_with_their_known_faults_counted(tmp_path):
    dropped = sources.write_hh(HH, tmp_path)
    kept = sum(
        len(read_records(tmp_path / f"comparisons{suffix}.jsonl", Comparison))
        for suffix in ("", "_test")
    )
    assert kept + sum(dropped.values()) == 1599 + 201
    assert set(dropped) <= {
        "roles do not alternate",
        "prompts differ",
        "empty response",
    }
    assert dropped["prompts differ"] >= 1
