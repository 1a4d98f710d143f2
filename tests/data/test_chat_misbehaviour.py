"""The client against a service that misbehaves: a row each, with the right outcome.

A transient failure is retried; a permanent one loses one answer, not the others. The
possible cost of an answer that never came counts as spent.
"""

import gzip
import json
import logging
import re
import socket
import struct
import time
from email.utils import formatdate

import pytest

from rlhf_jax.data import transport
from rlhf_jax.data.chat_client import ChatClient, ChatError, ChatSettings
from tests.chat_service import said

SECRET = "sk-do/not+show=me-0123456789"
USED = 3e-5  # 10 tokens for 1 and 2 for 10 a million: what `said` counts
MOST = (len("bad") + 16 + 100 * 10) * 1e-6  # of a request with an unknown outcome
WHOLE = said("yes")


def content(value, **message) -> bytes:
    """A body whose message has this content."""
    body = json.loads(WHOLE)
    body["choices"][0]["message"] = {"content": value, **message}
    return json.dumps(body).encode()


def with_usage(usage) -> bytes:
    return json.dumps(json.loads(WHOLE) | {"usage": usage}).encode()


def raw(*pieces: bytes, pause: float = 0.0):
    """Write to the socket, and close it."""

    def reply(handler):
        for piece in pieces:
            handler.wfile.write(piece)
            time.sleep(pause)

    return reply


def reset(handler):
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def echo_key(handler):
    handler.write(401, f"Bad key: {handler.headers['Authorization']}".encode())


def bytes_of(text: bytes) -> list[bytes]:
    return [text[i : i + 1] for i in range(len(text))]


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(WHOLE)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIPPED = {"Content-Encoding": "gzip"}
CHINESE = content("是").replace(b"\\u662f", "是".encode("gbk"))

