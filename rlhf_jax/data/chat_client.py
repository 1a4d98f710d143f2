"""A client of OpenAI-compatible chat services with a cache and a spending limit.

A transient failure is retried after a bounded pause; a permanent failure loses one
answer, not the others. Answers and costs are stored in an SQLite file
(answer_cache.py): no answer is billed twice, the spending limit holds over restarts,
and a run that was stopped continues where it was.
"""

import dataclasses
import hashlib
import json
import os
import re
import threading
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import logging

from rlhf_jax.data.answer_cache import AnswerCache, CacheError, SpendingLimitError
from rlhf_jax.data.records import Message
from rlhf_jax.data.transport import (
    FailedTryError,
    Transport,
    check_key,
    check_url,
    parse_json,
    passes,
    retry_after,
)
from rlhf_jax.shared_work import first_does

# Words of a transient error that has no status code.
BUSY = re.compile(r"rate.?limit|overload|too many requests|unavailable|time.?out", re.I)
TIMED_OUT = (408, 504, 522, 524)  # gateway timeouts: the answer may have been billed
MAX_COUNT = 10**7  # most tokens in `usage`; a higher count is a mistake of the service
MESSAGE_TOKENS = 16  # upper bound of the tokens that a chat format adds to a message
FAILURES_IN_A_ROW = 10  # failures after which a check request is sent
CHECK = ({"role": "user", "content": "Answer with the word yes."},)
# Settings that change no answer: a run that was stopped may continue with new ones.
FREE_SETTINGS = (
    "prompt_price",
    "response_price",
    "spending_limit",
    "max_retries",
    "timeout",
    "workers",
)


class ChatError(ValueError):
    """The service cannot be reached, refuses, or sends an invalid answer."""

    def __init__(self, message: str, kind: str = ""):
        super().__init__(message)
        self.kind = kind or message  # equal for all failures of one cause


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """The service and its request settings; prices are per million tokens."""

    url: str  # URL of the API, up to and including /v1
    model: str
    max_tokens: int  # largest number of tokens of an answer
    temperature: float | None  # None or "" sends no temperature
    prompt_price: float  # price in any currency, 0 if free
    response_price: float  # price in the same currency
    spending_limit: float  # limit in that currency, over all runs that share the cache
    max_retries: int  # retries of one request
    timeout: float  # seconds for the whole answer of one try
    workers: int  # number of concurrent requests
    max_tokens_field: str = "max_tokens"  # the service's name of the field; "" omits it
    temperature_field: str = "temperature"  # the service's name of it; "" omits it


