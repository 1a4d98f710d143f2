"""Look at runs: one page with tables, curves and conversations, or tables for pasting.

python launch/report.py runs/tiny --out=report.html
python launch/report.py runs/kl runs/other --format=md

A DIR is a run or holds runs, at any depth: a pipeline's workdir, a sweep's, a few of
each. Runs that differ in nothing but their seed are one, with the seeds as a band. The
page needs no network; it follows the reader's light or dark colours.
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
    flags.DEFINE_string("out", "", "The file; html: report.html; md: printed.")
    flags.DEFINE_enum("format", "html", ["html", "md"], "A page, or Markdown tables.")
    flags.DEFINE_string("title", "", "Over the report; else the folders.")
    cli.command(main)