# --- Retried: name, first reply, what that reply may have cost ---
PASSING = [
    ("408", (408, b""), MOST),
    ("409", (409, b"{}"), 0),
    ("425", (425, b""), 0),
    ("429", (429, b""), 0),
    ("429 that counts tokens", (429, WHOLE), USED),
    ("500", (500, b"down"), 0),
    ("502, a page", (502, b"<html>Bad Gateway</html>"), 0),
    ("503", (503, b""), 0),
    ("504", (504, b""), MOST),
    ("520", (520, b""), 0),
    ("521", (521, b""), 0),
    ("522", (522, b""), MOST),
    ("523", (523, b""), 0),
    ("524", (524, b""), MOST),
    ("529", (529, b"{}"), 0),
    ("Retry-After, fractions", (429, b"", {"Retry-After": "1.5"}), 0),
    ("Retry-After, unreadable", (429, b"", {"Retry-After": "soon"}), 0),
    ("Retry-After, empty", (503, b"", {"Retry-After": ""}), 0),
    ("Retry-After, negative", (503, b"", {"Retry-After": "-3"}), 0),
    ("Retry-After, not a number", (503, b"", {"Retry-After": "nan"}), 0),
    ("body cut off, by length", raw(OK, LENGTH, WHOLE[:20]), MOST),
    ("body cut off, by its end", (200, WHOLE[:20]), MOST),
    ("chunks cut off", raw(CHUNKED, b"10\r\n", WHOLE[:5]), MOST),
    ("chunks without a size", raw(CHUNKED, b"xyz\r\n", WHOLE), MOST),
    ("gzip cut off", (200, gzip.compress(WHOLE)[:30], GZIPPED), MOST),
    ("not gzip", (200, WHOLE, GZIPPED), MOST),
    ("nothing at all", raw(), MOST),
    ("connection reset", reset, MOST),
    ("headers cut off", raw(OK, b"Content-Le"), MOST),
    ("no HTTP", raw(b"hello\r\n\r\n"), MOST),
    ("an empty body", (200, b""), MOST),
    ("a page with status 200", (200, b"<html>Please wait</html>"), MOST),
    ("no UTF-8", (200, b"\xff\xfe\xfd"), MOST),
    ("brackets without end", (200, b"[" * 7000), MOST),
    ("a number of 5,000 digits", (200, b'{"x": %s}' % (b"9" * 5000)), MOST),
    ("an error of the upstream", (200, b'{"error": {"code": 502}}'), MOST),
    ("its code as text", (200, b'{"error": {"code": "429"}}'), MOST),
    ("its code as words", (200, b'{"error": {"code": "rate_limit_exceeded"}}'), MOST),
    ("an error that is a text", (200, b'{"error": "Overloaded"}'), MOST),
]
# --- One answer is missing: name, reply, what is logged, what it may have cost ---
STAYING = [
    ("400", (400, b"filtered"), "answers 400: 'filtered'", 0),
    (
        "400, another field",
        (400, b"Use 'max_completion_tokens' instead."),
        'Set max_tokens_field="max_completion_tokens"',
        0,
    ),
    ("400, temperature", (400, b"temperature?"), 'Set temperature_field=""', 0),
    ("401", (401, b"no"), "Check the API key", 0),
    ("401 that repeats the key", echo_key, r"Bad key: Bearer \*\*\*", 0),
    ("403", (403, b"no"), "answers 403: 'no'", 0),
    ("404", (404, b"no"), "Check url .* and model", 0),
    ("413", (413, b"too long"), "answers 413", 0),
    ("422", (422, b"\x1b[31m\n"), r"answers 422: '\\x1b\[31m\\n'", 0),
    ("501", (501, b""), "answers 501", 0),
    ("204", (204, b""), "answers 204", 0),
    ("301", (301, b"", {"Location": "{other}"}), r"redirects \(301\) to 127.0.0.1", 0),
    ("302", (302, b"", {"Location": "{other}"}), r"redirects \(302\)", 0),
    ("307", (307, b"", {"Location": "{other}"}), r"redirects \(307\)", 0),
    ("308", (308, b"", {"Location": "{other}"}), r"redirects \(308\)", 0),
    ("303 to nowhere", (303, b""), r"redirects \(303\) to None", 0),
    ("null", (200, content(None)), "billed and kept", USED),
    ("a refusal", (200, content(None, refusal="I cannot")), "billed and kept", USED),
    ("no content", (200, content(0)), "billed and kept", USED),
    ("blanks", (200, content(" \n")), "billed and kept", USED),
    ("parts without text", (200, content([{"type": "image"}, 3])), "and kept", USED),
    ("a list", (200, b"[]"), "without a text: '\\[\\]'", MOST),
    ("a text", (200, b'"yes"'), "answers without a text", MOST),
    ("a number", (200, b"5"), "answers without a text", MOST),
    ("null alone", (200, b"null"), "answers without a text", MOST),
    ("an empty object", (200, b"{}"), "answers without a text", MOST),
    ("no choices", (200, b'{"choices": []}'), "answers without a text", MOST),
    ("an error", (200, b'{"error": {"code": "filtered"}}'), "without a text", MOST),
    ("choices: null", (200, b'{"choices": null}'), "answers without a text", MOST),
    ("a choice: a text", (200, b'{"choices": ["a"]}'), "answers without a text", MOST),
    (
        "a message: a list",
        (200, b'{"choices": [{"message": []}]}'),
        "answers without a text",
        MOST,
    ),
    (
        "no choices, but a count",
        (200, b'{"usage": {"prompt_tokens": 10, "completion_tokens": 2}}'),
        "answers without a text",
        USED,
    ),
    ("more than can be held", raw(OK, b"\r\n", b"x" * 9000), "more than 8000 by", MOST),
    (
        "more, of few bytes",
        (200, gzip.compress(b" " * 10**6), GZIPPED),
        "more than 8000 bytes",
        MOST,
    ),
]
# --- Odd answers that are answers: name, reply, the answer, its cost ---
ODD = [
    (
        "parts of a text",
        (200, content([{"type": "text", "text": "a"}] * 2)),
        "aa",
        USED,
    ),
    ("half a surrogate pair", (200, content("a\ud800")), "a?", USED),
    ("a zero character", (200, content("a\0b")), "a\0b", USED),
    ("UTF-8 with its mark", (200, b"\xef\xbb\xbf" + WHOLE), "yes", USED),
    ("UTF-16", (200, WHOLE.decode().encode("utf-16")), "yes", USED),
    (
        "another charset",
        (200, CHINESE, {"Content-Type": "application/json; charset=gbk"}),
        "是",
        USED,
    ),
    ("a wrong charset", (200, WHOLE, {"Content-Type": "x; charset=zlib"}), "yes", USED),
    ("gzip", (200, gzip.compress(WHOLE), GZIPPED), "yes", USED),
    ("the key in it", (200, content(f"a {SECRET}")), "a ***", USED),
    ("no usage", (200, with_usage(None)), "yes", MOST),
    ("usage: a list", (200, with_usage([1])), "yes", MOST),
    ("usage: null counts", (200, with_usage({"prompt_tokens": None})), "yes", MOST),
    *(
        (
            f"usage: {count!r:.20}",
            (200, with_usage({"prompt_tokens": count, "completion_tokens": 2})),
            "yes",
            MOST,
        )
        for count in (-1, "10", 1.5, True, 10**12, 10**400, float("inf"))
    ),
]
# --- No whole answer within the limit of 0.3 s: name, reply ---
SLOW = [
    ("silence", raw(b"", pause=1.0)),
    ("a body that drips", raw(OK, b"\r\n", *bytes_of(WHOLE[:40]), pause=0.05)),
    ("headers that drip", raw(*bytes_of(OK + b"X: y\r\n" * 9), pause=0.05)),
    (
        "chunks that drip",
        raw(CHUNKED, *[b"1\r\n \r\n"] * 40, pause=0.05),
    ),
]