class ChatClient:
    """A client that answers conversations from the cache or the service.

    The API key is in no message, log line or file, even where the service repeats the
    key.

    Args:
        cache: an SQLite file, made if missing.
        api_key: the API key; "" for a service without keys.

    Raises:
        CacheError: the file cannot be used.
        ValueError: the key or the URL cannot be sent.
    """

    def __init__(self, settings: ChatSettings, cache: Path, api_key: str = ""):
        check_url(settings.url, "url")
        self.settings = settings
        self._url = settings.url.rstrip("/")
        self._transport = Transport(
            api_key=api_key,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            connections=settings.workers,
        )
        self._can_mask = len(api_key) >= 8  # a shorter key may be a common word
        self._cache = AnswerCache(cache)
        self._lock = threading.Lock()
        self._failed_in_a_row = 0

    def close(self) -> None:
        self._transport.close()
        self._cache.close()

    def spent(self) -> float:
        """Return the cost of all answers in the cache plus the largest cost of requests
        whose answer never came."""
        return self._cache.spent()

    def answers(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Return the answer to each conversation, "" if there is none; a conversation
        that occurs twice is sent once. The number of missing answers and their
        commonest reason are logged.

        Raises:
            ChatError: no conversation has an answer, or the service is gone.
            SpendingLimitError: the limit is reached; all answers so far are cached.
            CacheError: the cache cannot be used.
        """
        if not conversations:
            return []
        keys = [json.dumps(list(messages)) for messages in conversations]
        todo = deque(dict(zip(keys, conversations, strict=True)).items())
        count = len(todo)
        answers: dict[str, str] = {}
        errors: dict[str, ChatError] = {}
        fatal: list[Exception] = []
        self._failed_in_a_row = 0

        def work():
            while not self._transport.stopped.is_set():
                try:
                    key, messages = todo.popleft()
                except IndexError:
                    return
                try:
                    answers[key] = self.answer(messages)
                    self._failed_in_a_row = 0
                except ChatError as error:
                    errors[key] = error
                    if gone := self._is_gone():
                        fatal.append(gone)
                        self._transport.stopped.set()
                except Exception as error:
                    fatal.append(error)
                    self._transport.stopped.set()

        # Daemons: Ctrl-C and SIGTERM end the process without waiting for the service.
        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self.settings.workers, count))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            self._transport.stopped.set()
            raise
        self._transport.stopped.clear()
        if fatal:
            raise fatal[0]
        if lost := [errors[key] for key in keys if key in errors]:
            self._tell(lost, len(keys))
        return [answers.get(key, "") for key in keys]

    def answer(self, messages: Sequence[Message]) -> str:
        """Return the answer to one conversation.

        Raises:
            ChatError: there is no answer, or an empty one.
            SpendingLimitError, CacheError: as `answers`.
        """
        request, text, key = self._request(messages)
        answer = self._cache.find(key)
        if answer is None:
            most = self._most(messages)
            answer = self._retried(lambda: self._ask(request, text, key, most))
        if not answer.strip():
            raise ChatError(
                f"{self._url} answers without a text. Such an answer is billed and kept"
                ": raise max_tokens of the service, or ask another model.",
                "an answer without a text",
            )
        return answer

    def check(self) -> None:
        """Ask for one word, so that an unreachable service is detected before the work
        begins; raises as `answer`. If that word is in the cache, any response of the
        service suffices, which costs nothing."""
        if self._cache.find(self._request(CHECK)[2]) is None:
            self.answer(CHECK)
        else:
            self._retried(self._reach)

    def _request(self, messages: Sequence[Message]) -> tuple[dict, str, str]:
        """Return the request, its text for the cache, and its key in the cache."""
        settings = self.settings
        request = {"model": settings.model, "messages": list(messages)}
        if settings.max_tokens_field:
            request[settings.max_tokens_field] = settings.max_tokens
        if settings.temperature_field and settings.temperature not in (None, ""):
            request[settings.temperature_field] = settings.temperature
        text = json.dumps([settings.url, request], sort_keys=True)
        return request, text, hashlib.sha256(text.encode()).hexdigest()

    def _retried(self, call: Callable):
        """Return `call()`, retried while its failures are transient; raise ChatError
        for the last failure."""
        try:
            return self._transport.retried(call, self.settings.model)
        except FailedTryError as error:
            raise ChatError(str(error), error.kind) from None

    def _ask(self, request: dict, text: str, key: str, most: float) -> str:
        """Try a request once: reserve its largest cost, send it, settle the cost.

        Raises:
            FailedTryError: there is no answer.
        """
        reservation = self._cache.reserve(most, self.settings.spending_limit)
        try:
            answer, usage = self._post(request)
        except FailedTryError as failure:
            if failure.cost is not None:
                self._cache.release(reservation, failure.cost)
            raise
        cost = self._cost(usage, most)
        self._cache.settle(reservation, key, self._transport.masked(text), answer, cost)
        return answer

    def _post(self, request: dict) -> tuple[str, object]:
        """Return the answer, possibly "", and the service's counts of tokens."""
        url = f"{self._url}/chat/completions"
        status, headers, body = self._transport.request("POST", url, request)
        content, is_json = None, True
        try:
            content = parse_json(body, headers)
        except ValueError:
            is_json = False
        usage = content.get("usage") if isinstance(content, dict) else None
        if status != 200:
            raise self._refusal(url, status, headers, body, usage)
        shown = self._transport.shown(body)
        if not is_json:  # a page of a gateway, or an answer that was cut off
            kind = "an answer that is not JSON"
            message = f"{url} answers without a text: {shown}"
            raise FailedTryError(kind, message, passes=True, cost=None)
        answer = _text(content)
        if answer is None:
            cost = self._cost(usage, None)
            kind = "an answer without choices"
            message = f"{url} answers without a text: {shown}"
            raise FailedTryError(kind, message, passes=_is_busy(content), cost=cost)
        if self._can_mask:
            answer = self._transport.masked(answer)
        return answer.encode("utf-8", "replace").decode(), usage

    def _refusal(self, url, status, headers, body, usage) -> FailedTryError:
        """Return the failure that a status other than 200 means."""
        message = f"{url} answers {status}: {self._transport.shown(body)}"
        if 300 <= status < 400:
            host = urllib.parse.urlsplit(headers.get("Location", "")).hostname
            message = f"{url} redirects ({status}) to {host}: set url to the service"
        said = body[:1000].decode("utf-8", "replace")
        if "max_completion_tokens" in said:
            message += '. Set max_tokens_field="max_completion_tokens" of the service'
        elif status == 400 and "temperature" in said:
            message += '. Set temperature_field="" of the service'
        elif advice := ADVICE.get(status):
            message += f". {advice}"
        failure = FailedTryError(
            f"HTTP {status}",
            message,
            passes=passes(status),
            cost=None if status in TIMED_OUT else self._cost(usage, 0.0),
        )
        failure.pause = retry_after(headers.get("Retry-After"))
        return failure

    def _reach(self) -> None:
        """Raise FailedTryError unless a server responds at the URL."""
        self._transport.request("GET", f"{self._url}/models")

    def _is_gone(self) -> ChatError | None:
        """Count a failure; after many in a row, return an error if the service no
        longer answers."""
        with self._lock:
            self._failed_in_a_row += 1
            if self._failed_in_a_row < FAILURES_IN_A_ROW:
                return None
            self._failed_in_a_row = 0
        request, text, key = self._request(CHECK)
        try:
            self._ask(request, text, key, self._most(CHECK))
        except FailedTryError as failure:
            return ChatError(
                f"The last {FAILURES_IN_A_ROW} requests have no answer, nor has one "
                f"that asks for a word: {failure}. Answers so far are kept: start "
                "again when the service is there."
            )
        except (SpendingLimitError, CacheError) as error:
            return error
        return None

    def _tell(self, errors: list[ChatError], count: int) -> None:
        """Log that some conversations have no answer; raise if all have none."""
        ((kind, most),) = Counter(error.kind for error in errors).most_common(1)
        example = next(str(error) for error in errors if error.kind == kind)
        if len(errors) == count:
            raise ChatError(
                f"None of {count} requests to {self.settings.model} has an answer; "
                f"{most} times: {example}"
            )
        logging.warning(
            "%d of %d requests to %s have no answer and count as missing. The commonest"
            " reason (%d times): %s",
            len(errors), count, self.settings.model, most, example,
        )  # fmt: skip

    def _most(self, messages: Sequence[Message]) -> float:
        """Return the largest possible cost of an answer: a token has at least a
        byte."""
        texts = [m["content"] for m in messages]
        tokens = sum(len(t.encode("utf-8", "replace")) + MESSAGE_TOKENS for t in texts)
        return self._price(tokens, self.settings.max_tokens)

    def _cost(self, usage, unknown: float | None) -> float | None:
        """Return the cost by the service's counts of tokens; `unknown` without them."""
        usage = usage if isinstance(usage, dict) else {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not all(type(n) is int and 0 <= n <= MAX_COUNT for n in counts):
            return unknown
        return self._price(*counts)

    def _price(self, prompt_tokens: int, response_tokens: int) -> float:
        return 1e-6 * (
            prompt_tokens * self.settings.prompt_price
            + response_tokens * self.settings.response_price
        )


ADVICE = {
    401: "Check the API key",
    402: "Check what is left of your account",
    403: "Check what the API key may do",
    404: "Check url (up to and with /v1) and model of the service",
}


def open_client(service: Mapping, cache: Path, *, key: str) -> ChatClient:
    """Open a client by the fields of a config; raises as `read_service` and
    `ChatClient`."""
    settings, api_key = read_service(service, key=key)
    return ChatClient(settings, cache, api_key)


def open_service(
    service: Mapping, cache: Path, *, key: str
) -> Callable[[Sequence[Sequence[Message]]], list[str]]:
    """Return `ChatClient.answers` of a service that has answered a check request. With
    several processes the first sends the requests, and the others get its answers.

    Raises:
        ValueError: as `read_service`, `ChatClient` and `ChatClient.check`.
    """
    opened = []

    def connect():
        opened.append(open_client(service, cache, key=key))
        opened[0].check()

    first_does(connect)
    return lambda conversations: first_does(lambda: opened[0].answers(conversations))


def read_service(service: Mapping, *, key: str) -> tuple[ChatSettings, str]:
    """Read the settings and the API key of a config, before any file is made.

    Args:
        service: the fields of `ChatSettings`, and `api_key_variable`, the name of the
            environment variable that holds the API key ("" for a service without keys).
        key: the config key of the service, for messages, such as "config.judge".

    Raises:
        ValueError: the model, the URL or the variable is missing, or the API key is
            invalid.
    """
    settings = dict(service)
    variable = settings.pop("api_key_variable")
    if not settings["model"]:
        raise ValueError(f"Set {key}.model, and its url.")
    check_url(settings["url"], f"{key}.url")
    if not variable:
        return ChatSettings(**settings), ""
    # A user may give the API key itself in place of a name: messages must not show it.
    usual = re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", variable)
    name = variable if usual else f"that {key}.api_key_variable names"
    if variable not in os.environ:
        hint = "" if usual else " The key gives a variable's name, not an API key."
        raise ValueError(f"The environment variable {name} is not set.{hint}")
    api_key = check_key(os.environ[variable], f"The environment variable {name}")
    return ChatSettings(**settings), api_key


def _text(content) -> str | None:
    """Return the text of an answer, its parts joined: "" if the message has no text,
    None if there is no message."""
    try:
        message = content["choices"][0]["message"]
        text = message.get("content")
    except (LookupError, TypeError, AttributeError):
        return None
    if isinstance(text, list):
        parts = [part.get("text") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    return text if isinstance(text, str) else ""


def _is_busy(content) -> bool:
    """Return whether an error that came with status 200 is transient."""
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if re.fullmatch(r"\d{3}", str(code)):
        return passes(int(code))
    return error is not None and BUSY.search(str(error)) is not None
