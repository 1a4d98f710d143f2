"""Export of annotation tasks to other tools, and import of comparisons."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from rlhf_jax.data.annotation import argilla, label_studio
from rlhf_jax.data.annotation.answers import comparisons, read_answers
from rlhf_jax.data.annotation.tasks import GUIDELINE, Task
from rlhf_jax.data.records import Comparison, read_records, write_records
from rlhf_jax.files import write_text
from rlhf_jax.terminal import listed

TOOLS = {"label_studio": label_studio, "argilla": argilla}


def export_tasks(
    tasks: dict[str, Task],
    tool: str,
    file: Path,
    *,
    criteria: Sequence[str],
    guideline: str,
    annotators_per_task: int,
) -> None:
    """Write the tasks for a tool to `file`, and the tool's setup to a file beside it;
    for the other arguments see `serve.serve`."""
    if tool == "label_studio":
        setup, text = ".xml", label_studio.labeling_config(criteria)
    else:
        text = Path(guideline or GUIDELINE).read_text(encoding="utf-8")
        setup, text = (
            ".settings.json",
            json.dumps(
                argilla.settings(
                    criteria,
                    guideline=text,
                    annotators_per_task=annotators_per_task,
                ),
                ensure_ascii=False,
                indent=2,
            ),
        )
    exported = TOOLS[tool].export_tasks(tasks.values())
    write_text(file, json.dumps(exported, ensure_ascii=False, indent=1))
    write_text(file.with_suffix(setup), text)
    logging.info(
        "%d tasks: %s, set up by %s", len(tasks), file, file.with_suffix(setup)
    )


def import_comparisons(
    tasks: dict[str, Task], tool: str, file: Path, out: Path, *, join: bool
) -> None:
    """Convert the answers in `file` to comparisons, written to `out`.

    Args:
        join: keep the comparisons in `out` by other annotators or of other tasks; if
            False, `out` must hold no comparisons that this import would lose.

    Raises:
        FileNotFoundError, ValueError: `file` does not exist, is not an export of the
            tool, answers other tasks, or would overwrite another import.
    """
    left_out = Counter()
    if tool == "page":
        answers = read_answers(file)
    else:
        try:
            exported = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
        try:
            answers, left_out = TOOLS[tool].import_answers(exported, tasks)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    try:
        records = comparisons(tasks, answers)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not records:
        raise ValueError(f"{file} holds no answers. Left out: {listed(left_out)}.")
    left_out["skipped"] = len(answers) - len(records)
    given = {(answer.task, answer.annotator) for answer in answers}
    before = read_records(out, Comparison) if out.exists() else []
    others = [x for x in before if (x.task, x.annotator) not in given]
    if others and not join:
        names = sorted({x.annotator for x in others})
        raise ValueError(
            f"{out} holds {len(others)} comparisons that {file} does not, by "
            f"{', '.join(names[:5])}: another import. Keep them with --join, or move "
            "the file away."
        )
    records = others + records
    write_records(out, records)
    logging.info(
        "%d comparisons by %d annotators in %s. Left out: %s. Next: "
        "launch/prepare_comparisons.py.",
        len(records),
        len({record.annotator for record in records}),
        out,
        listed(+left_out),
    )
