"""Answers of models to the same prompts, side by side, with the differences marked."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rlhf_jax.evaluation.report.runs import Group, Run, has_number, read_lines

SHOWN = 8  # the number of conversations shown
CHARACTERS = 4000  # the number of characters shown of a text
MEASURED = {"quality": "quality", "score": "score", "reward": "reward", "kl": "KL"}
MEASURED["log_ratio"] = "log-ratio"
Piece = tuple[Literal["same", "added", "removed"], str]


class Answer(NamedTuple):
    who: str
    pieces: list[Piece]
    numbers: str  # the measurements of the answer, in words


class Conversation(NamedTuple):
    prompt: str
    intent: str
    answers: list[Answer]


def conversations(groups: Sequence[Group]) -> list[Conversation]:
    """Return conversations from the first seed of the evaluation with the most models;
    without an evaluation, from the first and the last samples of trained models."""
    firsts = [group.runs[0] for group in groups if group.stage == "evaluate"]
    done = [run for run in firsts if run.summary]
    if done:
        return _evaluated(max(done, key=lambda run: len(run.summary["models"])))
    return [shown for group in groups for shown in _during(group.runs[0])][:SHOWN]


def differences(old: str, new: str) -> list[Piece]:
    """Split `new` into pieces that are shared with `old`, added or removed. If less
    than a third is shared, all of `new` counts as added, because marks would hide the
    text."""
    # Tokens are words with the space behind them, and single Chinese characters.
    a, b = (
        re.findall(r"[\u3400-\u9fff]\s*|[^\s\u3400-\u9fff]+\s*|\s+", text)
        for text in (old, new)
    )
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if matcher.ratio() < 1 / 3:
        return [("added", new)]
    pieces: list[Piece] = []
    for change, i, j, k, n in matcher.get_opcodes():
        if change == "equal":
            pieces.append(("same", "".join(b[k:n])))
            continue
        if j > i:
            pieces.append(("removed", "".join(a[i:j])))
        if n > k:
            pieces.append(("added", "".join(b[k:n])))
    return pieces


def _evaluated(run: Run) -> list[Conversation]:
    """Return the prompts where the last model gained most and lost most, and some in
    between."""
    names = list(run.summary["models"])
    lines = {name: read_lines(run.folder / f"answers_{name}.jsonl") for name in names}
    answers = {
        name: {line.get("id", i): line for i, line in enumerate(records)}
        for name, records in lines.items()
    }
    first, final = answers[names[0]], answers[names[-1]]
    shared = [key for key in first if all(key in given for given in answers.values())]

    def gain(key):
        for measure in ("quality", "result"):
            if isinstance(final[key].get(measure), float):
                return final[key][measure] - (first[key].get(measure) or 0.0)
        return 0.0

    ranked = sorted(shared, key=gain, reverse=True)
    third = SHOWN // 3
    middle = len(ranked) // 2
    rest = ranked[middle : middle + SHOWN - 2 * third]
    chosen = ranked[:third] + rest + ranked[-third:] if len(ranked) > SHOWN else ranked
    return [
        _conversation(first[key], [(n, answers[n][key]) for n in names])
        for key in dict.fromkeys(chosen)
    ]


def _during(run: Run) -> list[Conversation]:
    lines = [
        line
        for line in read_lines(run.folder / "samples.jsonl")
        if isinstance(line.get("prompt"), str) and has_number(line, "step")
    ]
    if not lines:
        return []
    steps = sorted({line["step"] for line in lines})
    begin, end = (
        {line["prompt"]: line for line in lines if line["step"] == step}
        for step in (steps[0], steps[-1])
    )
    return [
        _conversation(
            line,
            [
                (f"{run.name}, step {steps[0]}", line),
                (f"{run.name}, step {steps[-1]}", end[prompt]),
            ],
        )
        for prompt, line in begin.items()
        if prompt in end
    ]


def _measured(answer: dict) -> Iterator[str]:
    """Return the measurements of an answer, in words."""
    if isinstance(result := answer.get("result"), int | float):
        yield "won" if result > 0 else "lost" if result < 0 else "tied"
    for name, words in MEASURED.items():
        if isinstance(answer.get(name), int | float):
            yield f"{words} {answer[name]:.2f}"


def _conversation(line: dict, answers: list[tuple[str, dict]]) -> Conversation:
    old = str(answers[0][1].get("response", ""))[:CHARACTERS]
    shown = []
    for i, (who, answer) in enumerate(answers):
        text = str(answer.get("response", ""))[:CHARACTERS]
        pieces = differences(old, text) if i else [("same", text)]
        shown.append(Answer(who, pieces, ", ".join(_measured(answer))))
    prompt = str(line.get("prompt", "")).strip()[:CHARACTERS]
    return Conversation(prompt, line.get("intent", ""), shown)
