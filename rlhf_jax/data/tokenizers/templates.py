"""Chat templates, rendered in a separate process with limits on time and memory.

A template is a program that came with a tokenizer. transformers' sandbox keeps the
template from files and from Python's internals, but not from endless loops or texts of
many gigabytes, and a thread cannot be stopped from outside. The process ends with its
parent.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

SECONDS = 10.0  # limit on processor time for one rendering
MEMORY = 2 << 30  # limit in bytes on the process, in addition to its libraries
LENGTH = 10_000_000  # limit in characters on one rendered text

_lock = threading.Lock()
_process: subprocess.Popen | None = None
_parent = 0  # id of the process that started `_process`: a fork must start its own


def render(template: str, messages: list[dict], variables: dict) -> str:
    """Render messages by a chat template, as transformers does.

    Args:
        variables: further variables of the template, such as add_generation_prompt.

    Raises:
        ValueError: the template fails, or exceeds `SECONDS`, `MEMORY` or `LENGTH`; the
            message names the limit.
    """
    request = {
        "template": template,
        "messages": messages,
        "variables": variables,
        "seconds": SECONDS,
        "length": LENGTH,
    }
    with _lock:
        process = _started()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BaseException as error:  # an unread answer must not stay in the pipe
            _stop()
            if isinstance(error, BrokenPipeError):
                line = b""
            else:
                raise
        if not line.endswith(b"\n"):
            status = process.wait()
            _stop()
            took = f"it takes more than {SECONDS:g} seconds"
            ended = f"its process ended with status {status}"
            raise ValueError(took if status == -signal.SIGPROF else ended)
    answer = json.loads(line)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


def _started() -> subprocess.Popen:
    global _process, _parent
    if _process is None or _parent != os.getpid() or _process.poll() is not None:
        _process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the parent alone
        )
        _parent = os.getpid()
    return _process


@atexit.register
def _stop() -> None:
    global _process
    if _process is not None and _parent == os.getpid():
        _process.kill()
        for pipe in (_process.stdin, _process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        _process.wait()
    _process = None


def _serve() -> None:
    """Answer each line of JSON on stdin by a line on stdout, until the parent ends."""
    import resource

    from transformers.utils.chat_template_utils import render_jinja_template

    answers, sys.stdout = sys.stdout, sys.stderr
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # sends SIGPROF
            (text,), _ = render_jinja_template(
                [request["messages"]],
                chat_template=request["template"],
                **request["variables"],
            )
            answer = {"text": text}
            if len(text) > request["length"]:
                answer = {"error": f"it makes more than {request['length']} characters"}
        except MemoryError:
            answer = {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
