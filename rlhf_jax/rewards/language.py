"""Reward 1 for a response in the language that is asked for, 0 for one in another.

The language, an ISO 639-1 code such as "en" or "zh", is the prompt's field `language`,
or else the option of that name. A response without letters is in every language.
"""

from rlhf_jax.data.cleaning.prompt_filters import language_share
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import Function, by_row


def language(code: str) -> Function:
    """Return the reward; `code` is for prompts without a language of their own."""

    def row(prompt: Prompt, response: Response) -> float:
        wanted = prompt.extra.get("language", code)
        if not isinstance(wanted, str) or not wanted:
            raise ValueError(
                f"prompt {prompt.id!r} has no language for the reward of that name: "
                'set reward_options.language, or give its line the field "language"'
            )
        if not any(character.isalpha() for character in response.text):
            return 1.0
        return float(language_share(response.text, [wanted]) >= 0.5)

    return by_row(row)
