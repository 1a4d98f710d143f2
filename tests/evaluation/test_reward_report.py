import json

import numpy as np

from rlhf_jax.data.records import Comparison, Prompt
from rlhf_jax.evaluation.preferences import JudgedPairs, assess
from rlhf_jax.evaluation.reward_report import NUM_ERRORS, worst_errors, write_report

RNG = np.random.default_rng(0)


def comparisons(count):
    messages = ({"role": "user", "content": "Which | one?"},)
    return [
        Comparison(Prompt(str(i), messages), f"b{i}", f"a{i}", "b")
        for i in range(count)
    ]


def test_the_worst_errors_come_first_and_right_pairs_not_at_all():
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    found = worst_errors(scores, comparisons(3))
    assert [error["chosen"] for error in found] == ["a2", "a1"]
    assert [error["rejected"] for error in found] == ["b2", "b1"]
    assert len(worst_errors(-scores.repeat(99, 0), comparisons(297))) == NUM_ERRORS


def test_the_report_is_written_in_every_form(tmp_path):
    lengths, scores = RNG.integers(1, 50, (30, 2)), RNG.normal(size=(30, 2))
    longer = lengths[:, 0] - lengths[:, 1]
    pairs = JudgedPairs(range(30), ["sums"] * 30, lengths, RNG.normal(size=(30, 2)))
    report = assess(scores, pairs, {"always_longer": longer})
    write_report(tmp_path / "evaluation", report, scores, comparisons(30))
    folder = tmp_path / "evaluation"
    assert json.loads((folder / "report.json").read_text()) == report
    assert (folder / "reliability.png").read_bytes().startswith(b"\x89PNG")
    wrong = int((scores[:, 0] < scores[:, 1]).sum())
    assert len((folder / "errors.jsonl").read_text().splitlines()) == wrong
    text = (folder / "report.md").read_text()
    assert "| pairs | n | accuracy [95 %] | always longer |" in text
    assert "| intent: sums | 30 |" in text
    assert "pairs ordered as true quality does" in text
    assert "Which \\| one?" in text  # text cannot break the table
