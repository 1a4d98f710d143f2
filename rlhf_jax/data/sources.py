"""The data folder of a run, made from the source that `config.path` names.

Every stage reads one data folder:

    sft.jsonl            sft_test.jsonl             dialogues to imitate
    comparisons.jsonl    comparisons_test.jsonl     human comparisons
    prompts.jsonl        eval_prompts.jsonl         prompts to answer
    skills.jsonl                                    (testbed) skills to keep
    tokenizer/

`open_data` makes the folder from the synthetic testbed or a data set in a published
layout, or uses a folder that already has these files. The rows of each file may be in a
published layout.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data.reading.data_sets import write_data_folder
from rlhf_jax.data.reading.files import scan_file
from rlhf_jax.data.reading.json_lines import RecordError, keep_good
from rlhf_jax.data.reading.layouts import read_as
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, Record
from rlhf_jax.data.testbed import pools
from rlhf_jax.data.testbed.annotators import AnnotatorConfig, make_annotators
from rlhf_jax.data.testbed.comparisons import write_demonstrated
from rlhf_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    copy_tokenizer,
    has_tokenizer,
    is_readable,
    load_tokenizer,
    train_tokenizer,
)
from rlhf_jax.files import read_json, write_json
from rlhf_jax.shared_work import first_makes, is_first
from rlhf_jax.terminal import listed

FOLDER = ("sft.jsonl", "sft_test.jsonl", "prompts.jsonl", "eval_prompts.jsonl")
KINDS = {  # the files of a data folder that several stages read
    "sft.jsonl": Dialogue,
    "sft_test.jsonl": Dialogue,
    "comparisons.jsonl": Comparison,
    "comparisons_test.jsonl": Comparison,
    "comparison_prompts.jsonl": Prompt,
    "prompts.jsonl": Prompt,
    "eval_prompts.jsonl": Prompt,
}
MADE_FROM = "made_from.json"  # file in a data folder that a run made
BAD_RECORDS = "bad_records.jsonl"  # file in the workdir that lists unreadable lines


def data_folder(config, workdir: Path) -> Path:
    """Return the path of a run's data folder: `config.path` if that is a data folder
    already, else `workdir/data`."""
    path = Path(config.path)
    laid_out = all((path / name).is_file() for name in FOLDER)
    is_testbed = config.path == "testbed"
    return path if laid_out and not is_testbed else Path(workdir) / "data"


@first_makes
def open_data(config, workdir: Path) -> Path:
    """Open the data folder of a run: `config.path`, or `workdir/data` made from that
    path. The folder is made anew if its source has changed; `made_from.json` in the
    folder describes the source.

    Args:
        config: path ("testbed", a data folder, or an origin of `write_data_folder`);
            layout, train_split, test_split, test_share and on_bad_record (for a data
            set); testbed and annotators (settings of the testbed); vocab_size (for a
            tokenizer trained here).

    Raises:
        FileNotFoundError: the folder or split does not exist.
        RecordError: there are bad records, under on_bad_record="error".
        ValueError: a library cannot read its data set, or the layout is unknown.
    """
    if not config.path:
        raise ValueError(
            'data.path is empty: name a file or folder of data, or "testbed".'
        )
    folder, path = data_folder(config, workdir), Path(config.path)
    if folder == path:
        return path
    source = source_of(config)
    if is_whole(folder):
        before = made_from(folder)
        if before in (None, source):
            return folder
        logging.warning("%s: its source has changed; it is made anew.", folder)
    making = folder.with_name("data.making")  # renamed to `folder` when complete
    shutil.rmtree(making, ignore_errors=True)
    if config.path == "testbed":
        write_testbed(config, making)
    else:
        write_data_folder(
            config.path,
            making,
            layout=config.layout,
            train_split=config.train_split,
            test_split=config.test_split,
            test_share=config.test_share,
            on_bad_record=config.on_bad_record,
            report=Path(workdir) / BAD_RECORDS,
        )
    if has_tokenizer(path / "tokenizer"):
        copy_tokenizer(path / "tokenizer", making / "tokenizer")
    elif not has_tokenizer(making / "tokenizer"):
        _train_tokenizer(config, making, workdir, making / "tokenizer")
    write_json(making / MADE_FROM, source)
    if folder.exists() and made_from(folder) is None:  # possibly the user's own
        folder.rename(folder.with_name(f"data.before.{time.time():.0f}"))
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    return folder


def source_of(config) -> dict:
    """Return the source of `workdir/data`: its settings and its fingerprint."""
    if config.path == "testbed":
        names = ("path", "testbed", "annotators", "vocab_size")
    else:
        names = ("path", "layout", "train_split", "test_split", "test_share")
        names += ("on_bad_record", "vocab_size")
    settings = {name: config[name] for name in names}
    text = ConfigDict(settings).to_json_best_effort()
    return json.loads(text) | {"fingerprint": fingerprint(config.path)}


def made_from(folder: Path) -> dict | None:
    """Read the source from which a data folder was made, None if unknown."""
    try:
        return json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def is_whole(folder: Path) -> bool:
    """Return True if a data folder has all files and a readable tokenizer."""
    if not all((folder / name).is_file() for name in FOLDER):
        return False
    try:
        load_tokenizer(folder / "tokenizer")
    except (ValueError, OSError):
        return False
    return True


def fingerprint(origin: str | Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder, shortened to 16 hex
    digits; "" if the path does not exist here."""
    origin, combined = Path(origin), hashlib.sha256()
    if not origin.exists():
        return ""
    files = [origin] if origin.is_file() else sorted(origin.rglob("*"))
    for path in filter(Path.is_file, files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        combined.update(f"{path.relative_to(origin)} {digest}\n".encode())
    return combined.hexdigest()[:16]


def fingerprints(*origins: str) -> dict[str, str]:
    """Return the fingerprints by file or folder; origins that are "" are left out."""
    return {origin: fingerprint(origin) for origin in origins if origin}


class Reader:
    """A reader of files of records, in our own layout or a published one. Bad records
    are treated by `config.on_bad_record`, and listed in `workdir/bad_records.jsonl`.

    Attributes:
        fingerprints: the fingerprints of the files read so far, by path.
    """

    def __init__(self, config, workdir: Path):
        self.fingerprints: dict[str, str] = {}
        self._config = config
        self._report = Path(workdir) / BAD_RECORDS if is_first() else None

    def __call__(self, path: str | Path, kind: type[Record]) -> list[Record]:
        """Read the records of a file; log counts of rows left out and fields unused.

        Raises:
            FileNotFoundError: the file does not exist.
            RecordError: there are bad records, named by file and line, or no good ones.
        """
        path = Path(path)
        if path.is_file() and not path.stat().st_size:
            raise RecordError(
                f"{path} is empty: {self._config.path} holds no {kind.__name__.lower()}"
                "s. docs/your_own_data.md shows what each stage needs."
            )
        records, counts = [], Counter()
        for row in keep_good(
            scan_file(path),
            lambda row: read_as(row, kind),
            source=path,
            on_bad_record=self._config.on_bad_record,
            report=self._report,
        ):
            records += row.records
            counts += Counter({f"left out: {x}": n for x, n in row.left_out.items()})
            counts.update(f"rows with an unused field: {x}" for x in row.unused)
        if counts:
            logging.info("%s: %d read; %s.", path, len(records), listed(counts))
        if not records:
            raise RecordError(f"{path} holds no {kind.__name__.lower()}s to use.")
        self.fingerprints[str(path)] = fingerprint(path)
        return records


def read_all(config, data: Path, workdir: Path) -> None:
    """Read every file of a data folder to find its errors, so that a run of several
    stages fails before its first stage."""
    read = Reader(config, workdir)
    for name, kind in KINDS.items():
        if (data / name).is_file() and (data / name).stat().st_size:
            read(data / name, kind)


@first_makes
def open_tokenizer(config, data: Path, init_from: str, workdir: Path) -> Tokenizer:
    """Open the run's tokenizer, copied into its workdir: `config.tokenizer` if given,
    else that of the initial model, else the data folder's. A run from random weights
    without any of these trains a tokenizer on the data.

    Raises:
        FileNotFoundError: `config.tokenizer` or the initial model has no tokenizer.
        ValueError: the tokenizer is damaged, or differs from the one with which this
            run began.
    """
    target = Path(workdir) / "tokenizer"
    places = [data / "tokenizer"]
    if init_from:
        places = [*tokenizer_places(init_from), *places]
    if config.tokenizer:
        places = [Path(config.tokenizer)]
    place = next(filter(has_tokenizer, places), None)
    if place is None and config.tokenizer:
        raise FileNotFoundError(
            f"data.tokenizer: {config.tokenizer} holds no tokenizer. Name the folder "
            "of a tokenizer, or set data.tokenizer to nothing: then the start model's "
            "is used, or one is trained on the data."
        )
    if place is None and init_from:
        raise FileNotFoundError(
            f"No tokenizer in any of {[str(p) for p in places]}: set data.tokenizer to "
            f"the one that {init_from} was trained with."
        )
    if target.exists() and not is_readable(target):
        logging.warning("%s lacks files or is damaged; it is made anew.", target)
    if place is None:
        if not is_readable(target):
            _train_tokenizer(config, data, workdir, target)
        return load_tokenizer(target)
    tokenizer = load_tokenizer(place)
    if not is_readable(target):
        copy_tokenizer(place, target)
    elif load_tokenizer(target).fingerprint != tokenizer.fingerprint:
        if any((Path(workdir) / "checkpoints").glob("[0-9]*")):
            raise ValueError(
                f"{place} is another tokenizer than {target}, with which this run "
                "began: one of the two was changed. Restore the first (or delete the "
                "second, if the second was changed), or start anew in another "
                "--workdir."
            )
        copy_tokenizer(place, target)  # this run has no checkpoint yet
    return tokenizer


def _train_tokenizer(config, data: Path, workdir: Path, target: Path) -> None:
    """Train a tokenizer on the dialogues of a data folder, or else on its prompts."""
    read, file, kind = Reader(config, workdir), data / "sft.jsonl", Dialogue
    if not file.stat().st_size:
        file, kind = data / "prompts.jsonl", Prompt
    texts = [m["content"] for record in read(file, kind) for m in record.messages]
    train_tokenizer(texts, config.vocab_size, target)


def tokenizer_of(model: str | Path) -> Tokenizer:
    """Load the tokenizer of a workdir, a checkpoint in it, or a Hugging Face folder."""
    places = tokenizer_places(model)
    for place in places:
        if has_tokenizer(place):
            return load_tokenizer(place)
    raise FileNotFoundError(
        f"No tokenizer in any of {[str(p) for p in places]}: copy the one that the "
        f"model was trained with to {places[0]}."
    )


def tokenizer_places(model: str | Path) -> list[Path]:
    """Return the folders that may hold a model's tokenizer."""
    model = Path(model)
    places = [model / "tokenizer", model]
    if model.parent.name == "checkpoints":  # possibly a checkpoint of a workdir
        places.append(model.parents[1] / "tokenizer")
    adapter = model / "adapter_config.json"  # PEFT's; the tokenizer is the base's
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        places += tokenizer_places(base) if isinstance(base, str) else []
    return places


def tokenizer_fingerprint(model: str | Path) -> str:
    """Return the fingerprint of a model's tokenizer, "" if there is none."""
    place = next(filter(has_tokenizer, tokenizer_places(model)), None)
    return load_tokenizer(place).fingerprint if place else ""


@first_makes
def open_probes(config, workdir: Path) -> Path:
    """Write the testbed's probes of `config.testbed` into a folder, and return it."""
    folder = Path(workdir) / "probes"
    testbed = pools.make_testbed(pools.TestbedConfig(**config.testbed))
    pools.write_probes(testbed, folder)
    return folder


def write_testbed(config, folder: Path) -> None:
    """Write the synthetic world of `config.testbed` and `config.annotators`."""
    testbed = pools.TestbedConfig(**config.testbed)
    pools.write(testbed, folder)
    annotators = make_annotators(AnnotatorConfig(**config.annotators))
    write_demonstrated(folder, annotators, testbed)