@pytest.fixture
def client(service, tmp_path, monkeypatch):
    """A client whose pauses are noted in `client.pauses` instead of made."""
    monkeypatch.setattr(transport, "MAX_BODY", 8000)
    made = []

    def make(**changes):
        fields = {
            "url": service.url,
            "model": "judge",
            "max_tokens": 100,
            "temperature": 0.0,
            "prompt_price": 1.0,
            "response_price": 10.0,
            "spending_limit": 1.0,
            "max_retries": 3,
            "timeout": 20.0,
            "workers": 1,
        }
        settings = ChatSettings(**fields | changes)
        made.append(ChatClient(settings, tmp_path / "cache.sqlite", SECRET))
        made[-1].pauses = []
        made[-1]._transport._pause = lambda seconds: made[-1].pauses.append(seconds)
        return made[-1]

    yield make
    for client in made:
        client.close()


def asking(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def ask_good_and_bad(client, service, replies) -> tuple[list[str], float, int]:
    """The answers, and what "bad" cost in money and requests."""
    assert client.answer(asking("good")) == "yes"
    spent, count = client.spent(), len(service.requests)
    service.replies = replies
    found = client.answers([asking("good"), asking("bad")])
    return found, client.spent() - spent, len(service.requests) - count


def named(rows):
    return [pytest.param(*row, id=name) for name, *row in rows]


@pytest.mark.parametrize(("reply", "cost"), named(PASSING))
def test_a_failure_that_passes_is_asked_again(service, client, caplog, reply, cost):
    caplog.set_level(logging.INFO)
    client = client()
    found, paid, requests = ask_good_and_bad(client, service, [reply])
    assert found == ["yes", "yes"] and requests == 2
    assert paid == pytest.approx(cost + USED)
    assert len(client.pauses) == 1
    assert "Retry in" in caplog.text and "(try 2 of 4)" in caplog.text


@pytest.mark.parametrize(("reply", "message", "cost"), named(STAYING))
def test_a_failure_that_stays_is_one_answer_missing(
    service, client, caplog, tmp_path, reply, message, cost
):
    with type(service)() as other:
        if isinstance(reply, tuple) and len(reply) == 3:
            headers = {k: v.format(other=other.url) for k, v in reply[2].items()}
            reply = (*reply[:2], headers)
        client = client()
        found, paid, requests = ask_good_and_bad(client, service, [reply] * 2)
    assert found == ["yes", ""] and requests == 1 and not client.pauses
    assert paid == pytest.approx(cost)
    assert not other.requests  # the conversation goes nowhere else
    assert "1 of 2 requests to judge have no answer and count as missing" in caplog.text
    assert re.search(message, caplog.text)
    assert SECRET not in caplog.text
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in files


@pytest.mark.parametrize(("reply", "answer", "cost"), named(ODD))
def test_an_odd_answer_is_an_answer(service, client, tmp_path, reply, answer, cost):
    found, paid, requests = ask_good_and_bad(client(), service, [reply])
    assert found == ["yes", answer] and requests == 1
    assert paid == pytest.approx(cost)
    again = client()
    assert again.answers([asking("bad")]) == [answer]  # from the cache
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in files


@pytest.mark.parametrize("reply", named(SLOW))
def test_a_whole_answer_has_a_limit_of_time(service, client, reply):
    client = client(max_retries=1, timeout=0.3)
    found, paid, requests = ask_good_and_bad(client, service, [reply])
    assert found == ["yes", "yes"] and requests == 2
    assert paid == pytest.approx(MOST + USED)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("1.5", 1.5),
        ("0", 0.0),
        ("86400", 60.0),
        ("1e999", 0.5),
        ("-1", 0.5),
        ("tomorrow", 0.5),
        (formatdate(0), 0.0),
        (formatdate(4e9), 60.0),
    ],
)
def test_no_service_decides_how_long_a_run_sleeps(service, client, header, seconds):
    client = client()
    service.replies = [(429, b"", {"Retry-After": header})]
    assert client.answer(asking("bad")) == "yes"
    assert client.pauses == [seconds]


