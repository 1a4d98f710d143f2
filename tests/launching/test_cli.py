"""Errors for mistakes on the command line."""

import json
import logging as standard_logging
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import logging

import rlhf_jax
from rlhf_jax.launching.cli import (
    _Line,
    check_config_flags,
    clear_errors,
    read_config_file,
    warn_of_unused_gpu,
)
from rlhf_jax.launching.device_groups import take_memory

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
        ([f"{SFT}:huge"], r"no preset 'huge'; it has: tiny, hh, "),
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


COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))
SHOWN = [
    *((script, "--help") for script in COMMANDS),
    ("train", "--help", "--config=configs/sft.py:tiny"),
    *((script, "--version") for script in ("train", "annotate")),
    (
        *("sweep", "--config=configs/sft.py:tiny", "--workdir=/w"),
        *("--print", "--grid=config.seed=0,1"),
    ),
]
# Commands one after another, each in a copy of a process that has imported most of the
# package, which takes seconds.
FORKS = """
import json, os, runpy, sys
import rlhf_jax.launching.pipeline, rlhf_jax.launching.stage
for number, (script, *arguments) in enumerate(json.loads(sys.argv[2])):
    child = os.fork()
    if not child:
        for end, name in ((1, "out"), (2, "err")):
            file = os.open(f"{sys.argv[1]}/{number}.{name}", os.O_CREAT | os.O_RDWR)
            os.dup2(file, end)
        sys.argv = [f"launch/{script}.py", *arguments]
        sys.path[0] = "launch"
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    if status := os.waitpid(child, 0)[1]:
        sys.exit(open(f"{sys.argv[1]}/{number}.err").read() or status)
"""


@pytest.fixture(scope="module")
def said_by(tmp_path_factory):
    """`said_by("train", "--help")`: the output of a command of SHOWN."""
    folder = tmp_path_factory.mktemp("said")
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(folder), json.dumps(SHOWN)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": "/usr/bin", "HOME": "/tmp", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return lambda *command: (folder / f"{SHOWN.index(command)}.out").read_text()


@pytest.mark.parametrize("script", COMMANDS)
def test_help_lists_flags_presets_and_where_keys_are_described(script, said_by):
    shown = said_by(script, "--help")
    source = (ROOT / "launch" / f"{script}.py").read_text()
    own = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    if "stage.command(" in source or "cli.run(" in source:
        own += ["config", "workdir", "coordinator", "num_processes", "process_id"]
    assert own
    assert max(map(len, shown.splitlines())) <= 80
    for name in [*own, "verbosity", "version"]:
        assert f"\n  --{name}: " in shown, name
    if "config" in own:
        configs = re.findall(r"^  (configs/\w+\.py): (.+(?:\n {6}.+)*)", shown, re.M)
        assert configs and "docs/configuration.md" in shown
        for file, presets in configs:
            for preset in re.split(r",\s+", presets):
                assert read_config_file(f"{ROOT / file}:{preset}")


def test_help_with_a_config_lists_its_keys(said_by):
    shown = said_by("train", "--help", "--config=configs/sft.py:tiny")
    assert "\n  --config.epochs=3\n" in shown
    assert "\n  --config.optimizer.learning_rate=0.002\n" in shown


@pytest.mark.parametrize("script", ["train", "annotate"])
def test_a_command_says_its_version(script, said_by):
    assert said_by(script, "--version").startswith(f"rlhf_jax {rlhf_jax.__version__}, ")


def test_a_sweep_prints_its_commands(said_by):
    line = "python launch/train.py --config=configs/sft.py:tiny --workdir=/w/seed={0} "
    line += "--config.seed={0}\n"
    assert said_by(*SHOWN[-1]) == line.format(0) + line.format(1)


@pytest.mark.parametrize(
    ("level", "verbosity", "line"),
    [
        ("INFO", logging.INFO, r"\d\d:\d\d:\d\d sft 1/2"),
        ("WARNING", logging.INFO, r"\d\d:\d\d:\d\d warning: sft 1/2"),
        ("INFO", logging.DEBUG, r"\d\d:\d\d:\d\d sft\.py:82 sft 1/2"),
    ],
)
def test_a_log_line_begins_with_the_time_alone(level, verbosity, line, monkeypatch):
    monkeypatch.setattr(logging, "get_verbosity", lambda: verbosity)
    level = standard_logging.getLevelName(level)
    record = standard_logging.LogRecord(
        "absl", level, "a/sft.py", 82, "sft %d/2", (1,), None
    )
    shown = _Line(datefmt="%H:%M:%S").format(record)
    assert re.fullmatch(line, shown), shown


@pytest.mark.parametrize(
    ("device", "plugin", "platforms", "warned"),
    [
        ("nvidia0", False, "", True),
        ("nvidiactl", False, "", False),  # no GPU
        ("nvidia0", True, "", False),
        ("nvidia0", False, "cpu", False),
        ("nvidia-smi", False, "", True),  # a GPU that has no device file, as on WSL
    ],
)
def test_a_gpu_without_its_plugin_is_told(
    device, plugin, platforms, warned, tmp_path, monkeypatch, caplog
):
    """The plugin stands beside jax as a module of the package jax_plugins."""
    (tmp_path / device).touch(mode=0o755)
    module = tmp_path / "jax_plugins" / ("xla_cuda13" if plugin else "xla_other")
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jax_plugins", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    warn_of_unused_gpu(tmp_path)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == warned
    assert all("NVIDIA GPU" in x and "'.[cuda]'" in x for x in told)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, {}),  # jax refuses both
        (
            {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "7"},
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"},
        ),
    ],
)
def test_jax_takes_the_memory_that_the_user_has_not_set(given, expected):
    environ = dict(given)
    take_memory(environ)
    limit = environ.pop("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB")
    assert int(limit) > 0
    given.pop("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", None)
    assert environ == given | expected


@pytest.mark.parametrize("start", ["run", "command"])
def test_every_command_asks_for_memory_before_jax_starts(start, tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
        "import os\nfrom rlhf_jax.launching import cli\n"
        "from jax._src import xla_bridge\n"
        "show = lambda *_: print(os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'],"
        " xla_bridge.backends_are_initialized())\n"
        f"cli.{start}(show)\n"
    )
    own = [f"{SFT}:tiny", "--workdir=x"] if start == "run" else []
    command = [sys.executable, str(script), *own]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.95", "False"]


def test_too_little_memory_is_one_line(capsys):
    told = (
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 171 bytes.\n at x"
    )
    with pytest.raises(SystemExit) as left, clear_errors():
        raise jax.errors.JaxRuntimeError(told)
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MemoryError: Out of memory while trying to allocate 171")
    assert "docs/memory_planning.md" in line
    with pytest.raises(jax.errors.JaxRuntimeError), clear_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: another error")


def test_a_mistake_found_in_a_traced_function_is_one_line(capsys):
    """jax adds a note about its traceback to an error from within; ours stay."""

    def refuse(x):
        error = ValueError("a mistake")
        error.add_note("and its cure")
        raise error

    with pytest.raises(SystemExit), clear_errors():
        jax.jit(refuse)(1.0)
    said = capsys.readouterr().err.splitlines()
    assert said == ["ValueError: a mistake", "and its cure"]
