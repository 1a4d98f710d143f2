"""A published preference set, laid out as the folder that the stages read."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from absl import logging

from rlhf_jax.data.reading.json_lines import OnBadRecord, RecordError, each_good
from rlhf_jax.data.reading.layouts import LAYOUTS, comparisons_of
from rlhf_jax.data.reading.rows import scan_rows
from rlhf_jax.data.records import Comparison, Dialogue, write_records


def read_comparisons(
    origin: str,
    split: str,
    *,
    layout: str = "",
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> tuple[list[Comparison], Counter]:
    """The comparisons of one split of a preference set.

    Args:
        origin: what `rows.scan_rows` takes.
        layout: one of `layouts.LAYOUTS`; "": found from the fields of each row.

    Returns:
        The comparisons, and how many rows and pairs there were, and how many pairs
        were left out for each reason.
    """
    if layout and layout not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise ValueError(f"{layout=} is unknown; there are: {known}, or '' to detect.")
    comparisons, counts = [], Counter()
    for kept, left_out in each_good(
        scan_rows(origin, split),
        lambda row: comparisons_of(row, layout),
        source=f"{origin} ({split})",
        on_bad_record=on_bad_record,
        report=report,
    ):
        comparisons += kept
        counts["rows"] += 1
        counts["pairs"] += len(kept) + left_out.total()
        counts += Counter({f"left out: {name}": n for name, n in left_out.items()})
    return comparisons, counts


def write_preferences(
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
    """Lay out a preference set: its comparisons, their prompts, and what was chosen as
    dialogues. Returns the counts of each split; `folder/source.json` says the same.

    Args:
        test_split: "" holds out `test_share` of the training split, by the first turn,
            so that a conversation stays on one side.
    """
    if train_split == test_split:
        raise ValueError(f"{train_split=} and {test_split=} must differ.")
    counts = {}
    for split in filter(None, (train_split, test_split)):
        comparisons, counts[split] = read_comparisons(
            origin, split, layout=layout, on_bad_record=on_bad_record, report=report
        )
        if test_split:
            _write_part(folder, comparisons, f"{origin} ({split})", split == test_split)
    if not test_split:
        held_out = [_place(c) < test_share for c in comparisons]
        for test in (False, True):
            pairs = zip(comparisons, held_out, strict=True)
            part = [c for c, is_test in pairs if is_test == test]
            _write_part(folder, part, f"{origin} ({test_share=})", test)
    (folder / "source.json").write_text(json.dumps(counts, indent=2))
    logging.info("Read from %s: %s", origin, counts)
    return counts


def _write_part(folder: Path, part: list[Comparison], name: str, test: bool) -> None:
    decided = [c for c in part if c.preference != "tie"]
    if not decided:
        purpose = "hold out" if test else "train on"
        raise RecordError(f"{name} leaves no pairs to {purpose}.")
    dialogues = {
        (c.prompt.id, c.chosen): Dialogue(
            (*c.prompt.messages, {"role": "assistant", "content": c.chosen})
        )
        for c in decided
    }
    prompts = {c.prompt.id: c.prompt for c in part}
    suffix = "_test" if test else ""
    write_records(folder / f"sft{suffix}.jsonl", dialogues.values())
    write_records(folder / f"comparisons{suffix}.jsonl", part)
    name = "eval_prompts.jsonl" if test else "prompts.jsonl"
    write_records(folder / name, prompts.values())


def _place(comparison: Comparison) -> float:
    """Where the conversation's first user turn hashes to in [0, 1)."""
    messages = comparison.prompt.messages
    first = next(m["content"] for m in messages if m["role"] == "user")
    return int(hashlib.sha256(first.encode()).hexdigest()[:12], 16) / 16**12
