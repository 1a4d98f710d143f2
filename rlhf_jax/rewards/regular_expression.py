"""Reward 1 for a response in which a regular expression is found.

The expression is the prompt's field `pattern`, or else the option of that name, in the
syntax of the package `regex`, whose searches end in time.
"""

import regex

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import Function, by_row

SECONDS = 5.0  # the longest search in one response


def regular_expression(pattern: str) -> Function:
    """Return the reward; `pattern` is for prompts without one of their own."""

    def row(prompt: Prompt, response: Response) -> float:
        own = prompt.extra.get("pattern", pattern)
        if not isinstance(own, str) or not own:
            raise ValueError(
                f"prompt {prompt.id!r} has no pattern for regular_expression: set "
                'reward_options.pattern, or give its line the field "pattern"'
            )
        try:
            return float(bool(regex.search(own, response.text, timeout=SECONDS)))
        except regex.error as error:
            raise ValueError(
                f"prompt {prompt.id!r}: pattern {own!r}: {error}"
            ) from None
        except TimeoutError:
            raise ValueError(
                f"pattern {own!r} takes more than {SECONDS:g} seconds on a response"
            ) from None

    return by_row(row)
