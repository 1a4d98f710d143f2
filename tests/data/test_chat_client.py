"""The client against a service on this machine: retries, cache, spending limit."""

import contextlib
import dataclasses
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.data import answer_cache
from rlhf_jax.data.answer_cache import CacheError, SpendingLimitError
from rlhf_jax.data.chat_client import (
    ChatClient,
    ChatError,
    ChatSettings,
    read_service,
)
from rlhf_jax.data.transport import Transport
from tests.chat_service import said


@pytest.fixture
def make_client(service, tmp_path, monkeypatch):
    monkeypatch.setattr(Transport, "_pause", lambda *args: None)
    clients = []

    def make(api_key="", cache=tmp_path / "cache.sqlite", **changes) -> ChatClient:
        settings = ChatSettings(
            url=service.url,
            model="judge",
            max_tokens=100,
            temperature=0.0,
            prompt_price=1.0,
            response_price=10.0,
            spending_limit=1.0,
            max_retries=3,
            timeout=5.0,
            workers=4,
        )
        settings = dataclasses.replace(settings, **changes)
        clients.append(ChatClient(settings, cache, api_key))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def asking(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_what_was_answered_is_never_asked_again(service, make_client):
    client = make_client("secret")
    assert client.answers([asking("a"), asking("b")]) == ["yes", "yes"]
    assert sorted(r["messages"][0]["content"] for r in service.requests) == ["a", "b"]
    assert service.keys == ["Bearer secret"] * 2
    # A restart asks nothing either, but another setting makes another request.
    assert make_client().answer(asking("a")) == "yes"
    assert len(service.requests) == 2
    make_client(temperature=0.5).answer(asking("a"))
    assert len(service.requests) == 3


def test_a_question_that_comes_twice_is_asked_once(service, make_client):
    assert make_client().answers([asking("a"), asking("a")]) == ["yes", "yes"]
    assert len(service.requests) == 1


def test_what_passes_is_asked_again_and_what_stays_is_an_error(service, make_client):
    client = make_client()
    service.replies = [(503, b""), (429, b""), (200, said("at last"))]
    assert client.answer(asking("a")) == "at last"
    assert len(service.requests) == 3
    service.replies = [(500, b"down")] * 9
    with pytest.raises(ChatError, match="answers 500: 'down'"):
        client.answer(asking("b"))
    assert len(service.requests) == 3 + 4
    service.replies = [(401, b"who are you?")]
    with pytest.raises(ChatError, match="answers 401: 'who are you"):
        client.answer(asking("c"))
    assert len(service.requests) == 3 + 4 + 1


def test_a_service_that_is_not_there_is_one_clear_line(make_client):
    with pytest.raises(ChatError, match=r"Cannot reach http://127.0.0.1:1/v1/chat"):
        make_client(url="http://127.0.0.1:1/v1").answer(asking("a"))


def test_the_cost_is_what_the_service_counts(service, make_client):
    client = make_client()
    client.answer(asking("a"))
    assert client.spent() == pytest.approx((10 * 1.0 + 2 * 10.0) * 1e-6)
    body = json.loads(said("no count"))
    del body["usage"]
    service.replies = [(200, json.dumps(body).encode())]
    before = client.spent()
    client.answer(asking("abc"))  # counted as the most it can cost
    assert client.spent() - before == pytest.approx((3 + 16 + 100 * 10.0) * 1e-6)


def test_spending_stops_before_the_limit_and_goes_on_when_it_is_raised(
    service, make_client
):
    # The most an answer can cost is 0.001017, what it does cost 0.00003.
    questions = [asking(str(n)) for n in range(10)]
    client = make_client(spending_limit=0.0011, workers=3)
    with pytest.raises(SpendingLimitError, match=r"spending_limit=0.0011 .*raise the"):
        client.answers(questions)
    assert client.spent() <= 0.0011
    asked = len(service.requests)
    assert 0 < asked < 10
    # A new client finds what is spent; with a higher limit it asks only the others.
    again = make_client(spending_limit=0.0011)
    assert again.spent() == pytest.approx(asked * 3e-5)
    assert make_client(spending_limit=1.0).answers(questions) == ["yes"] * 10
    assert len(service.requests) == 10


def test_what_is_under_way_counts_as_spent(service, make_client):
    service.seconds = 0.3
    client = make_client(spending_limit=0.0011, workers=2)
    with pytest.raises(SpendingLimitError, match=r"and 0\.001017 under way"):
        client.answers([asking("a"), asking("b")])
    assert len(service.requests) == 1


def test_answers_in_the_cache_that_are_no_text_are_asked_again(
    service, make_client, tmp_path
):
    client = make_client()
    client.answer(asking("a"))
    with sqlite3.connect(tmp_path / "cache.sqlite") as cache:
        cache.execute("UPDATE answers SET answer = x'00', cost = 0.25")
        cache.execute("INSERT INTO answers VALUES ('k', '', 'x', 'free')")
        cache.execute("INSERT INTO answers VALUES ('l', '', 'x', -5)")
    assert client.spent() == 0.25
    assert client.answer(asking("a")) == "yes"
    assert len(service.requests) == 2
    assert client.spent() == pytest.approx(0.25003)  # what was paid stays paid


def no_database(path):
    path.write_bytes(b"no database at all" * 100)


def another_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (question TEXT)")


def locked(path):
    connection = sqlite3.connect(path)
    connection.execute("BEGIN EXCLUSIVE")
    return connection  # closed when the test forgets it


def below_a_file(path):
    path.parent.joinpath("file").touch()
    return path.parent / "file" / "cache.sqlite"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (no_database, "file is not a database"),
        (another_database, "no such column: key"),
        (Path.mkdir, "unable to open database file"),
        (locked, "database is locked"),
        (below_a_file, "(Not a directory|File exists)"),
    ],
)
def test_a_cache_that_cannot_be_used_is_one_clear_line(
    make_client, tmp_path, monkeypatch, break_it, message
):
    monkeypatch.setattr(answer_cache, "LOCK_SECONDS", 0.05)
    path = tmp_path / "cache.sqlite"
    held = break_it(path)
    path = held if isinstance(held, Path) else path
    with pytest.raises(
        CacheError, match=f"{path}, which .* cannot be used: .*{message}"
    ):
        make_client(cache=path)


