"""Tables and counts in a terminal: nothing is cut, nothing is wider than it."""

import itertools

import pytest
from rich.cells import cell_len
from rich.console import Console

from rlhf_jax import terminal
from rlhf_jax.evaluation.tables import print_table


@pytest.fixture(params=[60, 80, 200])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setattr(
        terminal,
        "Console",
        lambda **_: Console(force_terminal=True, color_system=None, highlight=False),
    )
    return request.param


def model(net):
    versus = dict.fromkeys(("win", "tie", "lose"), 1 / 3) | {"prompts": 400}
    versus |= {"net": net, "net_low": net - 0.1, "net_high": net + 0.1}
    quality = {"mean": 2.35, "low": 2.0, "high": 2.72}
    return {
        "length": 25.5,
        "kl": 1.5,
        "quality": quality,
        "against_baseline": versus | {"length_controlled_net": net},
        "skills_right": 0.85,
        "skills_logprob": -1.5,
    }


def test_a_terminal_shows_an_evaluation_whole(width, capsys):
    models = {"sft": {"length": 25.5, "kl": 0.0}, "ppo_without_baseline": model(0.331)}
    print_table({"judge": "testbed", "baseline": "sft", "models": models})
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= width
    for cell in ("+33.1% [+23.1%, +43.1%]", "2.35 [2.00, 2.72]", "33% / 33% / 33%"):
        assert cell in shown, cell
    for title in ("skills", "at equal length", "prompts", "400", "sft"):
        assert title in shown, title
    assert "no verdict" not in shown


def test_long_cells_are_folded_and_not_cut(width, capsys):
    name, error = "kl_coef=0.01,seed=0," * 5, "ValueError: " + "no " * 60
    terminal.print_table("Runs", ["run", "score", "state"], [[name, "0.5", error]])
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= width
    assert shown.count("no") == 60 and shown.count("seed=0") + shown.count("ee") >= 4


def test_a_file_gets_one_table_of_any_width(capsys):
    header = [f"column {i}" for i in range(30)]
    terminal.print_table("", header, [header])
    first, _, second = capsys.readouterr().out.splitlines()
    assert all(name in line for line in (first, second) for name in header)


def test_markdown_keeps_its_cells(width, capsys):
    rows = [[f"{i}.{k}" * 3 for k in range(12)] for i in range(3)]
    text = "# Title\n\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in [["a"] * 12, ["---"] * 12, *rows]
    )
    terminal.print_markdown(text + "\nThe note.\n")
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= width
    assert all(cell in shown for cell in itertools.chain(*rows))
    assert "# Title" in shown and "The note." in shown and "---" not in shown


def test_counts_are_words():
    counts = {"pairs": 8400, "dropped": {"tie": 223}, "share": 1 / 3, "by": "people"}
    assert terminal.listed(counts) == (
        "pairs 8,400; dropped (tie 223); share 0.3333; by people"
    )
    assert terminal.listed({}) == "nothing"
