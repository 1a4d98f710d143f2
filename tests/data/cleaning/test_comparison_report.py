import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from rlhf_jax.data.cleaning import comparison_report
from rlhf_jax.data.cleaning.annotator_quality import Annotators, Share
from rlhf_jax.data.cleaning.length_balance import length_balance


def test_shares_of_the_funnel_are_of_what_came_in():
    rows = comparison_report.funnel_rows(200, {"tie": 50}, {"out": 150})
    assert rows == [
        {"step": "in", "comparisons": 200, "share": 1.0},
        {"step": "dropped: tie", "comparisons": 50, "share": 0.25},
        {"step": "out", "comparisons": 150, "share": 0.75},
    ]


def test_buckets_say_how_many_there_were_on_either_side_and_are_kept():
    better, worse = np.array([13, 15, 10, 45]), np.array([10, 10, 12, 10])
    balance = length_balance(better, worse, width=10, seed=0)
    assert comparison_report.bucket_rows(balance, 10) == [
        {
            "tokens": "0 to 9",
            "better is longer": 2,
            "better is shorter": 1,
            "kept of each": 1,
        },
        {
            "tokens": "30 to 39",
            "better is longer": 1,
            "better is shorter": 0,
            "kept of each": 0,
        },
    ]


def test_annotators_who_are_out_come_first_each_with_their_own_shares():
    def share(count):
        return Share(*np.array([[0, count], [0, 9], [0.0, 0.25], [1.0, 0.75]]))

    found = comparison_report.annotator_rows(
        Annotators(
            names=["ann", "bob"],
            votes=np.array([5, 7]),
            known_right=share(1),
            contradicted=share(2),
            first_chosen=share(3),
            longer_chosen=share(4),
            kappa=np.array([np.nan, 0.5]),
            careless=np.array([False, True]),
        )
    )
    assert [row["annotator"] for row in found] == ["bob", "ann"]
    shares = ("known answers right", "repeats contradicted")
    shares += ("first shown chosen", "longer chosen")
    for i, name in enumerate(shares):
        expected = {"count": i + 1, "of": 9, "low": 0.25, "high": 0.75}
        assert [row[name] for row in found] == [expected, None], name
    assert [row["votes"] for row in found] == [7, 5]
    assert [row["kappa"] for row in found] == [0.5, None]
    assert [row["out"] for row in found] == [True, False]
    line = comparison_report.markdown("People", found).splitlines()[4]
    assert "11% [25, 75] of 9" in line


def test_the_report_says_how_often_the_longer_is_better(tmp_path):
    difference, kept = np.array([3, 2, -1, 0]), np.array([True, False, True, False])
    kappa = {"of all": 0.25, "of the clean": 0.5}
    alpha = {"of all": 0.125, "of the clean": 1.0}
    tables = {"写": [{"a": 1}]}
    comparison_report.write(tmp_path, tables, kappa, alpha, difference, kept)
    text = (tmp_path / "report.md").read_text()
    for part in (
        "Of 4 cleaned pairs, 1 are equal in length; of the others, the longer is "
        "better in 66.7%.",
        "Of 2 balanced pairs, 0 are equal in length; of the others, the longer is "
        "better in 50.0%.",
        "majority: 0.25 of all, 0.50 of the clean.",
        "Krippendorff's alpha: 0.12 of all, 1.00 of the clean.",
    ):
        assert part in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["写"], report["alpha"]) == ([{"a": 1}], alpha)


def test_a_table_that_just_fits_the_terminal_is_whole(capsys):
    rows = [{"step": f"row {i}"} for i in range(comparison_report.SHOWN)]
    comparison_report.print_rows("Steps", rows)
    printed = capsys.readouterr().out
    assert "row 19" in printed and "more rows" not in printed


def test_equal_lengths_are_no_sign_of_bias():
    found = comparison_report.length_bias(np.array([3, 0, -1, 6]))
    assert found["longer_is_better"] == pytest.approx(2 / 3)
    assert (found["pairs"], found["equal"], found["mean_difference"]) == (4, 1, 2.0)
    assert comparison_report.length_bias(np.zeros(2, int))["longer_is_better"] is None
    assert comparison_report.length_bias(np.zeros(0, int))["mean_difference"] is None


def test_names_cannot_break_the_tables(capsys):
    rows = [{"annotator": "[bold]a|b\n", "votes": 1234, "out": True}]
    (line,) = comparison_report.markdown("People", rows).splitlines()[4:]
    assert line == r"| [bold]a\|b | 1,234 | out |"
    comparison_report.print_rows("People", rows)
    assert "[bold]a|b" in capsys.readouterr().out


def test_long_tables_are_cut_in_the_terminal_and_whole_in_the_report(tmp_path, capsys):
    rows = [{"step": f"row {i}", "comparisons": i} for i in range(30)]
    comparison_report.write(
        tmp_path,
        {"Steps": rows, "Nobody": []},
        {"of all": float("nan")},
        {"of all": float("nan")},
        np.array([1, -1, 5]),
        np.array([True, True, False]),
    )
    printed = capsys.readouterr().out
    assert "row 19" in printed and "row 20" not in printed
    assert "and 10 more rows in report.md" in printed
    assert "| row 29 | 29 |" in (tmp_path / "report.md").read_text()
    assert "kappa" not in printed and "Nobody" not in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kappa"] == {"of all": None}
    assert report["length"]["balanced"]["pairs"] == 2


@pytest.mark.parametrize("difference", [[0], [1, -1], [900, -3, 4], list(range(200))])
def test_any_differences_can_be_drawn(difference, tmp_path):
    difference = np.array(difference)
    path = tmp_path / "plot.png"
    comparison_report.plot_differences(difference, difference[:1], path)
    assert path.stat().st_size > 5000


def test_the_bars_are_even_about_zero_and_hold_all_but_the_farthest(
    tmp_path, monkeypatch
):
    figures = []

    def figure(*args, **kwargs):
        figures.append(Figure(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(comparison_report, "Figure", figure)
    before, after = np.arange(-400, 401), np.array([-1, 0, 1, 1])
    comparison_report.plot_differences(before, after, tmp_path / "plot.png")
    few = np.array([1])
    comparison_report.plot_differences(few, few, tmp_path / "few.png")
    for drawn, differences in zip(figures, ((before, after), (few, few)), strict=True):
        (axes,) = drawn.axes
        for bars, difference in zip(axes.containers, differences, strict=True):
            edges = [bar.get_x() for bar in bars]
            width = bars[0].get_width()
            assert round(width) % 2 == 1
            assert -edges[0] == edges[-1] + width >= 0.98 * np.abs(difference).max()
            inside = np.abs(difference) < -edges[0]
            assert sum(bar.get_height() for bar in bars) == inside.sum()
            assert 11 <= len(bars) < 100
    assert len(figures[0].axes[0].containers[0]) > 60
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels == [
        "cleaned: 801 pairs, the longer is better in 50.0%",
        "balanced: 4 pairs, the longer is better in 66.7%",
    ]
