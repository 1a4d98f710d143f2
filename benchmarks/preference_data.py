"""Table of the preferences in data: the taste for length, what balancing leaves of a
set, and the agreement of annotators. It needs no model.

python -m benchmarks.preference_data --data=FOLDER [--by tranche subset] [--width=10]

FOLDER holds sets of comparisons, a folder or a file each, in any layout that the
project reads (docs/data_formats.md); everything else in it is passed over. Each set is
cleaned (ties and contradictions out, votes merged) and balanced by length as
launch/prepare_comparisons.py does, with lengths in words, or in characters for Chinese
and Japanese. Where several annotators judged the same pairs, prepare_comparisons itself
runs on the set and its report gives their agreement. `--by` names the fields of a row
that say which part of its set the row belongs to; the parts are reported too.

The results are written to results/preference_data.json and results/preference_data.md.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.preference_sets import (
    length_in,
    preference_files,
    read_set,
    unit_of_length,
)
from configs import prepare_comparisons as prepare_config
from rlhf_jax.data.cleaning.annotator_quality import Limits
from rlhf_jax.data.cleaning.comparison_report import markdown
from rlhf_jax.data.cleaning.filters import chosen_and_rejected, clean
from rlhf_jax.data.cleaning.length_balance import length_balance
from rlhf_jax.data.cleaning.votes import read_votes
from rlhf_jax.data.records import Comparison
from rlhf_jax.evaluation.intervals import pair_accuracy
from rlhf_jax.files import read_json, write_json, write_text
from rlhf_jax.stages import prepare_comparisons

RESULTS = Path(__file__).parents[1] / "results"
LIMITS = Limits(**prepare_config.get_config().annotators)


def study(comparisons: Sequence[Comparison], unit: str, width: int) -> dict:
    """Measure the taste for length of a set's cleaned pairs, before and after
    balancing.

    Args:
        unit: "words" or "characters".
        width: the width of a bucket of length balancing, in this unit.
    """
    votes = read_votes(comparisons, lambda texts: [length_in(unit, t) for t in texts])
    cleaning = clean(votes, LIMITS)
    rows = np.flatnonzero(cleaning.reason == 0)
    better, worse = (votes.lengths[x] for x in chosen_and_rejected(votes, rows))
    kept = length_balance(better, worse, width=width, seed=0).keep
    conversations = votes.conversation[rows]
    return {
        "comparisons": len(comparisons),
        "dropped": dict(cleaning.dropped()),
        "unit": unit,
        "before": _taste(better, worse, conversations),
        "kept": float(kept.mean()) if len(kept) else None,
        "after": _taste(better[kept], worse[kept], conversations[kept]),
    }


def _taste(better: np.ndarray, worse: np.ndarray, conversations: np.ndarray) -> dict:
    """Return how often the longer response is the better one, among pairs of unequal
    length, with an interval over conversations; and the mean lengths."""
    unequal = better != worse
    numbers = {"pairs": len(better), "equal": int((~unequal).sum())}
    if len(better):
        numbers |= {"better": float(better.mean()), "worse": float(worse.mean())}
    if unequal.any():
        share = pair_accuracy((better - worse)[unequal], conversations[unequal])
        names = {"accuracy": "longer_wins", "accuracy_low": "low"}
        names |= {"accuracy_high": "high"}
        numbers |= {new: share[name] for name, new in names.items()}
    return numbers


def has_several_annotators(comparisons: Sequence[Comparison]) -> bool:
    """Return True if two named annotators judged one pair."""
    seen: dict[tuple, str] = {}
    named = (c for c in comparisons if c.annotator)
    return any(
        seen.setdefault((c.prompt.id, c.response_a, c.response_b), c.annotator)
        != c.annotator
        for c in named
    )


def agreement(files: Sequence[Path], width: int) -> dict:
    """Run prepare_comparisons on a set; return its annotators, kappa and alpha."""
    config = prepare_config.get_config("hh")
    config.comparisons = ",".join(map(str, files))
    config.on_bad_record = "skip"
    config.length_bucket = width
    with tempfile.TemporaryDirectory() as folder:
        prepare_comparisons.run(config, folder)
        report = read_json(Path(folder) / "report.json")
    return {name: report[name] for name in ("kappa", "alpha", "annotators")}


def measure(folder: Path, fields: Sequence[str], width: int) -> dict:
    """Return the numbers of every set in a folder, and of the parts of each."""
    sets = {}
    for name, files in preference_files(folder).items():
        data = read_set(files, fields)
        unit = unit_of_length(data.comparisons)
        sets[name] = study(data.comparisons, unit, width)
        sets[name]["left_out"] = dict(+data.left_out)
        sets[name]["parts"] = {
            part: study([data.comparisons[i] for i in rows], unit, width)
            for part, rows in data.parts().items()
        }
        if has_several_annotators(data.comparisons):
            sets[name]["agreement"] = agreement(files, width)
    return {"bucket_width": width, "sets": sets}


def table(results: dict) -> str:
    """Return the results as a page of tables."""
    width = results["bucket_width"]
    rows, people = [], []
    for name, numbers in results["sets"].items():
        rows.append(_row(name, numbers))
        rows += [_row(f"- {part}", x) for part, x in numbers["parts"].items()]
        for who in numbers.get("agreement", {}).get("annotators", []):
            people.append({"set": name} | {k: who[k] for k in PERSON})
    lines = [
        "# Human preferences: length and agreement\n",
        "`python -m benchmarks.preference_data --data=FOLDER`. Pairs are cleaned "
        "first (ties, contradictions and cycles out, the annotators' votes merged). "
        "Lengths are means. The longer wins if it is the better one; pairs of equal "
        "length are left out of this share. Brackets: 95 % intervals over "
        "conversations. Balancing keeps as many pairs whose better response is the "
        "longer as pairs whose better response is the shorter, in each bucket of "
        f"{width} words (characters for Chinese).\n",
        markdown("Length", rows),
    ]
    if people:
        lines.append(markdown("Annotators", people))
    for name, numbers in results["sets"].items():
        if shared := numbers.get("agreement"):
            groups = itertools.product(("kappa", "alpha"), shared["kappa"])
            values = (f"{x} {shared[x][group]:.3f} {group}" for x, group in groups)
            lines.append(f"Agreement in {name}: {', '.join(values)}.\n")
    return "\n".join(lines)


PERSON = ("annotator", "votes", "kappa", "longer chosen", "out")


def _row(name: str, numbers: dict) -> dict:
    before, after, kept = numbers["before"], numbers["after"], numbers["kept"]
    return {
        "set": name,
        "comparisons": numbers["comparisons"],
        "clean pairs": before["pairs"],
        "unit": numbers["unit"],
        "better / worse": _lengths(before),
        "longer wins": _share(before),
        "kept by balancing": "" if kept is None else f"{kept:.1%}",
        "better / worse after": _lengths(after),
        "longer wins after": _share(after),
    }


def _lengths(taste: dict) -> str:
    return f"{taste['better']:.0f} / {taste['worse']:.0f}" if taste["pairs"] else ""


def _share(taste: dict) -> str:
    if "longer_wins" not in taste:
        return ""
    low, high = (100 * taste[x] for x in ("low", "high"))
    return f"{taste['longer_wins']:.1%} [{low:.1f}, {high:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--by", nargs="*", default=["tranche", "subset"])
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args(arguments)
    try:
        results = measure(flags.data, flags.by, flags.width)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_json(flags.results / "preference_data.json", results)
    write_text(flags.results / "preference_data.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
