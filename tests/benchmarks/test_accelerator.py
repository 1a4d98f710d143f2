"""The benchmark of an accelerator, on the CPU: each row has its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import ROWS, main, reason_of, table

ROOT = Path(__file__).parents[2]


def run(out: Path, *flags: str) -> dict:
    """The rows after one start of the command."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--model=micro"]
    subprocess.run([*command, f"--out={out}", *flags], cwd=ROOT, check=True)
    return json.loads(out.with_suffix(".json").read_text())["rows"]


def test_a_row_that_fails_costs_itself_alone_and_says_why(tmp_path):
    out = tmp_path / "results" / "micro"
    rows = run(out, "--rows", "decode_64")
    assert set(rows) == {"ceilings", "decode_64"}
    done = rows["decode_64"]
    assert done["tokens_per_second"] * done["seconds"] <= 1.01 * 64 * 8
    assert done["read_gb_per_second"] > 0 and done["tflops"] > 0
    assert rows["ceilings"]["devices"] == 1
    later = run(out, "--rows", "sft", "--row_limit=1.2")
    assert later["decode_64"] == done
    assert later["sft"]["reason"] == later["ceilings"]["reason"] == "killed after 1 s"
    text = out.with_suffix(".md").read_text()
    assert f"| decode_64 | {done['tokens_per_second']:,} |" in text
    assert "| sft | | | | | killed after 1 s |" in text


def test_time_that_is_used_up_starts_no_row(tmp_path):
    rows = run(tmp_path / "micro", "--limit=0")
    assert set(rows) == set(ROWS)
    assert all("not started" in row["reason"] for row in rows.values())


@pytest.mark.parametrize(
    ("flag", "held", "message"),
    [
        ("--model=huge", "[1, 2", "invalid choice: 'huge'"),
        ("--rows=sft", "[1, 2", "is another file's"),
        ("--model=tiny", '{"model": "micro"}', "is of micro"),
        ("--model=micro", '{"model": "micro", "device": "8 x v5e"}', "is of 8 x v5e"),
    ],
)
def test_bad_input_ends_in_a_line_and_writes_nothing(
    flag, held, message, tmp_path, monkeypatch, capsys
):
    """A file of other results, among others, is not written over."""
    (tmp_path / "mine.json").write_text(held)
    monkeypatch.setattr(
        accelerator, "measured", lambda *_: {"device": "1 x cpu", "seconds": 1.0}
    )
    out = f"--out={tmp_path / 'mine'}"
    monkeypatch.setattr(sys, "argv", ["accelerator", out, flag])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == held


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("Traceback\n  x\nValueError: too large\n", "ValueError: too large"),
        (
            "jaxlib.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory\n  at 1\nnote\n",
            "jaxlib.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory",
        ),
        ("torch sees no GPU here.\n", "torch sees no GPU here."),
        ("", "status -9, without a word"),
    ],
)
def test_the_reason_is_the_line_that_says_it(errors, reason):
    assert reason_of(errors, -9) == reason


def test_shares_are_of_all_devices_and_of_the_ceiling_that_binds():
    ceiling = {"tflops": 600.0, "read_gb_per_second": 3600.0, "devices": 2}
    ceiling |= {"device": "2 x NVIDIA H200", "date": "2026-11-27", "seconds": 1.0}
    row = {"seconds": 0.5, "tokens_per_second": 12500}
    rows = {
        "ceilings": ceiling,
        "sft": row | {"tflops": 300.0},
        "decode_64": row | {"tflops": 300.0, "read_gb_per_second": 5400.0},
        "ppo": row
        | {"tflops": 1.0, "parts": {"update": 0.4}, "update_tokens_per_second": 9000},
    }
    text = table("chatglm3_6b", rows)
    assert "2 x NVIDIA H200, 2026-11-27" in text
    assert "| sft | 12,500 | 0.5 | 300 TFLOP/s, 25% |" in text
    assert "| decode_64 | 12,500 | 0.5 | 5,400 GB/s, 75% |" in text
    assert "update 0.4 s, update 9,000 tokens/s" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_measured_on_a_small_model(name):
    row = ROWS[name].measure("micro")
    assert row["seconds"] > 0
    if name != "ceilings":
        assert row["tokens_per_second"] > 0
    if "parts" in row:
        assert set(row["parts"]) == {"generate", "score", "update"}
