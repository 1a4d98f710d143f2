import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.batches import SFTBatch
from rlhf_jax.training import suspects
from rlhf_jax.training.metrics import Writer, read_metrics


def batch(seed=0):
    tokens = np.random.default_rng(seed).integers(0, 9, (2, 3))
    return SFTBatch(tokens, tokens > 2, tokens > 4)


def steady(writer, steps):
    noise = np.random.default_rng(0).normal(0, 0.1, steps)
    for step, x in enumerate(noise, start=1):
        writer.write(step, {"loss/sft": 2.0 + x}, {"batch": batch(step)})


def test_a_loss_far_above_the_last_ones_is_flagged_and_its_batch_kept(tmp_path):
    writer = Writer(tmp_path, 0, 3, 8.0)
    steady(writer, 30)
    writer.write(31, {"loss/sft": 4.0, "loss/policy": 1.0}, {"batch": batch(31)})
    writer.write(32, {"loss/sft": 2.0}, {"batch": batch(32)})
    writer.close()
    lines = read_metrics(tmp_path)
    assert [m["step"] for m in lines if "spike/loss/sft" in m] == [31]
    assert lines[30]["spike/loss/sft"] > 8
    assert [p.name for p in (tmp_path / "suspects").iterdir()] == ["step_000031.npz"]
    parts, record = suspects.load_batch(tmp_path / "suspects" / "step_000031.npz")
    np.testing.assert_array_equal(parts["batch"]["tokens"], batch(31).tokens)
    np.testing.assert_array_equal(parts["batch"]["loss_mask"], batch(31).loss_mask)
    assert record["step"] == 31
    assert "spike/loss/sft" in record["reason"]


def test_a_resumed_run_flags_what_an_uninterrupted_one_does(tmp_path):
    for folder in ("whole", "resumed"):
        writer = Writer(tmp_path / folder, 0, 3, 8.0)
        steady(writer, 30)
        if folder == "resumed":
            writer.close()
            writer = Writer(tmp_path / folder, 30, 3, 8.0)
        writer.write(31, {"loss/sft": 4.0})
        writer.close()
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "resumed")


def test_zero_flags_nothing_and_few_steps_are_no_measure(tmp_path):
    for zscore, steps in ((0.0, 30), (8.0, suspects.FEWEST - 1)):
        losses = suspects.Losses(zscore)
        for i in range(steps):
            losses.add({"loss/sft": 1.0 + 0.01 * (i % 2)})
        assert losses.add({"loss/sft": 100.0}) == {}


def test_a_spike_does_not_hide_the_next_one():
    losses = suspects.Losses(5.0)
    for i in range(30):
        losses.add({"loss/sft": 1.0 + 0.01 * (i % 2)})
    assert all(losses.add({"loss/sft": 9.0}) for _ in range(5))


def test_a_loss_that_stays_up_is_no_spike_for_ever():
    losses = suspects.Losses(5.0)
    rng = np.random.default_rng(0)
    for x in rng.normal(0, 0.1, 40):
        assert not losses.add({"loss/sft": x})
    risen = [bool(losses.add({"loss/sft": x})) for x in rng.normal(9, 0.1, 60)]
    assert risen == [True] * suspects.FEWEST + [False] * (60 - suspects.FEWEST)
    assert losses.add({"loss/sft": 20.0})


def test_a_run_keeps_its_first_suspects_and_no_more(tmp_path):
    for step in range(1, suspects.MOST + 1):
        assert suspects.save_batch(tmp_path, step, {"batch": batch()}, "x")
    assert suspects.save_batch(tmp_path, 99, {"batch": batch()}, "x") is None
    assert suspects.save_batch(tmp_path, 3, {"batch": batch(3)}, "again")
    kept = sorted((tmp_path / "suspects").iterdir())
    assert len(kept) == suspects.MOST and kept[2].name == "step_000003.npz"
    assert suspects.load_batch(kept[2])[1]["reason"] == "again"


def test_the_batch_of_a_step_that_is_not_finite_is_kept(tmp_path):
    writer = Writer(tmp_path, 0, 3, 0.0)
    nan = jnp.float32(jnp.nan)
    writer.write(1, {"optim/grad_norm": nan, "loss/sft": 1.0}, {"batch": batch()})
    writer.write(2, {"optim/grad_norm": 1.0, "loss/sft": 1.0}, {"batch": batch()})
    writer.close()
    (path,) = (tmp_path / "suspects").iterdir()
    assert suspects.load_batch(path)[1] == {
        "step": 1,
        "reason": "optim/grad_norm nan",
    }


def test_what_is_no_saved_batch_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK rubbish")
    with pytest.raises(ValueError, match="is not a batch that a run saved"):
        suspects.load_batch(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="is not a batch that a run saved"):
        suspects.load_batch(path)
    np.savez(path, record=np.array([{"a": 1}], dtype=object))  # a pickle inside
    with pytest.raises(ValueError, match="is not a batch that a run saved"):
        suspects.load_batch(path)
