"""Send annotation tasks to another tool, and make comparisons of its answers.

python launch/exchange.py --workdir=runs/collect --export=label_studio --file=out.json
python launch/exchange.py --workdir=runs/collect --import=label_studio --file=in.json
python launch/exchange.py --workdir=runs/collect --import=page

WORKDIR holds tasks.jsonl, from launch/collect.py with --config.annotator=people.
--export writes FILE and, beside it, the set-up of the tool: Label Studio's labelling
interface (.xml) or Argilla's settings (.settings.json). --import reads FILE (for the
page of launch/annotate.py: WORKDIR/answers.jsonl) and writes WORKDIR/comparisons.jsonl;
it never overwrites the comparisons of another import there (--join keeps both).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from absl import app, flags

from rlhf_jax.data.annotation.exchange import TOOLS, export_tasks, import_comparisons
from rlhf_jax.data.annotation.tasks import read_tasks
from rlhf_jax.data.records import CRITERIA
from rlhf_jax.launching import cli

FLAGS = flags.FLAGS


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
    exported_to, imported_from = FLAGS["export"].value, FLAGS["import"].value
    if bool(exported_to) == bool(imported_from):
        raise app.UsageError("give either --export or --import")
    workdir = Path(FLAGS.workdir)
    if not FLAGS.file and imported_from != "page":
        raise app.UsageError("--file is required")
    tasks = read_tasks(workdir / "tasks.jsonl")
    if exported_to:
        export_tasks(
            tasks,
            exported_to,
            Path(FLAGS.file),
            criteria=FLAGS.criteria,
            guideline=FLAGS.guideline,
            annotators_per_task=FLAGS.annotators_per_task,
        )
    else:
        file = Path(FLAGS.file or workdir / "answers.jsonl")
        out = workdir / "comparisons.jsonl"
        import_comparisons(tasks, imported_from, file, out, join=FLAGS.join)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of tasks.jsonl.", required=True)
    flags.DEFINE_enum("export", None, list(TOOLS), "Write tasks for this tool.")
    flags.DEFINE_enum("import", None, ["page", *TOOLS], "Read answers of this tool.")
    flags.DEFINE_string("file", "", "The file to write or to read.")
    flags.DEFINE_bool("join", False, "Keep the comparisons of other imports.")
    flags.DEFINE_list(
        "criteria", list(CRITERIA), "Criteria to ask for beside the overall choice."
    )
    flags.DEFINE_string(
        "guideline", "", "A Markdown file with the guideline, for Argilla."
    )
    flags.DEFINE_integer(
        "annotators_per_task", 1, "People per task, for Argilla.", lower_bound=1
    )
    cli.command(main)
