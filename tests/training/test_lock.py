import json
import socket
import subprocess
import sys

import pytest

from rlhf_jax.training import lock

HOLD = """
import sys
from pathlib import Path
from rlhf_jax.training import lock
lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(ValueError) as error:
        lock.acquire(tmp_path)
    text = str(error.value)
    assert f"process {holder.pid} on {socket.gethostname()}" in text
    assert "another --workdir" in text


def test_the_lock_of_a_killed_process_is_stale_and_taken_over(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    record = json.loads((tmp_path / lock.FILE).read_text())
    assert record["pid"] == holder.pid  # it had no time to tidy up
    lock.acquire(tmp_path)
    lock.release(tmp_path)


def test_a_process_may_take_its_own_lock_again_and_gives_it_up_once(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    lock.release(tmp_path)
    assert (tmp_path / lock.FILE).read_text() == ""


@pytest.mark.parametrize("content", [b"\x00 not json {", b"\xff\xfe", b"[1]", b"5"])
def test_a_lock_file_of_rubbish_is_in_nobodys_way(content, tmp_path):
    (tmp_path / lock.FILE).write_bytes(content)
    lock.acquire(tmp_path)
    lock.release(tmp_path)


def test_a_folder_stays_locked_when_the_file_is_deleted(tmp_path, holder):
    (tmp_path / lock.FILE).unlink()
    with pytest.raises(ValueError, match="is in use by another process"):
        lock.acquire(tmp_path)
    holder.kill()
    holder.wait()
    lock.acquire(tmp_path)
    lock.release_all()


def test_all_locks_are_given_up_at_the_end(tmp_path, caplog):
    lock.acquire(tmp_path)
    lock.release_all()
    assert (tmp_path / lock.FILE).read_text() == ""
    lock.acquire(tmp_path)
    assert "stale" not in caplog.text
    lock.release_all()
