"""Serve the page on which people compare responses.

python launch/annotate.py --workdir=runs/collect [--annotators_per_task=3]

WORKDIR holds tasks.jsonl, from launch/collect.py with --config.annotator=people; each
answer is on the disk, in answers.jsonl, before the next task appears. Stop with Ctrl-C
and start again at any time. Then: launch/exchange.py makes comparisons of the answers.

To others than this machine the page is served under a password only, and in clear text:
through a tunnel (ssh -L 7860:localhost:7860 HOST) or a proxy with TLS it stays private.
"""

import ipaddress
import os
import socket
import sys
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # this copy of the package

from rlhf_jax.data.annotation.answers import AnswerLog
from rlhf_jax.data.annotation.assignment import Assignment
from rlhf_jax.data.annotation.tasks import GUIDELINE, read_tasks
from rlhf_jax.data.records import CRITERIA

PASSWORD = "RLHF_JAX_PASSWORD"  # environment variable
MIN_PASSWORD = 8  # characters
FLAGS = flags.FLAGS


def serve(workdir: Path) -> None:
    """Serve the tasks of `workdir` until stopped.

    Raises:
        FileNotFoundError: no tasks, guideline or password file.
        ValueError: an address without password, a port that is taken, tasks that are
            being served already, answers that belong to other tasks.
    """
    password = read_password(FLAGS.password_file)
    hosts = allowed_hosts(FLAGS.host, password)
    unknown = set(FLAGS.criteria) - set(CRITERIA)
    if unknown:
        raise ValueError(f"--criteria: {sorted(unknown)} is none of {CRITERIA}.")
    tasks = read_tasks(workdir / "tasks.jsonl")
    guideline = read_text(FLAGS.guideline or GUIDELINE)
    log = AnswerLog(workdir / "answers.jsonl")
    assignment = Assignment(
        tasks,
        log,
        annotators_per_task=FLAGS.annotators_per_task,
        lease_seconds=60 * FLAGS.lease_minutes,
    )
    listener = listen(FLAGS.host, FLAGS.port)
    try:
        # After all mistakes that a user can make: these take seconds.
        import uvicorn

        from rlhf_jax.data.annotation.page import make_app
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'rlhf_jax[annotate]'.") from None
    web = make_app(
        assignment,
        guideline=guideline,
        criteria=FLAGS.criteria,
        password=password,
        allowed_hosts=hosts,
    )
    host, port = listener.getsockname()[:2]
    logging.info(
        "%d tasks, %d answers so far. The page: http://%s:%d  (Ctrl-C stops it)",
        len(tasks),
        len(log.answers),
        f"[{host}]" if ":" in host else host,
        port,
    )
    server = uvicorn.Server(uvicorn.Config(web, log_level="warning"))
    server.run(sockets=[listener])
    log.close()


def read_text(path: str | Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return Path(path).read_text(encoding="utf-8")


def read_password(file: str) -> str | None:
    """The password from a file or the environment; None: there is none.

    It is no flag: flags can be seen by everyone on the machine and are logged.
    """
    if file:
        password, source = read_text(file).strip(), file
    else:
        password, source = os.environ.get(PASSWORD), PASSWORD
        if password is None:
            return None
    if len(password) < MIN_PASSWORD:
        raise ValueError(f"{source}: the password must have {MIN_PASSWORD} characters.")
    return password


def allowed_hosts(host: str, password: str | None) -> list[str]:
    """Under which names a browser may ask for the page served at `host`.

    Raises:
        ValueError: others could reach the page, and there is no password.
    """
    if is_loopback(host):
        # No other name: a page elsewhere could have its name point here.
        return ["localhost", "127.0.0.1", "[::1]", host] if password is None else ["*"]
    if password is None:
        raise ValueError(
            f"--host={host} lets others reach the page, which needs a password: set "
            f"the environment variable {PASSWORD} or --password_file."
        )
    return ["*"]


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"Cannot listen at {host}, port {port}: {error.strerror}. Choose another "
            "with --host and --port."
        ) from None


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags start with --")
    serve(Path(FLAGS.workdir))


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
    logging.set_verbosity(logging.INFO)
    try:
        app.run(main)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
