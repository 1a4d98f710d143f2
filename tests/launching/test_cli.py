"""What a user's mistake on the command line says."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.launching.cli import check_config_flags

ROOT = Path(__file__).parents[2]

SFT = f"--config={ROOT}/configs/sft.py"


def test_what_exists_is_let_through():
    check_config_flags(
        ["train.py", f"{SFT}:tiny", "--workdir=x", "--config.optimizer.b2=0.9"]
    )
    check_config_flags(["train.py"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/none.py"], r"no file configs/none.py.*ppo.py.*sft.py"),
        ([f"{SFT}:huge"], r"no preset 'huge'; it has: tiny, hh, chatglm_6b"),
        (
            [f"{SFT}:tiny", "--config.optimizer.learning_rat=1"],
            r"config.optimizer has no key 'learning_rat'. Did you mean 'learning_rate'",
        ),
        ([f"{SFT}:tiny", "--config.nothing=1"], r"It has: .*batch_size.*epochs"),
        ([f"{SFT}:tiny", "--config.epochs.x=1"], r"config.epochs has no key 'x'"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_config_flags(["train.py", *arguments])


@pytest.mark.parametrize("script", ["train", "plan", "annotate", "exchange"])
def test_a_script_runs_the_package_beside_it(script, tmp_path):
    """Not another copy, that is installed or on the path."""
    (tmp_path / "rlhf_jax").mkdir()
    (tmp_path / "rlhf_jax" / "__init__.py").write_text("raise SystemExit('another')")
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / f"{script}.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )
    assert "another" not in done.stderr
    assert f"launch/{script}.py" in done.stdout


def test_a_mistake_ends_with_its_message_and_no_traceback(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("sft", "sft_test", "prompts", "eval_prompts"):
        (data / f"{name}.jsonl").write_text('{"messages": 3}\n')
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "launch" / "train.py",
            f"{SFT}:tiny",
            f"--workdir={tmp_path / 'run'}",
            f"--config.data.path={data}",
            f"--config.data.tokenizer={tmp_path / 'none'}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "FileNotFoundError: There is no tokenizer in" in done.stderr
