"""Serve the page on which people compare responses.

python launch/annotate.py --workdir=runs/collect [--annotators_per_task=3]

WORKDIR holds tasks.jsonl, from launch/collect.py with --config.annotator=people. Each
answer is saved in answers.jsonl before the next task appears, so the command can be
stopped with Ctrl-C and started again at any time. Afterwards launch/exchange.py makes
comparisons of the answers.

Other machines reach the page only with a password. The connection is not encrypted: use
a tunnel (ssh -L 7860:localhost:7860 HOST) or a proxy with TLS to keep it private.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from absl import flags

from rlhf_jax.data.annotation.serve import PASSWORD, serve
from rlhf_jax.data.records import CRITERIA
from rlhf_jax.launching import cli

FLAGS = flags.FLAGS


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
    serve(
        Path(FLAGS.workdir),
        annotators_per_task=FLAGS.annotators_per_task,
        criteria=FLAGS.criteria,
        guideline=FLAGS.guideline,
        lease_minutes=FLAGS.lease_minutes,
        host=FLAGS.host,
        port=FLAGS.port,
        password_file=FLAGS.password_file,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of tasks.jsonl.", required=True)
    flags.DEFINE_integer(
        "annotators_per_task",
        1,
        "The number of people who answer each task.",
        lower_bound=1,
    )
    flags.DEFINE_list(
        "criteria", list(CRITERIA), "Criteria to ask for beside the overall choice."
    )
    flags.DEFINE_string(
        "guideline", "", "A Markdown file of your own with the guideline."
    )
    flags.DEFINE_float(
        "lease_minutes",
        30.0,
        "Minutes after which an unanswered task may go to another person.",
    )
    flags.DEFINE_string("host", "127.0.0.1", "The address to serve at.")
    flags.DEFINE_integer(
        "port", 7860, "The port to serve at; 0: any free port.", lower_bound=0
    )
    flags.DEFINE_string(
        "password_file",
        "",
        f"A file with the password; else {PASSWORD} in the environment is used.",
    )
    cli.command(main)
