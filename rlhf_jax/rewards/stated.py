"""The part of a response that states its answer."""

import re

_ANSWER = re.compile(
    r"####|\banswers?\s*(?:is\b|are\b|=|[:：])|答案\s*(?:是|为|[:：])", re.IGNORECASE
)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？\n]")


def stated_answer(text: str) -> tuple[str, bool]:
    """Return the text after the last mark of an answer, and True; without a mark, the
    whole text, and False. From "x = 5" in that sentence, only "5" is kept.

    The marks are, the strongest first: LaTeX's \\boxed{...}, whose content is returned;
    "####" (GSM8K), "answer is", "answer:" and their Chinese forms.
    """
    said = _last_boxed(text)
    if said is None:
        marks = list(_ANSWER.finditer(text))
        if not marks:
            return text, False
        said = text[marks[-1].end() :]
    sentence = SENTENCE_END.split(said.strip(), maxsplit=1)[0]
    return (sentence.rpartition("=")[2] if "=" in sentence else said), True


def _last_boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{...} or \\fbox{...} that is closed."""
    for mark in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for place in range(mark.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[mark.end() : place]
    return None
