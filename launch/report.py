"""Look at runs: one page with tables, curves and conversations, or tables for pasting.

python launch/report.py runs/tiny --out=report.html
python launch/report.py runs/kl runs/other --format=md

A DIR is a run or holds runs, at any depth: a pipeline's workdir, a sweep's, a few of
each. Runs that differ in nothing but their seed are one, with the seeds as a band. The
page needs no network; it follows the reader's light or dark colours.
"""

from pathlib import Path

import start
from absl import app, flags, logging

from rlhf_jax.evaluation.report import page
from rlhf_jax.evaluation.report.runs import find_runs

FORMATS = {"html": page.html, "md": page.markdown}


def write_report(folders: list[str], out: Path | None, *, form: str, title: str) -> str:
    """The report of all runs in `folders`, written to `out` if given; returns it."""
    runs, notes = find_runs(folders)
    text = FORMATS[form](runs, notes, title=title or ", ".join(map(str, folders)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return text


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise app.UsageError("name at least one folder of runs")
    out = FLAGS.out or ("report.html" if FLAGS.format == "html" else "")
    path = Path(out) if out else None
    text = write_report(argv[1:], path, form=FLAGS.format, title=FLAGS.title)
    if path is None:
        print(text)
    else:
        logging.info("%s: %d kB.", path, len(text.encode()) // 1000)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("out", "", "The file; html: report.html; md: printed.")
    flags.DEFINE_enum("format", "html", list(FORMATS), "A page, or Markdown tables.")
    flags.DEFINE_string("title", "", "Over the report; else the folders.")
    start.set_up_logs()
    with start.clear_errors():
        app.run(main)
