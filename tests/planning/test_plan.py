"""What a user's mistake says, where no compiler is needed to see it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_unknown_topology_lists_the_known_kinds():
    command = [
        sys.executable,
        str(ROOT / "launch" / "plan.py"),
        f"--config={ROOT}/configs/sft.py:chatglm3_6b",
        "--topology=v5e:",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "write KIND:SHAPE" in done.stderr
    assert "v5e" in done.stderr
    assert "Traceback" not in done.stderr