def test_the_usual_pauses_grow_up_to_a_minute(service, client):
    client = client(max_retries=10)
    service.replies = [(503, b"")] * 11
    with pytest.raises(ChatError, match="answers 503"):
        client.answer(asking("bad"))
    assert client.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_service_that_is_not_there_costs_nothing(client, caplog):
    client = client(url="http://127.0.0.1:1/v1")
    with pytest.raises(ChatError, match=r"Cannot reach http://127.0.0.1:1/v1/chat"):
        client.check()
    assert client.spent() == 0 and len(client.pauses) == 3


def test_a_refusal_of_everything_is_an_error(service, client):
    service.replies = [(400, b"no such thing")] * 3 + [(500, b"x")] * 4
    with pytest.raises(
        ChatError, match=r"None of 4 requests to judge has an answer; 3 times: .* 400"
    ):
        client().answers([asking(str(n)) for n in range(4)])


def test_a_service_that_goes_away_stops_the_run_and_the_rest_is_asked_later(
    service, client
):
    questions = [asking(str(n)) for n in range(30)]
    service.replies = [(200, said("yes"))] * 5 + [(503, b"gone")] * 11
    with pytest.raises(ChatError, match=r"The last 10 requests .* start again when"):
        client(max_retries=0).answers(questions)
    assert len(service.requests) == 5 + 10 + 1
    assert client().answers(questions) == ["yes"] * 30


def test_many_refusals_in_a_row_stop_nothing_while_the_service_answers(service, client):
    def speak(messages):
        return "yes" if messages[0]["content"] > "A" else b'{"choices": [{}]}'

    service.speak = speak
    questions = [asking(str(n)) for n in range(25)] + [asking("yes?")]
    assert client().answers(questions) == [""] * 25 + ["yes"]


def test_an_answer_without_a_text_is_kept_and_not_asked_anew(service, client):
    service.replies = [(200, content(None))]
    for _ in range(2):
        with pytest.raises(ChatError, match="raise max_tokens"):
            client().answer(asking("bad"))
    assert len(service.requests) == 1
    assert client(max_tokens=200).answer(asking("bad")) == "yes"


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, {"max_tokens": 100, "temperature": 0.0}),
        (
            {"max_tokens_field": "max_completion_tokens"},
            {"max_completion_tokens": 100, "temperature": 0.0},
        ),
        ({"max_tokens_field": ""}, {"temperature": 0.0}),
        ({"temperature_field": ""}, {"max_tokens": 100}),
        ({"temperature": None}, {"max_tokens": 100}),
        ({"temperature": ""}, {"max_tokens": 100}),
    ],
)
def test_fields_have_the_services_names_or_are_left_out(service, client, fields, sent):
    client(**fields).answer(asking("a"))
    (request,) = service.requests
    known = {"model": "judge", "messages": asking("a")}
    assert request == known | sent
