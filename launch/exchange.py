"""Send annotation tasks to another tool, and make comparisons of what comes back.

python launch/exchange.py --workdir=runs/collect --export=label_studio --file=out.json
python launch/exchange.py --workdir=runs/collect --import=label_studio --file=in.json
python launch/exchange.py --workdir=runs/collect --import=page

WORKDIR holds tasks.jsonl, from launch/collect.py with --config.annotator=people.
--export writes FILE and beside it how to set the tool up: Label Studio's labelling
interface (.xml) or Argilla's settings (.settings.json). --import reads FILE, which for
the page of launch/annotate.py is WORKDIR/answers.jsonl, and writes
WORKDIR/comparisons.jsonl.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # this copy of the package

from rlhf_jax.data.annotation import argilla, label_studio
from rlhf_jax.data.annotation.answers import comparisons, read_answers
from rlhf_jax.data.annotation.tasks import GUIDELINE, Task, read_tasks
from rlhf_jax.data.records import CRITERIA, write_records

TOOLS = {"label_studio": label_studio, "argilla": argilla}
FLAGS = flags.FLAGS


def export_tasks(tasks: dict[str, Task], tool: str, file: Path) -> None:
    """Write the tasks for a tool to `file`, and its setup beside it."""
    if tool == "label_studio":
        setup, text = ".xml", label_studio.labeling_config(FLAGS.criteria)
    else:
        guideline = Path(FLAGS.guideline or GUIDELINE).read_text(encoding="utf-8")
        setup, text = (
            ".settings.json",
            json.dumps(
                argilla.settings(
                    FLAGS.criteria,
                    guideline=guideline,
                    annotators_per_task=FLAGS.annotators_per_task,
                ),
                ensure_ascii=False,
                indent=2,
            ),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    exported = TOOLS[tool].export_tasks(tasks.values())
    file.write_text(json.dumps(exported, ensure_ascii=False, indent=1), "utf-8")
    file.with_suffix(setup).write_text(text, encoding="utf-8")
    logging.info(
        "%d tasks: %s, set up by %s", len(tasks), file, file.with_suffix(setup)
    )


def import_comparisons(tasks: dict[str, Task], tool: str, file: Path, out: Path):
    """Write the comparisons that answers in `file` make to `out`.

    Raises:
        FileNotFoundError, ValueError: `file` is not there, is no export of the tool, or
            answers other tasks.
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
    records = comparisons(tasks, answers)
    if not records:
        raise ValueError(f"{file} holds no answers. Left out: {dict(left_out)}.")
    write_records(out, records)
    left_out["skipped"] = len(answers) - len(records)
    logging.info(
        "%d comparisons by %d annotators in %s. Left out: %s. Next: "
        "launch/prepare_comparisons.py.",
        len(records),
        len({record.annotator for record in records}),
        out,
        dict(+left_out),
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags start with --")
    exported_to, imported_from = FLAGS["export"].value, FLAGS["import"].value
    if bool(exported_to) == bool(imported_from):
        raise app.UsageError("give either --export or --import")
    workdir = Path(FLAGS.workdir)
    if not FLAGS.file and imported_from != "page":
        raise app.UsageError("--file is required")
    tasks = read_tasks(workdir / "tasks.jsonl")
    if exported_to:
        export_tasks(tasks, exported_to, Path(FLAGS.file))
    else:
        file = Path(FLAGS.file or workdir / "answers.jsonl")
        out = workdir / "comparisons.jsonl"
        import_comparisons(tasks, imported_from, file, out)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of tasks.jsonl.", required=True)
    flags.DEFINE_enum("export", None, list(TOOLS), "Write tasks for this tool.")
    flags.DEFINE_enum("import", None, ["page", *TOOLS], "Read answers of this tool.")
    flags.DEFINE_string("file", "", "What is written or read.")
    flags.DEFINE_list("criteria", list(CRITERIA), "Asked beside the overall choice.")
    flags.DEFINE_string("guideline", "", "A Markdown file of your own, for Argilla.")
    flags.DEFINE_integer("annotators_per_task", 1, "For Argilla.", lower_bound=1)
    logging.set_verbosity(logging.INFO)
    try:
        app.run(main)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
