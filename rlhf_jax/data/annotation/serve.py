"""The annotation page, served: its password, its address, and who may ask for it."""

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

PASSWORD = "RLHF_JAX_PASSWORD"  # environment variable
MIN_PASSWORD = 8  # characters


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
        annotators_per_task: so many people answer each task.
        criteria: asked beside the overall choice.
        guideline: a Markdown file; "": the package's own.
        lease_minutes: after so long a task left on a screen goes to somebody else.
        host, port: the address to serve at; port 0 is any free one.
        password_file: holds the password; "": the environment does, if there is one.

    Raises:
        FileNotFoundError: no tasks, guideline or password file.
        ValueError: an address without password, a port that is taken, tasks that are
            being served already, answers that belong to other tasks.
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
        # After all mistakes that a user can make: these take seconds.
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
    # Open pages hold connections for ever: after Ctrl-C they are given a moment.
    server = uvicorn.Server(
        uvicorn.Config(web, log_level="error", timeout_graceful_shutdown=2)
    )
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # which uvicorn raises once it has stopped
        pass
    finally:
        log.close()
    logging.info("Stopped. %s holds %d answers.", log.path, len(log.answers))


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
