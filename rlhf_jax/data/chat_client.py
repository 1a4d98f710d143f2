"""A client of OpenAI-compatible chat services that never pays twice, nor too much.

Retries are urllib3's. Answers lie in an SQLite file, with what each one cost: the
spending limit holds over restarts, and a run that stops goes on where it was.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from rlhf_jax.data.records import Message

RETRIED = (408, 409, 429, 500, 502, 503, 504)  # status codes that pass
MESSAGE_TOKENS = 16  # more than any chat format adds to a message
# Settings that change no answer: a run that was stopped may go on with others.
FREE_SETTINGS = (
    "prompt_price",
    "response_price",
    "spending_limit",
    "max_retries",
    "timeout",
    "workers",
)


class ChatError(ValueError):
    """The service cannot be reached, refuses, or answers what is no answer."""


class SpendingLimitError(ValueError):
    """The next request could cost more than is left."""


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """What is asked of whom; prices are per million tokens, in any one currency."""

    url: str  # up to and with /v1
    model: str
    max_tokens: int  # of an answer
    temperature: float
    prompt_price: float  # 0: free
    response_price: float
    spending_limit: float  # over all runs that share the cache
    max_retries: int
    timeout: float  # seconds
    workers: int  # requests under way at once


class ChatClient:
    """Answers to conversations, from the cache or the service.

    Args:
        cache: an SQLite file, made if it is not there.
        api_key: "" for a service that asks for none.
    """

    def __init__(self, settings: ChatSettings, cache: Path, api_key: str = ""):
        self.settings = settings
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._cache = sqlite3.connect(cache, check_same_thread=False)
        self._cache.execute(
            "CREATE TABLE IF NOT EXISTS answers "
            "(key TEXT PRIMARY KEY, request TEXT, answer TEXT, cost REAL)"
        )
        self._lock = threading.Lock()
        self._reserved = 0.0
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        retry = Retry(
            settings.max_retries,
            backoff_factor=0.5,  # 0, 1, 2, 4 ... seconds, or what Retry-After says
            status_forcelist=RETRIED,
            allowed_methods=None,  # POST too: asking again does no harm
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(max_retries=retry, pool_maxsize=settings.workers)
            self._session.mount(scheme, adapter)

    def close(self) -> None:
        self._session.close()
        self._cache.close()

    def spent(self) -> float:
        """What all answers in the cache have cost."""
        with self._lock:
            return self._spent()

    def answers(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each conversation; one that comes twice is asked once.

        Raises:
            ChatError: the service fails for good.
            SpendingLimitError: the limit is reached; what was answered is kept.
        """
        keys = [json.dumps(list(messages)) for messages in conversations]
        with concurrent.futures.ThreadPoolExecutor(self.settings.workers) as pool:
            futures = {
                key: pool.submit(self.answer, messages)
                for key, messages in dict(zip(keys, conversations, strict=True)).items()
            }
            try:
                return [futures[key].result() for key in keys]
            except (ChatError, SpendingLimitError):
                pool.shutdown(cancel_futures=True)
                raise

    def answer(self, messages: Sequence[Message]) -> str:
        """The answer to one conversation; raises like `answers`."""
        request = {
            "model": self.settings.model,
            "messages": list(messages),
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature,
        }
        text = json.dumps([self.settings.url, request], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        most = self._most(messages)
        with self._lock:
            row = self._cache.execute(
                "SELECT answer FROM answers WHERE key = ?", (key,)
            ).fetchone()
            if row:
                return row[0]
            spent = self._spent()
            if spent + self._reserved + most > self.settings.spending_limit:
                raise SpendingLimitError(
                    f"The next answer of {self.settings.model} could cost {most:.6f}; "
                    f"{spent:.6f} of spending_limit={self.settings.spending_limit} are "
                    f"spent and {self._reserved:.6f} under way. What is answered is "
                    "kept: raise the limit and start again."
                )
            self._reserved += most
        cost = 0.0
        try:
            answer, usage = self._post(request)
            cost = self._cost(usage, most)
        finally:
            with self._lock:
                self._reserved -= most
        with self._lock, self._cache:
            self._cache.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                (key, text, answer, cost),
            )
        return answer

    def check(self) -> None:
        """Ask for one word, so that a service that is not there is known before the
        work begins; raises like `answers`."""
        self.answer([{"role": "user", "content": "Answer with the word yes."}])

    def _post(self, request: dict) -> tuple[str, dict]:
        url = f"{self.settings.url.rstrip('/')}/chat/completions"
        try:
            response = self._session.post(
                url, json=request, timeout=self.settings.timeout
            )
        except requests.RequestException as error:
            raise ChatError(f"Cannot reach {url}: {error}") from None
        if response.status_code != 200:
            raise ChatError(
                f"{url} answers {response.status_code}: {response.text[:200]!r}"
            )
        try:
            body = response.json()
            answer = body["choices"][0]["message"]["content"]
            usage = body.get("usage") or {}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            answer, usage = None, {}
        if not isinstance(answer, str) or not isinstance(usage, dict):
            raise ChatError(f"{url} answers without a text: {response.text[:200]!r}")
        return answer, usage

    def _spent(self) -> float:
        return self._cache.execute("SELECT TOTAL(cost) FROM answers").fetchone()[0]

    def _most(self, messages: Sequence[Message]) -> float:
        """The most that an answer can cost: no token is shorter than a byte."""
        texts = [m["content"] for m in messages]
        tokens = sum(len(t.encode()) + MESSAGE_TOKENS for t in texts)
        return self._price(tokens, self.settings.max_tokens)

    def _cost(self, usage: dict, most: float) -> float:
        """By the tokens that the service counted; without a count, the most."""
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not all(isinstance(n, int) and n >= 0 for n in counts):
            return most
        return self._price(*counts)

    def _price(self, prompt_tokens: int, response_tokens: int) -> float:
        return 1e-6 * (
            prompt_tokens * self.settings.prompt_price
            + response_tokens * self.settings.response_price
        )


def open_client(service: Mapping, cache: Path, *, key: str) -> ChatClient:
    """A client by the fields of a config.

    Args:
        service: those of `ChatSettings`, and the name of the environment variable that
            holds the API key ("": the service asks for none).
        key: of the config, for messages: "config.judge".
    """
    settings = dict(service)
    variable = settings.pop("api_key_variable")
    if not settings["model"]:
        raise ValueError(f"Set {key}.model, and its url.")
    if variable and variable not in os.environ:
        raise ValueError(f"The environment variable {variable} is not set.")
    api_key = os.environ[variable] if variable else ""
    return ChatClient(ChatSettings(**settings), cache, api_key)
