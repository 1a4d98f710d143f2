"""Inputs of a run are the same in all its processes and when it resumes."""

import json

import pytest

from rlhf_jax.training import inputs
from rlhf_jax.training.inputs import agree, fingerprint

FILES = {"data/sft.jsonl": "1", "data/prompts.jsonl": "2"}


@pytest.fixture
def sft(tmp_path):
    """A folder that looks like one of Hugging Face."""
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def begin(run, sft):
    agree(run, FILES, tokenizer="t", models=[str(sft), ""])
    (run / "metrics.jsonl").write_text("{}")


def test_the_same_inputs_go_on(run, sft):
    begin(run, sft)
    agree(run, FILES, tokenizer="t", models=[str(sft)])


def change_file(sft):
    return FILES | {"data/sft.jsonl": "3"}, "t"


def one_file_more(sft):
    return FILES | {"data/more.jsonl": "4"}, "t"


def change_tokenizer(sft):
    return FILES, "u"


def change_model(sft):
    (sft / "model.safetensors").write_bytes(b"another")
    return FILES, "t"


CHANGES = {
    "data/sft.jsonl": change_file,
    "data/more.jsonl": one_file_more,
    "the tokenizer": change_tokenizer,
    "sft": change_model,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_input_is_refused_by_name(name, run, sft):
    begin(run, sft)
    files, tokenizer = CHANGES[name](sft)
    with pytest.raises(ValueError, match=f"have changed since: [^,]*{name}. Restore"):
        agree(run, files, tokenizer=tokenizer, models=[str(sft)])
    (run / "metrics.jsonl").unlink()  # no result: the run has not begun
    agree(run, files, tokenizer=tokenizer, models=[str(sft)])


def test_other_versions_are_one_warning(run, sft, monkeypatch, caplog):
    begin(run, sft)
    monkeypatch.setattr(inputs, "versions", lambda: {"jax": "9.9"})
    agree(run, FILES, tokenizer="t", models=[str(sft)])
    (warning,) = caplog.messages
    assert "began with other versions" in warning and "-> 9.9" in warning


def test_processes_that_read_other_files_are_refused(run, monkeypatch):
    def exchange(record):
        other = json.loads(json.dumps(record))
        other["files"]["data/sft.jsonl"] = "3"
        return [record, record, other]

    monkeypatch.setattr(inputs, "exchange", exchange)
    with pytest.raises(ValueError, match=r"Process 2 differs .*data/sft\.jsonl"):
        agree(run, FILES, tokenizer="", models=[])


def test_a_workdirs_checkpoint_is_known_by_its_checksums(tmp_path):
    for step in (9, 20):
        folder = tmp_path / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "checksums.json").write_text(f"{{{step}}}")
    newest = fingerprint(tmp_path)
    assert newest.startswith("step 20, ")
    assert fingerprint(tmp_path / "checkpoints" / "9").startswith("step 9, ")
    (folder / "checksums.json").write_text("{}")
    assert fingerprint(tmp_path) != newest


def test_a_folder_that_was_moved_goes_on(run, sft, tmp_path):
    def files(folder):
        return {str(folder / name): x for name, x in FILES.items()}

    agree(run, files(run), tokenizer="", models=[])
    (run / "metrics.jsonl").write_text("{}")
    moved = run.rename(tmp_path / "moved")
    agree(moved, files(moved), tokenizer="", models=[])
    with pytest.raises(ValueError, match=r"since: data/sft\.jsonl\. "):
        agree(
            moved,
            files(moved) | {f"{moved}/data/sft.jsonl": "3"},
            tokenizer="",
            models=[],
        )


def test_a_damaged_record_is_named(run, sft):
    begin(run, sft)
    (run / "inputs.json").write_text("{}")
    with pytest.raises(ValueError, match=r"inputs\.json is damaged: it has no files"):
        agree(run, FILES, tokenizer="t", models=[])
