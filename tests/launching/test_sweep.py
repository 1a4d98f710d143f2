"""The command lines that a sweep stands for."""

import json
import re
from pathlib import Path

import pytest

from rlhf_jax.launching.device_groups import group_environment
from rlhf_jax.launching.jobs import Job
from rlhf_jax.launching.sweep import make_jobs, table, variants
from rlhf_jax.training import lock
from rlhf_jax.training.workdir import open_workdir

ROOT = Path(__file__).parents[2]


def sweep(
    *, config="configs/sft.py:tiny", same: tuple[str, ...] = (), **fields
) -> list[str]:
    """The command lines of a sweep of so many variants."""
    runs = variants(config, **fields)
    return [job.command() for job in make_jobs(config, runs, Path("/w"), same=same)]


def test_grids_multiply_and_lists_go_together():
    lines = sweep(
        grid=["config.epochs=1,2", "config.seed=0,1,2"],
        together=["config.max_tokens=64,128", "config.batch_size=8,16"],
        same=("config.model=micro",),
    )
    assert len(set(lines)) == 2 * 3 * 2
    assert all("--config.model=micro" in line for line in lines)
    assert all(
        ("--config.max_tokens=64" in line) == ("--config.batch_size=8" in line)
        for line in lines
    )


@pytest.mark.parametrize("result", ["summary.json", "metrics.jsonl"])
def test_results_of_another_config_are_not_taken_for_a_run_of_this_sweep(
    result, tmp_path
):
    """Neither a run that is done nor one that was stopped."""

    def jobs(epochs):
        same = (f"config.epochs={epochs}",)
        return make_jobs("configs/sft.py:tiny", [{"seed": 3}], tmp_path, same=same)

    (job,) = jobs(1)
    open_workdir(job.workdir, job.resolve())
    lock.release(job.workdir)
    assert jobs(2)  # no results: what was wrong is put right
    (job.workdir / result).write_text("{}")
    assert jobs(1)
    with pytest.raises(ValueError, match=r"(?s)seed=3: .* config\.epochs: 1 -> 2"):
        jobs(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": ["config.seed=1,1"]}, "The same run twice: seed=1"),
        ({"draws": ["config.seed=1:2"]}, "say how many runs with --random"),
        ({"grid": ["config.epoch=1"]}, "Did you mean 'epochs'?"),
        ({"grid": ["config.epochs=many"]}, "many is of original type"),
        ({"grid": ["epochs=1"]}, "is not of the form config.KEY=VALUE"),
    ],
)
def test_what_the_config_does_not_take_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep(**fields)


def test_draws_are_in_their_range_and_the_same_every_time():
    fields = {
        "count": 6,
        "draws": ["config.optimizer.learning_rate=1e-5:1e-3:log", "config.epochs=1:3"],
        "grid": ["config.seed=0,1"],
    }
    lines = sweep(**fields)
    assert lines == sweep(**fields)
    rates = [
        float(re.search(r"learning_rate=(\S+)", line.split("--config.", 1)[1])[1])
        for line in lines
    ]
    assert len(set(rates)) == 6 and all(1e-5 <= x <= 1e-3 for x in rates)
    assert min(rates) < 1e-4 < max(rates)
    assert all(re.search(r"--config.epochs=[123] ", f"{line} ") for line in lines)


def test_a_config_file_may_bring_its_own_runs(tmp_path):
    """As in big_vision: a function that calls `add` for every run."""
    own = tmp_path / "own.py"
    own.write_text(
        "from configs.sft import get_config\n"
        "def sweep(add):\n"
        "    for rate in (0.1, 0.2):\n"
        "        add(**{'optimizer.learning_rate': rate}, seed=7)\n"
    )
    lines = sweep(config=f"{own}:tiny", grid=["config.epochs=1,2"])
    assert len(lines) == 4 and all("--config.seed=7" in line for line in lines)
    assert sum("learning_rate=0.2" in line for line in lines) == 2


def test_tuples_are_values():
    assert len(sweep(grid=["config.mesh=(1, -1, 1),(2, -1, 1)"])) == 2


def summarise(folder, **numbers):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(numbers))


@pytest.fixture
def three_jobs(tmp_path):
    for name, loss in (("a", 3.0), ("b", 1.0)):
        summarise(tmp_path / name, **{"eval/loss": loss, "models": {"x": loss}})
    return [Job(name, "configs/sft.py", {}, tmp_path / name) for name in "abc"]


@pytest.mark.parametrize(
    ("metric", "lowest", "order"),
    [
        ("eval/loss", False, ["a", "b", "c"]),
        ("eval/loss", True, ["b", "a", "c"]),
        ("models.x", False, ["a", "b", "c"]),
        ("nothing", False, ["a", "b", "c"]),
    ],
)
def test_the_table_is_sorted_by_the_metric_and_names_failures(
    three_jobs, metric, lowest, order
):
    _, rows = table(three_jobs, {"c": "ValueError: no"}, metric, lowest=lowest)
    names, _, states = map(list, zip(*rows, strict=True))
    assert names == order
    assert states[names.index("c")] == "ValueError: no"


def test_without_a_metric_the_main_number_of_the_stage_is_shown(three_jobs):
    header, rows = table(three_jobs, {"c": "ValueError: no"})
    assert header[1] == "eval/loss"
    assert [row[:2] for row in rows] == [["a", "3"], ["b", "1"], ["c", ""]]


@pytest.mark.parametrize(
    ("environ", "devices", "workers", "expected"),
    [
        ({}, [], 2, [{}, {}]),
        ({"JAX_PLATFORMS": "cpu"}, ["nvidia0"], 2, [{}, {}]),
        (
            {},
            ["nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl"],
            2,
            [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}],
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "5,7"},
            ["nvidia0"],
            2,
            [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}],
        ),
    ],
)
def test_every_worker_has_its_own_devices(
    tmp_path, environ, devices, workers, expected
):
    for name in devices:
        (tmp_path / name).touch()
    found = [group_environment(i, workers, environ, tmp_path) for i in range(workers)]
    assert found == expected


def test_tpu_chips_are_told_their_shape(tmp_path):
    for i in range(4):
        (tmp_path / f"accel{i}").touch()
    found = group_environment(1, 2, {}, tmp_path)
    assert found["TPU_VISIBLE_DEVICES"] == "2,3"
    assert found["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    with pytest.raises(ValueError, match="cannot be shared out to 3 workers"):
        group_environment(0, 3, {}, tmp_path)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2375"}),  # 0.95 / 4
        (
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.8"},
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2000"},
        ),
        # jax refuses to start where both names are set.
        ({"XLA_CLIENT_MEM_FRACTION": "0.8"}, {"XLA_CLIENT_MEM_FRACTION": "0.2000"}),
    ],
)
def test_workers_that_share_a_gpu_divide_its_memory(tmp_path, environ, expected):
    """Two groups of one GPU, four workers on each; the first two have a GPU each."""
    for i in range(2):
        (tmp_path / f"nvidia{i}").touch()
    found = [group_environment(i, 2, environ, tmp_path, per_device=4) for i in range(8)]
    devices = [x.pop("CUDA_VISIBLE_DEVICES") for x in found]
    assert devices == ["0", "1"] * 4
    assert found == [expected] * 8


def test_a_tpu_is_not_shared(tmp_path):
    (tmp_path / "accel0").touch()
    with pytest.raises(ValueError, match=r"workers_per_device=2.*one process"):
        group_environment(0, 1, {}, tmp_path, per_device=2)
    assert group_environment(0, 1, {}, tmp_path / "none", per_device=2) == {}
