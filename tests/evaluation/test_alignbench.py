"""The benchmark's aggregation by hand, its files and its dimensions."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.evaluation import alignbench
from rlhf_jax.evaluation.alignbench import CATEGORIES, LANGUAGE, REASONING, aggregate

PUBLISHED = (
    Path(__file__).parents[2] / "../shared/data/alignbench/data_v1.1_release.jsonl"
)


def test_overall_is_a_mean_of_means_of_means():
    """By hand: maths (1 + 3) / 2 = 2, logic 4: reasoning 3. Language: five categories
    at 6 and one, of three questions, at (9 + 9 + 3) / 3 = 7: 37 / 6. Overall
    (3 + 37 / 6) / 2 = 55 / 12, not the mean over questions, 59 / 11."""
    marks = {"数学计算": [1, 3], "逻辑推理": [4], "角色扮演": [9, 9, 3]}
    rows = [(name, x) for name in CATEGORIES for x in marks.get(name, [6])]
    found = aggregate(*zip(*rows, strict=True))
    assert found["categories"]["数学计算"] == 2
    assert found["groups"] == pytest.approx({REASONING: 3, LANGUAGE: 37 / 6})
    assert found["overall"] == pytest.approx(55 / 12)
    assert found["questions"]["角色扮演"] == 3
    assert np.mean([x for _, x in rows]) == pytest.approx(59 / 11)


def test_a_missing_mark_is_left_out_and_a_missing_category_leaves_no_overall():
    full = [(name, x) for name in CATEGORIES for x in (4.0, 6.0)]
    found = aggregate(*zip(*full, ("数学计算", np.nan), strict=True))
    assert found["overall"] == 5 and found["questions"]["数学计算"] == 2
    some = [row for row in full if row[0] != "逻辑推理"]
    found = aggregate(*zip(*some, strict=True))
    assert found["overall"] is None and found["groups"][REASONING] is None
    assert found["groups"][LANGUAGE] == 5


def test_the_interval_covers_the_truth():
    rng, covered = np.random.default_rng(0), []
    counts = dict(zip(CATEGORIES, (112, 92, 68, 58, 38, 75, 116, 124), strict=True))
    categories = [name for name, n in counts.items() for _ in range(n)]
    for _ in range(400):
        marks = np.clip(rng.normal(5.0, 2.0, len(categories)), 1, 9)
        found = aggregate(categories, marks)
        covered.append(found["low"] <= 5.0 <= found["high"])
    assert 0.93 <= np.mean(covered) <= 0.97


def line(**changes):
    record = {
        "question_id": 1,
        "category": "数学计算",
        "subcategory": "初等数学",
        "question": "1加1等于几？",
        "reference": "2",
    }
    return json.dumps(record | changes, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(), line()], "line 2, field 'question_id': occurs twice"),
        ([line(category="数学")], "field 'category': must be one of"),
        ([line(question=None)], "field 'question': is missing"),
        ([line(question_id="1")], "must be a whole number"),
        (["{}\n"], "must be a whole number"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, lines, message):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(RecordError, match=message):
        alignbench.read_questions(path)


def test_files_have_the_benchmarks_fields(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(line(evidences=[]), encoding="utf-8")
    (question,) = alignbench.read_questions(path)
    answered = alignbench.answer_record(question, "m", "2")
    assert answered == json.loads(line(evidences=[])) | {
        "model_id": "m",
        "answer_id": "1_m",
        "answer": "2",
    }
    marks = {"事实正确性": 9.0, "综合得分": 8.0}
    judged = alignbench.judgment_record(
        answered, question.dimensions, "asked", "said", marks
    )
    assert judged["score"] == 8 and judged["rating"] == marks
    assert judged["dimensions"] == [
        "事实正确性",
        "满足用户需求",
        "逻辑连贯性",
        "完备性",
    ]


def test_the_table_has_the_benchmarks_columns():
    found = aggregate(list(CATEGORIES), [5.0] * 8)
    header, _, row = alignbench.markdown("m", found).splitlines()
    assert header.startswith(
        "| 模型 | 总分 | 中文推理 | 数学计算 | 逻辑推理 | 中文语言 |"
    )
    assert row.count("5.00") == 11


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="needs the published questions")
def test_the_published_questions():
    questions = alignbench.read_questions(PUBLISHED)
    assert len(questions) == 683
    kinds = Counter(question.dimensions for question in questions)
    # Facts, reasoning, writing, advice: as the benchmark's tables of subcategories say.
    assert sorted(kinds.values()) == [38, 200, 204, 241]
