"""Files of checkpoints that were cut, changed or deleted: never a wrong number."""

import json
import random
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.training import checksums
from rlhf_jax.training.checkpoints import Checkpoints, DamagedError

CORRUPTIONS = 50
STEPS = (2, 4, 6)


def items(step: int) -> dict:
    values = np.random.default_rng(step).normal(size=(2, 16, 8)).astype(np.float32)
    rest = {"moments": jnp.asarray(values[1]), "step": jnp.int32(step)}
    return {"model": {"kernel": jnp.asarray(values[0])}, "rest": rest}


BEST = "-eval/loss"
LOSSES = {2: 3.0, 4: 1.0, 6: 2.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, keep=5, best=BEST)
    for step in STEPS:
        note, numbers = {"note": f"of step {step}"}, {"eval/loss": LOSSES[step]}
        checkpoints.save(step, items(step), note, numbers)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def corrupt(rng: random.Random, folder: Path) -> Path:
    """Cut, change or delete one of a checkpoint's files; returns which."""
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    content = bytearray(path.read_bytes())
    kind = rng.choice(["cut", "change", "delete"]) if content else "delete"
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return path


def assert_whole(checkpoints: Checkpoints, step: int) -> None:
    found = checkpoints.restore(step, items(0))
    assert checkpoints.meta(step)["note"] == f"of step {step}"
    np.testing.assert_array_equal(
        found["model"]["kernel"], items(step)["model"]["kernel"]
    )
    np.testing.assert_array_equal(
        found["rest"]["moments"], items(step)["rest"]["moments"]
    )
    assert found["rest"]["step"] == step


@pytest.mark.parametrize("seed", range(CORRUPTIONS))
def test_the_checkpoint_before_a_damaged_one_is_used(workdir, seed, caplog):
    path = corrupt(random.Random(seed), workdir / "checkpoints" / "6")
    checkpoints = Checkpoints(workdir, keep=5, best=BEST * (seed % 2))
    step = checkpoints.latest_step()
    assert_whole(checkpoints, step)
    if path.parent.name == "6" and path.name != checksums.FILE:
        assert step == 6  # notes of orbax about the whole: nothing depends on them
    else:
        assert step == 4
        (line,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
        assert "/checkpoints/6 is damaged" in line
        assert path.name in line or path.name == checksums.FILE
        checkpoints.save(6, items(6), {"note": "of step 6"})
        checkpoints.wait()
        assert_whole(checkpoints, checkpoints.latest_step())
        assert checkpoints.latest_step() == 6
    checkpoints.close()


def test_when_none_is_whole_the_run_stops_says_what_to_do_and_loses_nothing(workdir):
    for step in STEPS:
        shutil.rmtree(workdir / "checkpoints" / str(step) / "model" / "d")
    for _ in range(2):  # nor does it start from nothing the second time
        checkpoints = Checkpoints(workdir, keep=5)
        with pytest.raises(DamagedError, match=r"No checkpoint in .* is whole: mod.*d"):
            checkpoints.latest_step()
        assert checkpoints.steps() == list(STEPS)


def test_who_only_reads_leaves_a_damaged_checkpoint_where_it_is(workdir):
    (workdir / "checkpoints" / "6" / "model" / "manifest.ocdbt").unlink()
    checkpoints = Checkpoints(workdir, keep=None)
    assert checkpoints.latest_step() == 4
    assert (workdir / "checkpoints" / "6").is_dir()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_checksums_that_are_rubbish_are_damage(content, workdir, caplog):
    (workdir / "checkpoints" / "6" / checksums.FILE).write_bytes(content)
    assert Checkpoints(workdir, keep=5).latest_step() == 4
    assert f"6 is damaged, not used: {checksums.FILE}" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", None])
def test_a_record_that_is_rubbish_is_damage_even_without_checksums(
    content, workdir, caplog
):
    folder = workdir / "checkpoints" / "6"
    (folder / checksums.FILE).unlink()
    if content is not None:
        (folder / "meta" / "metadata").write_bytes(content)
    checkpoints = Checkpoints(workdir, keep=5, best=BEST)
    assert checkpoints.latest_step() == (6 if content == b"{}" else 4)
    assert content == b"{}" or f"not used: {checksums.FILE}" in caplog.text


def test_a_checkpoint_of_before_there_were_checksums_is_used(workdir):
    folder = workdir / "checkpoints" / "6"
    (folder / checksums.FILE).unlink()
    path = folder / "meta" / "metadata"
    record = json.loads(path.read_text())
    assert record.pop("checksums")
    path.write_text(json.dumps(record))
    checkpoints = Checkpoints(workdir, keep=5)
    assert_whole(checkpoints, checkpoints.latest_step())
    assert checkpoints.latest_step() == 6


@pytest.mark.parametrize("content", [b"", b'{"score": 9', b'{"score": 9}'])
@pytest.mark.parametrize("step", [2, 6])
def test_a_damaged_record_stands_in_the_way_of_no_other_checkpoint(
    content, step, workdir, caplog
):
    (workdir / "checkpoints" / str(step) / "meta" / "metadata").write_bytes(content)
    checkpoints = Checkpoints(workdir, keep=2, best=BEST)
    assert checkpoints.find("best") == 4
    assert checkpoints.find("4") == 4
    assert f"checkpoints/{step} is damaged: meta/metadata is not what" in caplog.text
    checkpoints.save(8, items(8), {}, {"eval/loss": 9.0})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 6, 8]
    checkpoints.close()


def test_the_first_of_equally_good_checkpoints_is_the_best_and_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best="a")
    for step, number in ((1, 1.0), (2, 5.0), (3, 5.0), (4, float("nan")), (5, 2.0)):
        checkpoints.save(step, {"x": {"a": jnp.ones(1)}}, {}, {"a": number})
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=None)
    assert (again.steps(), again.find("best")) == ([2, 5], 2)


def test_what_a_machine_cannot_load_is_no_damage(workdir, monkeypatch):
    checkpoints = Checkpoints(workdir, keep=5)
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    def short_of_memory(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._manager, "restore", short_of_memory)
    with pytest.raises(RuntimeError) as caught:
        checkpoints.restore(6, items(0))
    assert caught.value is error
    assert "checkpoints/6 is whole" in error.__notes__[0]


def test_what_was_damaged_after_it_was_looked_for_is_damage(workdir):
    checkpoints = Checkpoints(workdir, keep=5)
    assert checkpoints.latest_step() == 6
    shutil.rmtree(workdir / "checkpoints" / "6" / "model" / "d")
    with pytest.raises(DamagedError, match=r"checkpoints/6 is damaged: model/d.*miss"):
        checkpoints.restore(6, items(0))
