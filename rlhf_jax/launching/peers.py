"""The other processes of a run: wait until all have started, and notice a lost one.

jax ends a process with a C++ stack trace if the processes do not find each other, or if
process 0 is lost. Therefore the processes connect before jax starts, at the address
that jax's own service uses afterwards, and keep their connections: the connection of a
process that dies is closed.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
import time

from rlhf_jax.training import preemption

PATIENCE = 60  # seconds for all processes to connect
GRACE = 20  # seconds to reach an own error after another process has one
DONE, FAILED = b"d", b"f"  # messages of a process before it ends

_peers: list[socket.socket] = []
_leaving = threading.Lock()  # held by the thread that ends this process


def meet(address: str, count: int, index: int) -> None:
    """Wait until all processes of the run are connected.

    Args:
        address: the address at which process 0 listens, "HOST:PORT".
        count: the number of processes.
        index: the number of this process.

    Raises:
        ValueError: the processes do not find each other; says why, in every process
            that can be reached.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"--coordinator={address} is not of the form ADDRESS:PORT.")
    if not 0 <= index < count:
        raise ValueError(
            f"--process_id={index}: processes count from 0 to {count - 1}."
        )
    deadline = time.monotonic() + PATIENCE
    if index == 0:
        _peers.extend(_receive_all(int(port), count, deadline))
    else:
        _peers.append(_report(host, int(port), count, index, deadline))
    for peer in _peers:
        peer.setblocking(True)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    threading.Thread(target=_watch, daemon=True).start()
    _end_aborts()


def part(status: int) -> None:
    """Tell the other processes that this one ends, successfully or with an error."""
    for peer in _peers:
        with contextlib.suppress(OSError):
            peer.sendall(DONE if status in (0, preemption.STATUS) else FAILED)


def leave(status: int, why: str = "") -> None:
    """End this process at once, without the exit handlers of libraries. The first
    thread that calls decides."""
    _leaving.acquire()
    if why:
        print(why, file=sys.stderr)
    part(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave_lost(reason: str) -> None:
    """End this process because another one was lost."""
    leave(
        preemption.STATUS,
        f"Another process of this run was lost ({reason}). Start the same command in "
        "all of them again: the run resumes from the last checkpoint.",
    )


def _receive_all(port: int, count: int, deadline: float) -> list[socket.socket]:
    """Accept, as process 0, the connections of the others."""
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=count
        )
    except OSError as error:
        raise ValueError(
            f"Process 0 cannot listen on port {port} ({os.strerror(error.errno)}): "
            "name another port in --coordinator, or end what uses it."
        ) from None
    came: dict[int, socket.socket] = {}
    problem = ""
    with listener:
        while len(came) < count - 1 and not problem:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = listener.accept()
                number, of = _read(peer, seconds=5)
            except TimeoutError:
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, count)) - came.keys())
                    problem = (
                        f"Of {count} processes, {', '.join(map(str, missing))} did not "
                        f"come to process 0 within {PATIENCE} s: start the same "
                        "command for each --process_id."
                    )
                continue
            except (OSError, ValueError, TypeError):
                continue  # not a process of this run
            if of != count:
                problem = f"Process {number} has --num_processes={of}, not {count}."
            elif number in came:
                problem = f"Two processes have --process_id={number}."
            came[-number if problem else number] = peer
    for peer in came.values():
        with contextlib.suppress(OSError):
            _write(peer, problem)
    if problem:
        raise ValueError(problem)
    return list(came.values())


def _report(
    host: str, port: int, count: int, index: int, deadline: float
) -> socket.socket:
    """Connect, as another process, to process 0."""
    problem = ""
    while time.monotonic() < deadline:
        try:
            peer = socket.create_connection((host, port), timeout=5)
            _write(peer, [index, count])
            answer = _read(peer, seconds=max(1, deadline - time.monotonic()) + 5)
        except OSError as error:
            problem = error.strerror or str(error)
            time.sleep(0.2)
            continue
        except ValueError:
            problem = "the answer is not from a process of a starting run"
            time.sleep(0.2)
            continue
        if answer:
            raise ValueError(answer)
        return peer
    raise ValueError(
        f"Process 0 does not answer at --coordinator={host}:{port} within {PATIENCE} s "
        f"({problem}): start it there, or name its address."
    )


def _write(peer: socket.socket, message) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read(peer: socket.socket, seconds: float):
    """Receive a line of JSON.

    Raises:
        OSError, ValueError: no line arrived in time, or one that is not JSON.
    """
    peer.settimeout(seconds)
    line = b""
    while not line.endswith(b"\n"):
        byte = peer.recv(1)
        if not byte or len(line) > 1000:
            raise ValueError("no line of JSON")
        line += byte
    return json.loads(line)


def _watch() -> None:
    """End this process when another one is lost without a message."""
    watched = list(_peers)
    while watched:
        for peer in select.select(watched, [], [])[0]:
            try:
                said = peer.recv(1)
            except OSError:
                said = b""
            if said == DONE:
                watched.remove(peer)
                continue
            if said == FAILED:
                time.sleep(GRACE)  # most errors occur in all processes
            leave_lost("it failed" if said == FAILED else "its connection closed")


def _end_aborts() -> None:
    """End as `leave_lost` does where jax aborts because of a lost process."""

    def on_abort(_):
        if _any_closed():
            leave_lost("jax has noticed it")

    global _on_abort  # C has no reference to it
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def _any_closed() -> bool:
    """Return True if a connection was closed without the message of an end."""
    for peer in _peers:
        try:
            if peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                return True
        except BlockingIOError:
            continue
        except OSError:
            return True
    return False
