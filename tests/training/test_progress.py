"""The progress of a run's steps, as a person sees it."""

import sys

import pytest
from absl import logging

from rlhf_jax.training import progress


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "info", lambda text, *args: found.append(text % args))
    return found


def steps(first, last, total, *, fails=False):
    """A loop whose numbers come one step late, as from a Writer."""
    with progress.ProgressBar("sft", total, first, {"loss": "x"}) as bar:
        for step in range(first, last):
            if fails and step == last - 1:
                raise RuntimeError
            bar.update(step, {"x": 0.5 * step})


def test_the_last_step_is_shown(lines):
    steps(0, 3, 3)
    assert lines[-1].startswith("sft 3/3  ") and "loss 1" in lines[-1]
    assert "left" not in lines[-1]


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [(0, 2, "sft 2/9"), (4, 5, "sft 5/9"), (8, 9, "sft 9/9")],
    ids=["stopped early", "resumed for a step", "resumed at the end"],
)
def test_what_was_done_is_shown(lines, first, last, shown):
    steps(first, last, 9)
    assert lines[-1].startswith(shown)


def test_a_run_that_had_nothing_to_do_or_failed_claims_no_step(lines):
    steps(9, 9, 9)
    lines.clear()  # what a resumed run says
    with pytest.raises(RuntimeError):
        steps(0, 3, 3, fails=True)
    assert lines == []


def test_a_terminal_shows_the_last_step(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    steps(0, 3, 3)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "last"), [(4, 5), (9, 9)])
def test_a_resumed_run_says_where_it_goes_on(lines, first, last):
    steps(first, last, 9)
    assert lines[0] == f"sft goes on from step {first} of 9."
