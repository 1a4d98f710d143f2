"""Rewards from a service of the user's own: a batch in, scores out.

The request is POST, with the JSON

    {"prompts": [{"id", "messages", "intent", "reference", "task", ...}, ...],
     "responses": [{"text", "ended", "tokens"}, ...]}

where a prompt has all fields of its line, and the answer {"scores": [number, ...]}.
"""

from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.records import Prompt, Response, to_json
from rlhf_jax.data.transport import (
    FailedTryError,
    Transport,
    parse_json,
    passes,
    retry_after,
)
from rlhf_jax.rewards.rows import Function


def http(url: str, *, timeout: float, max_retries: int) -> Function:
    """Return the reward; a request that failed for a passing reason is sent again."""
    transport = Transport(
        api_key="", timeout=timeout, max_retries=max_retries, connections=4
    )

    def ask(content: dict) -> Any:
        status, headers, body = transport.request("POST", url, content)
        if status != 200:
            failure = FailedTryError(
                f"HTTP {status}",
                f"{url} answers {status}: {transport.shown(body)}",
                passes=passes(status),
                cost=None,
            )
            failure.pause = retry_after(headers.get("Retry-After"))
            raise failure
        try:
            return parse_json(body, headers)["scores"]
        except (ValueError, TypeError, KeyError):
            kind = 'an answer that is not {"scores": [...]}'
            message = f"{url} gives {kind}: {transport.shown(body)}"
            raise FailedTryError(kind, message, passes=False, cost=None) from None

    def function(prompts: Sequence[Prompt], responses: Sequence[Response]) -> Any:
        content = {
            "prompts": [to_json(prompt) for prompt in prompts],
            "responses": [to_json(response) for response in responses],
        }
        try:
            return transport.retried(lambda: ask(content), url)
        except FailedTryError as error:
            raise ValueError(str(error)) from None

    return function
