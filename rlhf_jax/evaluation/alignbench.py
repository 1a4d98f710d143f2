"""AlignBench (arXiv 2311.18743): 683 Chinese questions, answers marked from 1 to 10.

Aggregated as its show_result.py does, a mean of means:

    overall = (reasoning + language) / 2
    reasoning = mean of 2 categories, language = mean of 6
    category = mean over its questions

so a question of a small category weighs more than one of a large category. The files
have the benchmark's layout: model_answer/NAME.jsonl for its judge.py,
judgment/NAME.jsonl for its show_result.py.

The judge marks the dimensions that the benchmark names; the wording of the request is
our own, because the benchmark's repository states no licence. For the original wording
run the benchmark's judge.py on model_answer/. Where no mark can be read the benchmark
counts -1; here the question is counted as unmarked and left out of judgment/, so that
show_result.py gives the numbers that are given here.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, keep_good, scan_json_lines
from rlhf_jax.data.records import Prompt
from rlhf_jax.files import writing_whole

REASONING, LANGUAGE = "中文推理", "中文语言"
GROUPS = {
    REASONING: ("数学计算", "逻辑推理"),
    LANGUAGE: ("基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"),
}
CATEGORIES = GROUPS[REASONING] + GROUPS[LANGUAGE]
OVERALL = "综合得分"

_FACTS = ("事实正确性", "满足用户需求", "清晰度", "完备性")
_LOGIC = ("事实正确性", "满足用户需求", "逻辑连贯性", "完备性")
_ADVICE = ("事实正确性", "满足用户需求", "公平与可负责程度", "创造性")
_WRITING = ("事实正确性", "满足用户需求", "逻辑连贯性", "创造性", "丰富度")
# The dimensions of a subcategory that differ from those of its category.
_DIMENSIONS = {
    "数学计算": _LOGIC,
    "逻辑推理": _LOGIC,
    "综合问答": _ADVICE,
    "文本写作": _WRITING,
    "角色扮演": _WRITING,
    "翻译": _WRITING,
    "文化理解": _FACTS,
}


class Question(NamedTuple):
    """One line of the published file; `record` holds the whole line."""

    id: int
    category: str
    subcategory: str
    text: str
    reference: str
    record: dict

    @property
    def prompt(self) -> Prompt:
        message = {"role": "user", "content": self.text}
        return Prompt(str(self.id), (message,), self.category)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that the judge marks besides the overall quality."""
        by_category = _DIMENSIONS.get(self.category, _FACTS)
        return _DIMENSIONS.get(self.subcategory, by_category)


def read_questions(path: str | Path) -> list[Question]:
    """Read the questions of data_release.jsonl or data_v1.1_release.jsonl.

    Raises:
        FileNotFoundError: the file does not exist.
        RecordError: a line is not a question of the benchmark, or occurs twice.
    """
    seen = set()

    def question(row: dict) -> Question:
        number = row.get("question_id")
        if not isinstance(number, int) or number in seen:
            problem = "occurs twice." if number in seen else "must be a whole number."
            raise RecordError(problem, "question_id")
        seen.add(number)
        return Question(
            number,
            fields.choice(row, "category", CATEGORIES),
            *(fields.text(row, x) for x in ("subcategory", "question", "reference")),
            row,
        )

    return keep_good(scan_json_lines(path), question, source=path)


def aggregate(categories: Sequence[str], marks: Sequence[float]) -> dict:
    """Return the benchmark's numbers; None where a category has no mark.

    Returns:
        overall; low and high, its 95 % interval (the questions of each category as a
        sample of its kind); groups and categories, name to mean; questions, how many
        each category has.
    """
    categories, marks = np.asarray(categories), np.asarray(marks, np.float64)
    means, error, count = {}, {}, {}
    for name in CATEGORIES:
        some = marks[(categories == name) & ~np.isnan(marks)]
        count[name] = len(some)
        means[name] = float(some.mean()) if len(some) else None
        error[name] = some.var(ddof=1) / len(some) if len(some) > 1 else math.nan
    groups = {
        group: _mean([means[name] for name in names]) for group, names in GROUPS.items()
    }
    overall = _mean(list(groups.values()))
    variance = sum(
        error[name] * (1 / len(GROUPS) / len(names)) ** 2
        for names in GROUPS.values()
        for name in names
    )
    half = 1.96 * math.sqrt(variance)
    has_interval = overall is not None and math.isfinite(half)
    return {
        "overall": overall,
        "low": overall - half if has_interval else None,
        "high": overall + half if has_interval else None,
        "groups": groups,
        "categories": means,
        "questions": count,
    }


def answer_record(question: Question, model: str, answer: str) -> dict:
    """Return a line of model_answer/NAME.jsonl."""
    return question.record | {
        "model_id": model,
        "answer_id": f"{question.id}_{model}",
        "answer": answer,
    }


def judgment_record(
    answered: dict,
    dimensions: Sequence[str],
    request: str,
    verdict: str,
    marks: dict[str, float],
) -> dict:
    """Return a line of judgment/NAME.jsonl."""
    return answered | {
        "dimensions": list(dimensions),
        "judge_prompt": request,
        "judgment": verdict,
        "rating": marks,
        "score": marks[OVERALL],
    }


def write_lines(path: Path, records: Sequence[dict]) -> None:
    with writing_whole(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def markdown(model: str, numbers: dict) -> str:
    """Return the benchmark's table in Markdown, the overall mark first."""
    columns = {"总分": numbers["overall"]}
    for group, names in GROUPS.items():
        columns[group] = numbers["groups"][group]
        columns |= {name: numbers["categories"][name] for name in names}
    cells = ["" if x is None else f"{x:.2f}" for x in columns.values()]
    lines = [["模型", *columns], ["---"] * (len(cells) + 1), [model, *cells]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def headline(model: str, numbers: dict) -> str:
    """Return one line: the overall mark, its interval and the number of questions."""
    n = sum(numbers["questions"].values())
    if numbers["overall"] is None:
        missing = [name for name, mean in numbers["categories"].items() if mean is None]
        return f"{model}: no overall mark of {n} questions, none in {missing}."
    bounds = ""
    if numbers["low"] is not None:
        bounds = f" [{numbers['low']:.2f}, {numbers['high']:.2f}], 95 %,"
    return f"{model}: {numbers['overall']:.2f}{bounds} of 10, n = {n} questions."


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))
