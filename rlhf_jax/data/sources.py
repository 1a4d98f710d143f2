"""The folder of data that a run reads, made from whatever `config.path` names.

Every stage reads one data folder:

    sft.jsonl            sft_test.jsonl             dialogues to imitate
    comparisons.jsonl    comparisons_test.jsonl     human comparisons
    prompts.jsonl        eval_prompts.jsonl         prompts to answer
    identity_probes.jsonl  json_probes.jsonl        (testbed) capabilities to keep
    tokenizer/

`open_data` makes it, from the synthetic testbed or a published preference set, or
takes one that is already laid out.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from rlhf_jax.data.reading.preference_sets import write_preferences
from rlhf_jax.data.records import Dialogue, Record, read_records
from rlhf_jax.data.testbed import world
from rlhf_jax.data.testbed.annotators import AnnotatorConfig, make_annotators
from rlhf_jax.data.testbed.comparisons import write_demonstrated
from rlhf_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from rlhf_jax.shared_work import first_makes, is_first

FOLDER = ("sft.jsonl", "sft_test.jsonl", "prompts.jsonl", "eval_prompts.jsonl")
BAD_RECORDS = "bad_records.jsonl"  # in the workdir: every line that could not be read


@first_makes
def open_data(config, workdir: Path) -> Path:
    """The data folder of a run: `config.path`, or `workdir/data` made from it.

    Args:
        config: path ("testbed", a laid-out folder, or what `rows.scan_rows` takes);
            layout, train_split, test_split, test_share and on_bad_record (of a
            preference set); testbed and annotators (settings of the testbed);
            vocab_size (of a tokenizer trained here).

    Raises:
        FileNotFoundError: there is no such folder or split.
        RecordError: bad records, under on_bad_record="error".
        ValueError: a data set that its library cannot read, or an unknown layout.
    """
    if not config.path:
        raise ValueError(
            'data.path is empty: name a data folder, a preference set or "testbed".'
        )
    made, path = Path(workdir) / "data", Path(config.path)
    if config.path != "testbed" and all((path / name).is_file() for name in FOLDER):
        return path
    if (made / "tokenizer").is_dir():
        return made
    if config.path == "testbed":
        write_testbed(config, made)
    else:
        write_preferences(
            config.path,
            made,
            layout=config.layout,
            train_split=config.train_split,
            test_split=config.test_split,
            test_share=config.test_share,
            on_bad_record=config.on_bad_record,
            report=Path(workdir) / BAD_RECORDS,
        )
    if not (made / "tokenizer").is_dir():
        dialogues = read_records(made / "sft.jsonl", Dialogue)
        texts = [m["content"] for dialogue in dialogues for m in dialogue.messages]
        train_tokenizer(texts, config.vocab_size, made / "tokenizer")
    return made


def reader(config, workdir: Path) -> Callable[[Path, type[Record]], list[Record]]:
    """`read_records` as `config.on_bad_record` says; what is bad is listed in
    `workdir/bad_records.jsonl`."""
    return functools.partial(
        read_records,
        on_bad_record=config.on_bad_record,
        report=Path(workdir) / BAD_RECORDS if is_first() else None,
    )


@first_makes
def open_tokenizer(config, data: Path, init_from: str, workdir: Path) -> Tokenizer:
    """The run's tokenizer, copied into its workdir: `config.tokenizer` if given, else
    that of the model it starts from, else the data folder's."""
    places = [data / "tokenizer"]
    if init_from:
        places = [*tokenizer_places(init_from), *places]
    if config.tokenizer:
        places = [Path(config.tokenizer)]
    for place in places:
        if has_tokenizer(place):
            target = Path(workdir) / "tokenizer"
            if not target.exists():
                copy_tokenizer(place, target)
            return load_tokenizer(place)
    raise FileNotFoundError(
        f"No tokenizer in any of {[str(p) for p in places]}: set data.tokenizer."
    )


def tokenizer_of(model: str | Path) -> Tokenizer:
    """The tokenizer of a workdir, of its checkpoint, or of a Hugging Face folder."""
    places = tokenizer_places(model)
    for place in places:
        if has_tokenizer(place):
            return load_tokenizer(place)
    raise FileNotFoundError(f"No tokenizer in any of {[str(p) for p in places]}.")


def tokenizer_places(model: str | Path) -> list[Path]:
    """Where a model's tokenizer may lie."""
    model = Path(model)
    places = [model / "tokenizer", model]
    if model.parent.name == "checkpoints":  # perhaps one of a workdir's
        places.append(model.parents[1] / "tokenizer")
    return places


def check_tokenizer(tokenizer: Tokenizer, model: str | Path) -> None:
    """Refuse a model that was trained with another tokenizer.

    Raises:
        ValueError: the tokenizer in the model's folder has another fingerprint.
    """
    for place in tokenizer_places(model):
        if has_tokenizer(place):
            if load_tokenizer(place).fingerprint != tokenizer.fingerprint:
                raise ValueError(
                    f"{model} was trained with another tokenizer than this run: their "
                    "token ids mean different text."
                )
            return


def write_testbed(config, folder: Path) -> None:
    """Lay out the synthetic world of `config.testbed` and `config.annotators`."""
    testbed = world.TestbedConfig(**config.testbed)
    world.write(testbed, folder)
    annotators = make_annotators(AnnotatorConfig(**config.annotators))
    write_demonstrated(folder, annotators, testbed.seed)
