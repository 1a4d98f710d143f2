"""Make a clean, length-balanced set of raw comparisons; report the drops by reason.

1. Read the comparisons once, as columns of numbers (data/cleaning/votes.py).
2. Drop careless annotators, contradictions, ties and cycles
   (data/cleaning/filters.py).
3. Hold out a share of the conversations; balance the others by length
   (ChatGLM-RLHF, arXiv 2404.00934, section 2; data/cleaning/length_balance.py).
4. Read the rows of the kept comparisons again, and write these comparisons.

Writes comparisons.jsonl, comparisons_test.jsonl (cleaned, not balanced), report.json,
report.md and length_difference.png. The files are read twice and must not change in
between.
"""

import contextlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from rlhf_jax.data.cleaning import comparison_report
from rlhf_jax.data.cleaning.annotator_quality import Limits, agreement, alpha
from rlhf_jax.data.cleaning.filters import REASONS, chosen_and_rejected, clean, take
from rlhf_jax.data.cleaning.length_balance import length_balance
from rlhf_jax.data.cleaning.votes import read_votes
from rlhf_jax.data.reading.files import Rows, ending
from rlhf_jax.data.reading.json_lines import RecordError, each_good, scan_json_lines
from rlhf_jax.data.reading.layouts import as_kind, comparisons_of, records_of
from rlhf_jax.data.reading.rows import scan_rows, sources
from rlhf_jax.data.records import Comparison, write_records
from rlhf_jax.data.sources import tokenizer_of
from rlhf_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    is_readable,
    load_tokenizer,
    train_tokenizer,
)
from rlhf_jax.shared_work import first_does
from rlhf_jax.terminal import listed
from rlhf_jax.training.workdir import done_before, finish, open_workdir

TRAINED_ON = 20_000  # the number of comparisons that a tokenizer is trained on


def run(config, workdir: str) -> None:
    """Clean `config.comparisons` and write the sets into `workdir`."""
    check_options(config)
    workdir = open_workdir(workdir, config)
    if done_before(workdir):
        return
    finish(workdir, first_does(prepare, config, workdir))


def prepare(config, workdir: Path) -> dict[str, int]:
    """Write the sets and their report; return how many comparisons each step left."""
    # Read
    tokenizer = open_tokenizer(config, workdir)
    left_out, sizes = Counter(), array("q")
    votes = read_votes(
        read(config, left_out, sizes, workdir / "bad_records.jsonl"),
        measure=lambda texts: map(len, tokenizer.encode_batch(texts)),
    )

    # Clean
    cleaning = clean(votes, Limits(**config.annotators))
    is_clean = cleaning.reason == 0

    # Hold out and balance
    test = is_clean & (votes.conversation < config.test_share)
    rows = np.flatnonzero(is_clean & ~test)
    better, worse = (votes.lengths[r] for r in chosen_and_rejected(votes, rows))
    keep, buckets = np.ones(len(rows), bool), []
    if config.length_bucket:
        balance = length_balance(
            better, worse, width=config.length_bucket, seed=config.seed
        )
        keep = balance.keep
        buckets = comparison_report.bucket_rows(balance, config.length_bucket)
    train = np.zeros(len(is_clean), bool)
    train[rows[keep]] = True

    if not train.any():
        raise ValueError(
            f"None of {len(is_clean)} comparisons is left to train on; dropped: "
            f"{listed(left_out + cleaning.dropped())}, held out: {test.sum()}, length "
            f"balance: {len(rows)}."
        )

    # Write
    held_out = []

    def trained_on() -> Iterator[Comparison]:
        keep = train | test
        kept = take(read_again(config, sizes, keep), keep, votes, cleaning)
        for row, comparison in kept:
            if train[row]:
                yield comparison
            else:
                held_out.append(comparison)

    write_records(workdir / "comparisons.jsonl", trained_on())
    write_records(workdir / "comparisons_test.jsonl", held_out)

    # Report
    dropped = left_out + cleaning.dropped()
    if config.length_bucket:
        dropped["length balance"] = int((~keep).sum())
    usable = ~votes.empty & (votes.one != votes.other)
    trusted = usable & (cleaning.reason != REASONS.index("careless annotator"))
    tables = {
        "Comparisons": comparison_report.funnel_rows(
            len(is_clean) + left_out.total(),
            dropped,
            {"held out": len(held_out), "out": int(train.sum())},
        ),
        "Annotators": comparison_report.annotator_rows(cleaning.annotators),
        "Length balance": buckets,
    }
    groups = {"of all annotators": usable, "of those who are in": trusted}
    kappa = {name: agreement(votes, rows) for name, rows in groups.items()}
    alphas = {name: alpha(votes, rows) for name, rows in groups.items()}
    comparison_report.write(workdir, tables, kappa, alphas, better - worse, keep)
    return {row["step"]: row["comparisons"] for row in tables["Comparisons"]}