def test_a_cache_that_becomes_read_only_is_one_clear_line(make_client):
    client = make_client()
    client._cache._connection.execute("PRAGMA query_only = 1")  # as for root's tests
    with pytest.raises(CacheError, match="attempt to write a readonly database"):
        client.answers([asking("a"), asking("b")])


@pytest.mark.parametrize("api_key", ["  sk-secret\n", "\r\nsk-secret\r\n"])
def test_the_blanks_around_a_key_are_not_sent(service, make_client, api_key):
    make_client(api_key).answer(asking("a"))
    assert service.keys == ["Bearer sk-secret"]


@pytest.mark.parametrize(
    "api_key",
    [" \n", "sk-sec\nret", "sk-sec\r\nret", "sk sec ret", "sk-sécret", "sk\0ret"],
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(make_client, api_key):
    with pytest.raises(ValueError, match=r"API key (is empty|holds a blank)") as caught:
        make_client(api_key)
    shown = f"{caught.value!r}"
    assert "sec" not in shown and "ret" not in shown and "sk" not in shown


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, r"Set config.judge.model, and its url"),
        (
            {"url": "127.0.0.1:8000/v1"},
            r"config.judge.url must be like https://HOST/v1",
        ),
        ({"url": "file:///etc/passwd"}, r"must be like https://HOST/v1"),
        ({"url": "http://[::1/v1"}, r"must be like https://HOST/v1"),
        ({"url": "http://h:99999999/v1"}, r"must be like https://HOST/v1"),
        ({"url": "https://me:sk-secret@host/v1"}, r"must end with its path"),
        ({"url": "https://host/v1?key=sk-secret"}, r"must end with its path"),
        ({"api_key_variable": "NO_SUCH"}, r"environment variable NO_SUCH is not set"),
        ({"api_key_variable": "sk-secret"}, r"gives a variable's name, not an API key"),
        ({"api_key_variable": "BROKEN"}, r"variable BROKEN holds a blank, a line end"),
    ],
)
def test_a_service_that_cannot_be_asked_is_named_without_its_key(
    make_client, monkeypatch, fields, message
):
    monkeypatch.setenv("BROKEN", "sk-sec\nret")
    settings = dataclasses.asdict(make_client().settings) | {"api_key_variable": ""}
    with pytest.raises(ValueError, match=message) as caught:
        read_service(settings | fields, key="config.judge")
    assert "sk-sec" not in f"{caught.value!r}"


