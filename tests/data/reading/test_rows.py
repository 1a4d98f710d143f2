"""The same rows from files, Hugging Face folders and TensorFlow Datasets."""

import json
import sys

import datasets
import numpy as np
import pytest

from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.reading.rows import scan_rows, sources

ROWS = [
    {
        "prompt": f"question {n}",
        "messages": [{"role": "user", "content": "你好"}],
        "scores": [1.0, 2.5],
        "none": None,
    }
    for n in range(3)
]


@pytest.fixture(scope="module", autouse=True)
def _no_network(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        datasets.disable_progress_bars()
        yield


def write_json_lines(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))


def write_parquet(folder):
    file = folder / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(file)


def write_disk(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)


def write_disk_dict(folder):
    splits = {"train": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(splits).save_to_disk(folder)


@pytest.mark.parametrize(
    "write", [write_json_lines, write_parquet, write_disk, write_disk_dict]
)
def test_a_folder_is_read_however_it_was_written(tmp_path, write):
    write(tmp_path)
    assert list(scan_rows(str(tmp_path), "train")) == list(enumerate(ROWS, start=1))
    with pytest.raises((ValueError, FileNotFoundError), match="nosuch"):
        list(scan_rows(str(tmp_path), "nosuch"))


def test_what_cannot_be_read_is_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        scan_rows(str(tmp_path / "none"), "train")
    with pytest.raises(FileNotFoundError, match="is empty"):
        scan_rows(str(tmp_path), "train")
    with pytest.raises(ValueError, match="Cannot read split 'train' of hf:no/such"):
        scan_rows("hf:no/such", "train")
    with pytest.raises(ValueError, match="Cannot read split 'train' of tfds:no_such"):
        scan_rows("tfds:no_such", "train")


def test_a_tfds_folder_is_read_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class TinyPreferences(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = {
                "prompt": text,
                "messages": tfds.features.Sequence({"role": text, "content": text}),
                "scores": tfds.features.Sequence(tfds.features.Scalar(np.float32)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, download):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n, row in enumerate(ROWS):
                yield n, {name: row[name] for name in ("prompt", "messages", "scores")}

    builder = TinyPreferences(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    folder = tmp_path / "tiny_preferences" / "1.0.0"
    rows = list(scan_rows(f"tfds:{folder}", "train"))
    assert [number for number, _ in rows] == [1, 2, 3]
    assert {row["prompt"] for _, row in rows} == {r["prompt"] for r in ROWS}
    assert rows[0][1]["messages"] == {"role": ["user"], "content": ["你好"]}
    assert rows[0][1]["scores"] == [1.0, 2.5]
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match="Cannot read split 'nosuch'"):
        scan_rows(f"tfds:{folder}", "nosuch")


def test_bytes_that_are_not_text_are_a_bad_record(tmp_path):
    bad = datasets.Dataset.from_dict({"x": [b"ok", b"\xff\xfe"]})
    bad.save_to_disk(tmp_path)
    (_, first), (number, second) = scan_rows(str(tmp_path), "train")
    assert first == {"x": "ok"}
    assert isinstance(second, RecordError)
    assert (number, second.field) == (2, "x")


def folder(path, *names: str) -> str:
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"name": name}))
    return str(path)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["train.jsonl", "train_prefs.jsonl", "README.md"], ["train.jsonl"]),
        (["train.json", ".train.jsonl", ".hidden/train.jsonl"], ["train.json"]),
        (["train.jsonl", ".ipynb_checkpoints/train.jsonl"], ["train.jsonl"]),
        (["train.jsonl", "train.jsonl.bak", "train.jsonl~"], ["train.jsonl"]),
        (["data/train.jsonl", "test.jsonl"], ["data/train.jsonl"]),
        (["train/a.jsonl", "train/b.jsonl"], ["train/a.jsonl", "train/b.jsonl"]),
        (["train/a.1.json", "train/b.2.json"], ["train/a.1.json", "train/b.2.json"]),
        (
            [f"data/train-0000{n}-of-00002.jsonl" for n in (1, 0)],
            [f"data/train-0000{n}-of-00002.jsonl" for n in (0, 1)],
        ),
    ],
)
def test_of_a_folder_the_files_of_the_split_are_read(tmp_path, names, read):
    origin = folder(tmp_path, *names)
    assert [row["name"] for _, row in scan_rows(origin, "train")] == read
    assert [name for name, _ in sources(origin, "train")] == [
        str(tmp_path / name) for name in read
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train_prefs.jsonl", "train_sft.jsonl", "test_prefs.jsonl"],
            "only: test_prefs.jsonl, train_prefs.jsonl, train_sft.jsonl. Set the name",
        ),
        (["train-sft.parquet"], "no file for the split 'train', only: train-sft.parqu"),
        (["training.jsonl"], "only: training.jsonl"),
        (["train.json", "train.jsonl"], "several files .*: train.json, train.jsonl"),
        (["train.jsonl", "train.jsonl.gz"], "several files .* train.jsonl.gz. Give"),
        (["train.jsonl", "data/train.jsonl"], "several files .* data/train.jsonl, tr"),
        (["train.jsonl", "checkpoints/train.jsonl"], "checkpoints/train.jsonl"),
        (["train.jsonl", "train-00000-of-00001.jsonl"], "several files"),
        (["train-00001-of-00002.jsonl"], "has 1 of 2 parts of the split 'train'"),
        (["notes.txt", "README.md"], "no file of rows .*only: README.md, notes.txt"),
        ([f"x{n}.jsonl" for n in range(20)], "and 12 more"),
    ],
)
def test_a_folder_in_which_it_is_not_clear_what_to_read_is_refused(
    tmp_path, names, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        scan_rows(folder(tmp_path, *names), "train")


def test_a_file_is_read_whatever_the_split(tmp_path):
    origin = folder(tmp_path, "own.jsonl") + "/own.jsonl"
    assert list(scan_rows(origin, "nosuch")) == [(1, {"name": "own.jsonl"})]