def open_tokenizer(config, workdir: Path) -> Tokenizer:
    """Return the tokenizer of `config.tokenizer`, or one trained on the first
    responses."""
    if config.tokenizer:
        return tokenizer_of(config.tokenizer)
    folder = workdir / "tokenizer"
    if not is_readable(folder):
        first = itertools.islice(readable(config), TRAINED_ON)
        texts = (text for c in first for text in (c.response_a, c.response_b))
        train_tokenizer(texts, config.vocab_size, folder)
    return load_tokenizer(folder)


def read(config, left_out: Counter, sizes: array, report: Path) -> Iterator[Comparison]:
    """Yield the comparisons of all files; `config.on_bad_record` governs bad records.

    Args:
        left_out: is filled with the number of rows left out, by reason.
        sizes: is filled with the number of comparisons of each row.
        report: the file that lists bad records.
    """
    unused = Counter()

    def scanned(origin: str) -> Rows:
        for row in scan(origin, config.split):
            left_out["bad record"] += 1  # taken back once the row proves good
            sizes.append(0)
            yield row

    def convert(row: dict) -> tuple[list[Comparison], Counter]:
        parsed = records_of(row, config.layout)
        unused.update(parsed.unused)
        comparisons = [as_kind(record, Comparison) for record in parsed.records]
        return comparisons, parsed.left_out

    for origin in origins(config):
        for comparisons, without in each_good(
            scanned(origin),
            convert,
            source=named(origin, config.split),
            on_bad_record=config.on_bad_record,
            report=report,
        ):
            left_out["bad record"] -= 1
            left_out.update(without)
            sizes[-1] = len(comparisons)
            yield from comparisons
    if unused:
        logging.info("Rows with a field that is not used: %s.", dict(unused))


def read_again(config, sizes: array, keep: np.ndarray) -> Iterator[Comparison | None]:
    """Yield the same N comparisons again, and None for each comparison of a row that
    `keep` (bool [N]) drops whole.

    Raises:
        ValueError: the file changed since it was first read.
    """
    ends = np.cumsum(sizes)
    kept = np.append(0, np.cumsum(keep))
    wanted = (kept[ends] > kept[ends - np.array(sizes)]).tolist()
    lines = iter(wanted)
    rows = itertools.chain.from_iterable(
        scan(origin, config.split, lines) for origin in origins(config)
    )
    for (_, row), size, is_wanted in zip(rows, sizes, wanted, strict=True):
        if not is_wanted:
            yield from itertools.repeat(None, size)
            continue
        again = comparisons_of(row, config.layout)[0] if isinstance(row, dict) else []
        if len(again) != size:
            raise ValueError(f"{config.comparisons} changed while it was being read.")
        yield from again


def readable(config) -> Iterator[Comparison]:
    """Yield the comparisons that can be read; `read` reports the bad records."""
    for origin in origins(config):
        for _, row in scan(origin, config.split):
            if isinstance(row, dict):
                with contextlib.suppress(RecordError):
                    yield from comparisons_of(row, config.layout)[0]


def origins(config) -> list[str]:
    return [name.strip() for name in config.comparisons.split(",") if name.strip()]


def named(origin: str, split: str) -> str:
    """Return the name of an origin for messages: the file of a folder's split where
    there is only one, else the origin itself."""
    names = (
        [name for name, _ in sources(origin, split)] if Path(origin).is_dir() else []
    )
    return names[0] if len(names) == 1 else origin


def scan(origin: str, split: str, wanted: Iterator[bool] | None = None) -> Rows:
    """Return the rows of a file or of one split of a data set. Rows that are not
    `wanted` are None, and such lines of JSON are not parsed."""
    path = Path(origin)
    if ending(path) == ".jsonl" and not path.is_dir():
        return scan_json_lines(origin, wanted)
    rows = scan_rows(origin, split)
    if wanted is None:
        return rows
    return ((number, row if next(wanted, True) else None) for number, row in rows)


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if not origins(config):
        raise ValueError("Set config.comparisons: files, or a data set.")
    if not 0 <= config.test_share < 1:
        raise ValueError(f"{config.test_share=} must be from 0 to below 1.")
    Limits(**config.annotators)
