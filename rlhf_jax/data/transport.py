"""HTTP requests with time limits, retries and a key that no message shows.

The chat client and the reward by HTTP send their requests here. A time limit covers a
whole answer; a body is bounded; a failure says whether another try may succeed.
"""

import codecs
import email.utils
import json
import math
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from typing import Any, TypeVar

import requests
from absl import logging
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError

from rlhf_jax.data.in_threads import started

T = TypeVar("T")

TRANSIENT = (408, 409, 425, 429)  # status codes to retry, besides most from 500 on
MAX_PAUSE = 60.0  # longest pause in seconds before a retry, whatever a service asks
MAX_BODY = 2**23  # largest body of an answer, in bytes


class FailedTryError(Exception):
    """One try of a request failed."""

    def __init__(self, kind: str, message: str, *, passes: bool, cost: float | None):
        super().__init__(message)
        self.kind = kind  # equal for all failures of one cause
        self.passes = passes  # True if another try may succeed
        self.cost = cost  # None if unknown: the answer may have been billed
        self.pause: float | None = None  # pause in seconds that the service asks for


class Transport:
    """Requests to one service, from any number of threads.

    Args:
        api_key: sent as a bearer token; "" sends none.
        timeout: seconds for the whole answer of one try.
        max_retries: retries of one request.
        connections: the largest number of requests at the same time.

    Attributes:
        stopped: set it to end all pauses; no request is tried again then.

    Raises:
        ValueError: the key cannot be sent.
    """

    def __init__(
        self, *, api_key: str, timeout: float, max_retries: int, connections: int
    ):
        self._key = check_key(api_key, "The API key") if api_key else ""
        self._timeout, self._max_retries = timeout, max_retries
        self.stopped = threading.Event()
        self._session = requests.Session()
        self._session.auth = self._sign  # also disables ~/.netrc
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))

    def close(self) -> None:
        self._session.close()

    def request(
        self, method: str, url: str, content: Any = None
    ) -> tuple[int, Mapping, bytes]:
        """Send a request once, with `content` as JSON; return status, headers and body.

        Raises:
            FailedTryError: there is no whole answer in time.
        """
        return self._within(url, lambda: self._exchange(method, url, content))

    def retried(self, call: Callable[[], T], name: str) -> T:
        """Return `call()`, retried after pauses while its failures are transient.

        Args:
            name: of the service, for the log.

        Raises:
            FailedTryError: of the last try.
        """
        tries, number = self._max_retries + 1, 1
        while True:
            try:
                return call()
            except FailedTryError as failure:
                error = failure
            number += 1
            usual = 0.5 * 2.0 ** min(number - 2, 10)
            pause = min(usual if error.pause is None else error.pause, MAX_PAUSE)
            again = error.passes and number <= tries
            if again:
                logging.info(
                    "%s: %s. Retry in %.1f s (try %d of %d).",
                    name, error.kind, pause, number, tries,
                )  # fmt: skip
            if not again or self._pause(pause):
                raise error

    def _pause(self, seconds: float) -> bool:
        """Wait; return True if no more requests are to be sent."""
        return self.stopped.wait(seconds)

    def _exchange(
        self, method: str, url: str, content: Any
    ) -> tuple[int, Mapping, bytes]:
        """Return status, headers and body of a request, or raise FailedTryError."""
        try:
            with self._session.request(
                method,
                url,
                json=content,
                timeout=self._timeout,
                stream=True,
                allow_redirects=False,
            ) as response:
                body = bytearray()
                for chunk in response.iter_content(2**14):
                    body += chunk
                    if len(body) > MAX_BODY:
                        kind = f"an answer of more than {MAX_BODY} bytes"
                        message = f"{url} gives {kind}"
                        raise FailedTryError(kind, message, passes=False, cost=None)
                return response.status_code, response.headers, bytes(body)
        except requests.Timeout:
            sent = True
            kind, message = "no answer in time", f"no answer in {self._seconds}"
        except (requests.RequestException, OSError) as error:
            sent = not _is_unsent(error)
            kind, message = "no connection", self.shown(error)
        raise FailedTryError(
            kind,
            f"Cannot reach {url}: {message}",
            passes=True,
            cost=None if sent else 0.0,
        ) from None

    def _within(self, url: str, call: Callable[[], T]) -> T:
        """Return `call()`, or raise FailedTryError if the call takes longer. A timeout
        of sockets alone limits the time between bytes, which a service can send slowly
        forever."""
        future, _ = started(call)
        wait([future], self._timeout)
        if not future.done():
            kind = "no whole answer in time"
            message = f"{url} gives no whole answer in {self._seconds}"
            raise FailedTryError(kind, message, passes=True, cost=None)
        return future.result()

    @property
    def _seconds(self) -> str:
        return f"timeout={self._timeout} seconds"

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def masked(self, text: str) -> str:
        """Replace the API key in a text, plain or escaped, by ***."""
        key = self._key
        forms = {key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1]}
        for form in sorted(filter(None, forms), key=len, reverse=True):
            text = text.replace(form, "***")
        return text

    def shown(self, said: bytes | Exception) -> str:
        """Return the beginning of a body or an error, in one line, for messages."""
        if isinstance(said, bytes):
            return repr(self.masked(said.decode("utf-8", "replace"))[:200])
        return " ".join(self.masked(str(said)).split())[:300]


def check_key(api_key: str, what: str) -> str:
    """Return the key without the blanks and line ends around it.

    Raises:
        ValueError: the key is empty, or holds characters that a header cannot; the
            message does not show the key.
    """
    api_key = api_key.strip()
    if not api_key or not all("!" <= c <= "~" for c in api_key):
        held = "holds a blank, a line end or a letter beyond ASCII"
        raise ValueError(f"{what} {held if api_key else 'is empty'}: no API key.")
    return api_key


def check_url(url: str, what: str) -> None:
    """Raise ValueError unless the URL is valid for requests and holds no secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{what} must be like https://HOST/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{what} must end with its path: a key goes into the environment, its "
            "variable's name into api_key_variable."
        )


def passes(status: int | None) -> bool:
    return status in TRANSIENT or (status is not None and 500 <= status != 501)


def _is_unsent(error: Exception) -> bool:
    """Return True if a request cannot have reached the service."""
    if isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError):
        return True
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError)


def retry_after(value: str | None) -> float | None:
    """Parse Retry-After, a number or a date, as seconds; None for the usual pause."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            date = email.utils.parsedate_to_datetime(value)
            seconds = date.timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
        seconds = max(seconds, 0.0)
    return seconds if 0 <= seconds < math.inf else None


def parse_json(body: bytes, headers: Mapping) -> Any:
    """Parse the body as JSON; raise ValueError if the body is not JSON."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeDecodeError:  # JSON is UTF-8, unless a service declares a charset
        named = re.search(r"charset=[\"']?([\w-]+)", headers.get("Content-Type", ""))
        try:
            charset = codecs.lookup(named[1] if named else "").name
            return json.loads(body.decode(charset))
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError(str(error)) from None
