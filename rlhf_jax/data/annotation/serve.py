"""Serving of the annotation page: its password, its address, and its host names."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from rlhf_jax.data.annotation.answers import AnswerLog
from rlhf_jax.data.annotation.assignment import Assignment
from rlhf_jax.data.annotation.tasks import GUIDELINE, read_tasks
from rlhf_jax.data.records import CRITERIA

PASSWORD = "RLHF_JAX_PASSWORD"  # name of the environment variable
MIN_PASSWORD = 8  # shortest password, in characters


def serve(
    workdir: Path,
    *,
    annotators_per_task: int,
    criteria: Sequence[str],
    guideline: str,
    lease_minutes: float,
    host: str,
    port: int,
    password_file: str,
) -> None:
    """Serve the tasks of `workdir` until stopped.

    Args:
        annotators_per_task: the number of people who answer each task.
        criteria: the criteria to judge besides the overall choice.
        guideline: a Markdown file; "" means the package's own.
        lease_minutes: the minutes after which an unanswered task on a screen goes to
            another annotator.
        host, port: the address to serve at; port 0 means any free port.
        password_file: the file with the password; "" means the environment variable
            `PASSWORD`, if set.

    Raises:
        FileNotFoundError: the tasks, the guideline or the password file is missing.
        ValueError: a public address without a password, a port in use, tasks that are
            being served already, or answers to other tasks.
    """
    password = read_password(password_file)
    hosts = allowed_hosts(host, password)
    unknown = set(criteria) - set(CRITERIA)
    if unknown:
        raise ValueError(f"--criteria: {sorted(unknown)} is none of {CRITERIA}.")
    tasks = read_tasks(workdir / "tasks.jsonl")
    guideline = read_text(guideline or GUIDELINE)
    log = AnswerLog(workdir / "answers.jsonl")
    assignment = Assignment(
        tasks,
        log,
        annotators_per_task=annotators_per_task,
        lease_seconds=60 * lease_minutes,
    )
    listener = listen(host, port)
    try:
        # Slow imports (seconds) come after the checks of all arguments.
        import uvicorn

        from rlhf_jax.data.annotation.page import make_app
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'rlhf_jax[annotate]'.") from None
    web = make_app(
        assignment,
        guideline=guideline,
        criteria=criteria,
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
    # Open pages hold connections forever: after Ctrl-C the server closes them in 2 s.
    server = uvicorn.Server(
        uvicorn.Config(web, log_level="error", timeout_graceful_shutdown=2)
    )
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises this again once it has stopped
        pass
    finally:
        log.close()
    logging.info("Stopped. %s holds %d answers.", log.path, len(log.answers))


def read_text(path: str | Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return Path(path).read_text(encoding="utf-8")


def read_password(file: str) -> str | None:
    """Read the password from a file or the environment; None if there is no password.

    A flag would be logged, and visible to every user of the machine.
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
    """Return the host names under which a browser may request the page at `host`.

    Raises:
        ValueError: other machines could reach the page, and there is no password.
    """
    if is_loopback(host):
        # Other names are refused, against DNS rebinding: the name of a foreign page
        # could resolve to this machine.
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
