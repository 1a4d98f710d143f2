"""Claims over worlds: effects, verdicts, and the text about them."""

import json

import numpy as np
import pytest

from rlhf_jax.evaluation.report.claims import headlines, markdown
from rlhf_jax.evaluation.study import (
    Claim,
    Measure,
    UnfinishedError,
    World,
    compare,
    results,
)
from rlhf_jax.launching.reproduce import write_results


def summarise(folder, run, summary, lines=()):
    (folder / run).mkdir(parents=True)
    (folder / run / "summary.json").write_text(json.dumps(summary))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / run / "metrics.jsonl").write_text(text)


def make_worlds(folder, *pairs):
    """Return worlds in which run a says x = the first number and b the second."""
    worlds = []
    for seed, (ours, theirs) in enumerate(pairs):
        world = folder / f"seed{seed}"
        summarise(world, "a", {"models": {"x": ours}})
        summarise(world, "b", {"models": {"x": theirs}})
        worlds.append(World(world))
    return worlds


MEASURE = Measure("a minus b", "a:models.x", "b:models.x", "below")
FALLING = ((1.0, 2.0), (5.0, 7.0), (0.0, 3.0))  # differences -1, -2, -3


def test_worlds_are_compared_one_by_one(tmp_path):
    found = compare(MEASURE, make_worlds(tmp_path, *FALLING))
    assert found["ours"] == 2.0 and found["theirs"] == 4.0
    assert found["effect"]["values"] == (-1.0, -2.0, -3.0)
    # -2 +- 4.303 / sqrt(3)
    assert found["effect"]["high"] == pytest.approx(-2 + 2.484138)


def test_a_world_without_its_runs_is_left_out(tmp_path):
    worlds = make_worlds(tmp_path, *FALLING)
    (tmp_path / "seed1" / "b" / "summary.json").unlink()
    found = compare(MEASURE, [World(tmp_path / f"seed{i}") for i in range(3)])
    assert found["effect"]["values"] == (-1.0, -3.0)
    with pytest.raises(UnfinishedError):
        World(tmp_path / "seed1").number("b:models.x")
    assert compare(MEASURE, worlds[:1]) is None  # one world has no interval


def test_a_quantity_may_be_a_function_of_the_runs(tmp_path):
    for seed, values in enumerate(([1.0, 3.0], [2.0, 2.0])):
        lines = [{"step": i, "y": y} for i, y in enumerate(values)] + [{"step": 9}]
        summarise(tmp_path / f"seed{seed}", "a", {}, lines)
    worlds = [World(tmp_path / f"seed{seed}") for seed in range(2)]
    np.testing.assert_array_equal(worlds[0].series("a", "y"), [1.0, 3.0])
    spread = Measure("spread", lambda world: float(np.ptp(world.series("a", "y"))))
    found = compare(spread, worlds)
    assert found["effect"]["values"] == (2.0, 0.0) and found["theirs"] is None


def claims():
    return [
        Claim(1, "It falls", "b is larger.", MEASURE, checks=(MEASURE,)),
        Claim(
            2,
            "It rises",
            "a is larger.",
            MEASURE._replace(expected="above"),
            others=(Measure("a alone", "a:models.x", None, "within", 9.0),),
        ),
    ]


def test_claims_share_the_level(tmp_path):
    """Three worlds show -2 +- 1 alone at 0.025 (p = 0.037: not at all), and six that
    are less spread also beside a second claim."""
    few = results(claims(), make_worlds(tmp_path / "few", *FALLING), with_verdicts=True)
    assert [row["primary"]["verdict"] for row in few] == ["not shown", "not shown"]
    pairs = [(0.0, x) for x in (1.8, 2.0, 2.2, 2.1, 1.9, 2.0)]
    rows = results(claims(), make_worlds(tmp_path / "six", *pairs), with_verdicts=True)
    assert [row["primary"]["verdict"] for row in rows] == ["holds", "the opposite"]
    primary = rows[0]["primary"]
    assert primary["p_holm"] == pytest.approx(2 * primary["p"])
    assert primary["p_sign_flip"] == 1 / 64
    assert "verdict" not in rows[1]["others"][0]  # the primary measure alone is judged


def test_the_text_tells_what_was_predicted_and_shown(tmp_path):
    rows = results(claims(), make_worlds(tmp_path, *FALLING), with_verdicts=True)
    text = markdown(rows)
    assert "### 1. It falls" in text and "*Predicted:* b is larger." in text
    assert "| a minus b | 2 | 4 | -2 [-4.48, +0.484] | below 0 | -1, -2, -3 |" in text
    assert "Follows from what was changed, and is no evidence:" in text
    assert "| within ±9 |" in text
    # Both claims fail: each at 0.0125. (t(0.9875, 2) + t(0.8, 2)) / sqrt(3) = 4.196.
    assert "**Not shown**: p = 0.037" in text
    assert "These 3 worlds would have shown a mean 4.2 beyond the bound" in text
    assert "| 2. It rises | 3 | -2 [-4.48, +0.484] | above 0 | not shown |" in text


def test_without_verdicts_nothing_is_tested(tmp_path):
    rows = results(claims(), make_worlds(tmp_path, *FALLING), with_verdicts=False)
    text = markdown(rows) + headlines(rows)
    assert "p =" not in text and "verdict |" not in text and "Not shown" not in text
    assert "| 2. It rises | 3 | -2 [-4.48, +0.484] | above 0 |\n" in text


@pytest.mark.parametrize("with_verdicts", [True, False])
def test_it_ends_in_tables_and_a_plot(tmp_path, with_verdicts):
    worlds = make_worlds(tmp_path, *FALLING)
    rows = results(claims(), worlds, with_verdicts=with_verdicts)
    write_results(tmp_path / "results", "claims", rows, markdown(rows))
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"claims.md", "claims.json", "claims.png"}
    assert json.loads((tmp_path / "results" / "claims.json").read_text())


def test_no_world_is_done_yet(tmp_path):
    rows = results(claims(), [World(tmp_path / "seed0")], with_verdicts=True)
    assert rows == []
    assert "No claim has the runs of two worlds yet." in markdown(rows)
