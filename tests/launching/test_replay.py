import importlib

import numpy as np
import pytest
from flax import nnx

from rlhf_jax.batches import Experience, PackedPairs, PreferenceBatch, SFTBatch
from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer
from rlhf_jax.launching import replay
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.training import model_records, suspects
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.workdir import open_workdir

B, P, R = 3, 4, 4
RNG = np.random.default_rng(0)


def ids(*shape) -> np.ndarray:
    return RNG.integers(5, 200, shape).astype(np.int32)


def real(*shape) -> np.ndarray:
    return np.ones(shape, bool)


SFT = SFTBatch(ids(B, P + R), real(B, P + R), np.arange(P + R) >= real(B, 1) * P)
NAN_IN_ROW_1 = np.array([[0, 0], [np.nan, 0], [0, 0]], np.float32)
BATCHES = {
    "sft": {"batch": SFT},
    "reward": {
        "batch": PackedPairs(
            ids(B, P + 2 * R),
            real(B, P + 2 * R),
            np.repeat([[0] * P + [1] * R + [2] * R], B, axis=0).astype(np.int32),
            np.repeat([[P + R - 1, P + 2 * R - 1]], B, axis=0).astype(np.int32),
            real(B),
        )
    },
    "dpo": {
        "batch": PreferenceBatch(
            ids(B, P), real(B, P), ids(B, 2, R), real(B, 2, R), real(B)
        ),
        "ref_logprobs": NAN_IN_ROW_1,
        "sft": SFT,
    },
    "ppo": {
        "batch": Experience(
            ids(B, P),
            real(B, P),
            ids(B, R),
            real(B, R),
            np.full((B, R), -5.0, np.float32),
            np.full((B, R), -5.0, np.float32),
            np.tile(NAN_IN_ROW_1, 2),
            None,
            None,
            None,
        ),
        "sft": SFTBatch(*(x[None] for x in (SFT.tokens, SFT.mask, SFT.loss_mask))),
    },
}


@pytest.fixture
def workdir(request, tmp_path):
    """A run of a stage with a checkpoint and a suspect batch."""
    stage = request.param
    config = importlib.import_module(f"configs.{stage}").get_config()
    open_workdir(tmp_path, config)
    train_tokenizer(["a b c"] * 9, 300, tmp_path / "tokenizer")
    model = ChatGLM(preset("micro"), rngs=nnx.Rngs(0))
    if stage == "reward":
        model = ScoreModel(model, rngs=nnx.Rngs(1))
    checkpoints = Checkpoints(tmp_path, keep=1)
    meta = {"models": {"model": model_records.describe(model)}}
    checkpoints.save(7, {"model": model}, meta)
    checkpoints.close()
    suspects.save_batch(tmp_path, 7, BATCHES[stage], "loss/x nan")
    return tmp_path


SLOW = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("reward", "ppo")]


@pytest.mark.parametrize("workdir", ["sft", SLOW[0]], indirect=True)
def test_a_batch_that_is_in_order_has_the_loss_of_its_rows(workdir):
    found = replay.replay(workdir, workdir / "suspects" / "step_000007.npz")
    assert (found["step"], found["reason"]) == (7, "loss/x nan")
    assert found["loss"] == pytest.approx(np.mean(found["rows"]), rel=1e-4)
    assert found["not finite"] == []
    assert found["grad_norm"] > 0
    assert len(found["texts"]) == B


@pytest.mark.parametrize("workdir", ["dpo", SLOW[1]], indirect=True)
def test_the_row_that_is_not_finite_is_found(workdir, capsys):
    found = replay.replay(workdir, workdir / "suspects" / "step_000007.npz")
    assert np.isnan(found["loss"])
    assert np.isfinite(found["rows"]).tolist() == [True, False, True]
    assert "embedding" in found["not finite"]
    replay.show(found)
    shown = capsys.readouterr().out
    assert shown.index("\n1 ") < shown.index("\n0 ")
    assert "{'" not in shown


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: it has no config\.json"):
        replay.replay(tmp_path, tmp_path / "x.npz")


@pytest.mark.parametrize("workdir", ["sft"], indirect=True)
def test_the_newest_batch_is_found(workdir):
    suspects.save_batch(workdir, 9, BATCHES["sft"], "loss/x nan")
    assert replay.newest_batch(workdir).name == "step_000009.npz"
    with pytest.raises(ValueError, match=r"has kept no batch in suspects/"):
        replay.newest_batch(workdir / "suspects")
