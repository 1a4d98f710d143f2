"""Conversion of a data set in a published layout to the folder that stages read."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from absl import logging

from rlhf_jax.data.reading.json_lines import OnBadRecord, RecordError, each_good
from rlhf_jax.data.reading.layout_readers import LAYOUTS, hashed_prompt
from rlhf_jax.data.reading.layouts import as_kind, chosen_dialogue, records_of
from rlhf_jax.data.reading.rows import sources
from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    Record,
    write_records,
)
from rlhf_jax.files import write_json
from rlhf_jax.terminal import listed

TRAIN_FILES = ("sft.jsonl", "comparisons.jsonl", "prompts.jsonl")
TEST_FILES = ("sft_test.jsonl", "comparisons_test.jsonl", "eval_prompts.jsonl")
ASKED = "comparison_prompts.jsonl"  # prompts whose responses are to be compared
NAMES = {Comparison: "pairs", Dialogue: "dialogues", Prompt: "prompts"}


def read_data_set(
    origin: str,
    split: str,
    *,
    layout: str = "",
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> tuple[list[Comparison | Dialogue | Prompt], Counter]:
    """Read the records of one split of a data set.

    Args:
        origin: an origin of `rows.sources`.
        layout: one of `LAYOUTS`; "" detects the layout of each row by its
            fields.

    Returns:
        The records, and counts of rows, of the pairs, dialogues and prompts in them, of
        those left out by reason, and of rows with an unused field.
    """
    if layout and layout not in LAYOUTS:
        names = ", ".join(LAYOUTS)
        raise ValueError(f"{layout=} is unknown; there are: {names}, or '' to detect.")
    records, counts = [], Counter()
    for source, rows in sources(origin, split):
        for row in each_good(
            rows,
            lambda row: records_of(row, layout),
            source=source,
            on_bad_record=on_bad_record,
            report=report,
        ):
            records += row.records
            counts["rows"] += 1
            counts.update(NAMES[type(record)] for record in row.records)
            counts += Counter({f"left out: {x}": n for x, n in row.left_out.items()})
            counts.update(f"rows with an unused field: {x}" for x in row.unused)
    return records, counts


def write_data_folder(
    origin: str,
    folder: Path,
    *,
    layout: str = "",
    train_split: str = "train",
    test_split: str = "test",
    test_share: float = 0.05,
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> dict[str, Counter]:
    """Write a data set as a data folder: its comparisons, its dialogues to imitate (or
    else the chosen responses), its prompts (or else those of the comparisons or the
    dialogues). Returns the counts of each part, which `folder/source.json` holds too.

    A file is one split. A folder may also hold some of the files of a data folder, in
    any layout; missing files are made from the others.

    Args:
        test_split: the name of the test split. "" instead holds out `test_share` of
            each kind of record, by the first turn, so that a conversation stays in one
            part; an `origin` that is a file does so too.
    """
    if train_split == test_split:
        raise ValueError(f"{train_split=} and {test_split=} must differ.")
    path = Path(origin)
    own = [[path / n for n in names] for names in (TRAIN_FILES, TEST_FILES)]
    if path.is_file():
        parts = {"train": [(origin, train_split)], "test": []}
    elif any(file.is_file() for files in own for file in files):
        parts = {
            name: [(str(file), name) for file in files if file.is_file()]
            for name, files in zip(("train", "test"), own, strict=True)
        }
    else:
        parts = {
            "train": [(origin, train_split)],
            "test": [(origin, test_split)] if test_split else [],
        }
    records, counts = {}, {}
    for name, places in parts.items():
        records[name], counts[name] = [], Counter()
        for place, split in places:
            more, count = read_data_set(
                place, split, layout=layout, on_bad_record=on_bad_record, report=report
            )
            records[name] += more
            counts[name] += count
    _hold_out(records["train"], records["test"], test_share, origin)
    for name, part in records.items():
        what = f"{origin} ({name}: {listed(counts[name])})"
        _write_part(folder, part, what, name == "test")
    asked = path / ASKED  # as it is: both parts are made without it
    if asked.is_file():
        more, counts[ASKED] = read_data_set(
            str(asked), "", layout=layout, on_bad_record=on_bad_record, report=report
        )
        write_records(folder / ASKED, [as_kind(record, Prompt) for record in more])
    write_json(folder / "source.json", counts)
    logging.info("Read from %s: %s.", origin, listed(counts))
    return counts


def _hold_out(train: list, test: list, share: float, origin: str) -> None:
    """Move a share of the conversations of each kind that `test` lacks from `train` to
    `test`, at least one and never all."""
    for kind in {type(record) for record in train} - {type(record) for record in test}:
        places = {_place(record) for record in train if type(record) is kind}
        ordered = sorted(places)
        held_out = [place for place in ordered if place < share] or ordered[:1]
        if not share or len(places) == 1:
            raise RecordError(
                f"{origin} leaves no {NAMES[kind]} to hold out: {len(places)} "
                f"conversations and test_share={share}."
            )
        limit = min(held_out[-1], ordered[-2])
        chosen = [type(r) is kind and _place(r) <= limit for r in train]
        parts = list(zip(train, chosen, strict=True))
        test += [record for record, is_test in parts if is_test]
        train[:] = [record for record, is_test in parts if not is_test]


def _write_part(folder: Path, part: list, name: str, is_test: bool) -> None:
    pairs, dialogues, prompts = (
        [record for record in part if isinstance(record, kind)] for kind in NAMES
    )
    decided = [c for c in pairs if c.preference != "tie"]
    if not (decided or dialogues or prompts):
        purpose = "hold out" if is_test else "train on"
        raise RecordError(f"{name} leaves no pairs to {purpose}.")
    whole = [c for c in decided if c.responses[0].ended]
    dialogues = dialogues or _unique(map(chosen_dialogue, whole))
    prompts = prompts or [as_kind(pair, Prompt) for pair in pairs]
    prompts = prompts or [
        hashed_prompt(d.messages[:-1], d.intent)
        for d in dialogues
        if d.messages[-2]["role"] == "user"
    ]
    suffix = "_test" if is_test else ""
    write_records(folder / f"sft{suffix}.jsonl", dialogues)
    if pairs:
        write_records(folder / f"comparisons{suffix}.jsonl", pairs)
    name = "eval_prompts.jsonl" if is_test else "prompts.jsonl"
    write_records(folder / name, {prompt.id: prompt for prompt in prompts}.values())


def _unique(records: Iterable[Record]) -> list[Record]:
    """Return the records without duplicates."""
    return list({json.dumps(vars(record)): record for record in records}.values())


def _place(record: Comparison | Dialogue | Prompt) -> float:
    """Return the hash in [0, 1) of the conversation's first user turn."""
    is_pair = isinstance(record, Comparison)
    messages = record.prompt.messages if is_pair else record.messages
    first = next(m["content"] for m in messages if m["role"] == "user")
    return int(hashlib.sha256(first.encode()).hexdigest()[:12], 16) / 16**12
