"""Serve the page on which people compare responses.

python launch/annotate.py --workdir=runs/collect [--annotators_per_task=3]

WORKDIR holds tasks.jsonl, from launch/collect.py with --config.annotator=people; each
answer is on the disk, in answers.jsonl, before the next task appears. Stop with Ctrl-C
and start again at any time. Then: launch/exchange.py makes comparisons of the answers.

To others than this machine the page is served under a password only, and in clear text:
through a tunnel (ssh -L 7860:localhost:7860 HOST) or a proxy with TLS it stays private.
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
        "annotators_per_task", 1, "So many people answer each task.", lower_bound=1
    )
    flags.DEFINE_list("criteria", list(CRITERIA), "Asked beside the overall choice.")
    flags.DEFINE_string("guideline", "", "A Markdown file of your own.")
    flags.DEFINE_float(
        "lease_minutes", 30.0, "A task left on a screen goes to somebody else after."
    )
    flags.DEFINE_string("host", "127.0.0.1", "The address to serve at.")
    flags.DEFINE_integer("port", 7860, "The port; 0: any free one.", lower_bound=0)
    flags.DEFINE_string(
        "password_file", "", f"Holds the password; else {PASSWORD} in the environment."
    )
    cli.command(main)