def test_a_check_pays_once_and_knows_later_that_the_service_is_gone(
    service, make_client
):
    client = make_client()
    client.check()
    client.check()
    assert len(service.requests) == 1
    service.shutdown()
    service.server_close()
    with pytest.raises(ChatError, match=r"Cannot reach http://127.0.0.1:\d+/v1/models"):
        make_client(max_retries=0).check()


SPENDER = """
import signal
import sys
from pathlib import Path
from rlhf_jax.data.chat_client import ChatClient, ChatSettings, SpendingLimitError

# A test in a background job inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
url, cache, name = sys.argv[1:]
settings = ChatSettings(url, "judge", 100, 0.0, 0.0, 1000.0, 1.05, 0, 300.0, 4)
client = ChatClient(settings, Path(cache))
asked = [[{"role": "user", "content": f"{name} {i}"}] for i in range(20)]
try:
    client.answers(asked)
except SpendingLimitError:
    sys.exit(3)
"""


def spender(service, cache, name) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SPENDER, service.url, cache, name],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )


def wait_for_requests(service, count):
    deadline = time.monotonic() + 60
    while len(service.requests) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(service.requests) >= count


def test_ctrl_c_does_not_wait_for_the_service(service, tmp_path):
    service.seconds = 600.0
    process = spender(service, tmp_path / "cache.sqlite", "a")
    wait_for_requests(service, 4)  # of its four workers
    for _ in range(30):  # Python drops a signal that comes in a callback
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
            break
    assert process.poll() not in (None, 0)


def test_the_limit_holds_over_processes_that_share_a_cache_and_are_killed(
    service, tmp_path
):
    """A request costs 0.1 of a limit of 1.05, and the service bills each that comes."""
    service.speak = lambda messages: said("yes", 0, 100)
    cache = tmp_path / "cache.sqlite"
    service.seconds = 60.0  # killed with five to eight requests under way
    killed = [spender(service, cache, name) for name in "ab"]
    wait_for_requests(service, 5)
    for process in killed:
        process.kill()
        process.wait()
    under_way = len(service.requests)
    assert 5 <= under_way <= 8
    service.seconds = 0.05
    later = [spender(service, cache, name) for name in "cd"]
    assert [process.wait() for process in later] == [3, 3]
    assert under_way < len(service.requests) <= 10  # billed: at most 1.0
    client = ChatClient(
        ChatSettings(service.url, "judge", 100, 0, 0, 1000.0, 1.05, 0, 9, 1), cache
    )
    assert 0.1 * len(service.requests) <= client.spent() + 1e-9 <= 1.05
    with pytest.raises(SpendingLimitError, match=r"killed or cut off.*raise the limit"):
        client.answer(asking("more"))
    client.close()


def test_a_failed_request_leaves_no_reservation(service, make_client):
    client = make_client(spending_limit=0.0011)
    for _ in range(3):
        service.replies = [(400, b"no")]
        with pytest.raises(ChatError, match="400"):
            client.answer(asking("a"))
    assert client.answer(asking("a")) == "yes"
