"""Report on runs: one page with tables, curves and conversations, or Markdown tables.

python launch/report.py runs/tiny --out=report.html
python launch/report.py runs/kl runs/other --format=md

Every argument is the folder of a run, or a folder that holds runs at any depth, such as
the workdir of a pipeline or of a sweep. Runs that differ only in their seed are shown
as one, with a band over the seeds. The page needs no network, and has light and dark
colours.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from absl import app, flags, logging

from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.launching import cli
from rlhf_jax.terminal import print_markdown

FLAGS = flags.FLAGS


def main(folders: list[str]) -> None:
    if not folders:
        raise app.UsageError("name at least one folder of runs")
    out = FLAGS.out or ("report.html" if FLAGS.format == "html" else "")
    path = Path(out) if out else None
    text = write_report(folders, path, form=FLAGS.format, title=FLAGS.title)
    if path is None:
        print_markdown(text)
    else:
        logging.info("%s: %d kB.", path, len(text.encode()) // 1000)


if __name__ == "__main__":
    flags.DEFINE_string(
        "out", "", "The file to write; by default report.html, and md is printed."
    )
    flags.DEFINE_enum("format", "html", ["html", "md"], "A page, or Markdown tables.")
    flags.DEFINE_string("title", "", "The title of the report; by default the folders.")
    cli.command(main)
