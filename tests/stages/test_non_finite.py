"""Losses that are not finite reach no parameter, leave their batch, and stop a run that
they do not let go of."""

import jax
import numpy as np
import pytest

from rlhf_jax.stages import ppo, sft
from rlhf_jax.training import suspects
from rlhf_jax.training.metrics import NonFiniteError, read_metrics
from rlhf_jax.training.weights import load_model


def parameters(workdir, step: int, item="model") -> list:
    return jax.tree.leaves(load_model(workdir / f"checkpoints/{step}", item=item))


def same(a: list, b: list) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def suspect_steps(workdir) -> list[str]:
    return sorted(path.stem for path in (workdir / suspects.FOLDER).iterdir())


def test_ppo_skips_an_iteration_that_is_not_finite_and_goes_on(
    stage_config, tmp_path, monkeypatch
):
    """The reference's answer to one prompt of the second of three has no score."""
    answer_scores, calls = ppo.answer_scores, []

    def with_a_hole(*args, **records):
        calls.append(args)
        scores = answer_scores(*args, **records).copy()
        if len(calls) == 2:
            scores[0] = np.nan
        return scores

    monkeypatch.setattr(ppo, "answer_scores", with_a_hole)
    config = stage_config(
        "ppo",
        total_steps=3,
        normalise_scores=True,
        eval_every=0,
        save_every=1,
        keep_checkpoints=3,
    )
    workdir = tmp_path / "run"
    ppo.run(config, str(workdir))

    lines = read_metrics(workdir)
    updates = config.ppo_epochs * config.minibatches
    assert [line["optim/skipped"] for line in lines] == [0, updates, 0]
    assert [line["loss/policy"] is None for line in lines] == [False, True, False]
    for item in ("model", "value"):
        first, second, third = (parameters(workdir, i, item) for i in (1, 2, 3))
        assert same(first, second)
        assert not same(second, third)
    assert suspect_steps(workdir) == ["step_000002"]
    batch, record = suspects.load_batch(workdir / "suspects/step_000002.npz")
    assert "loss/policy nan" in record["reason"]
    assert np.isnan(batch["batch"]["advantages"]).any()


def test_sft_that_has_diverged_stops_with_its_last_finite_parameters(
    stage_config, tmp_path
):
    config = stage_config(
        "sft",
        max_skipped_updates=3,
        eval_every=0,
        save_every=1,
        keep_checkpoints=3,
    )
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e15, 0
    workdir = tmp_path / "run"
    with pytest.raises(
        NonFiniteError,
        match=r"Step 4 of .*run: the gradient was not finite 3 times in a row; such "
        r"gradients are not applied\..*Lower optimizer.learning_rate.*replay\.py",
    ):
        sft.run(config, str(workdir))

    lines = read_metrics(workdir)
    assert [line["optim/skipped"] for line in lines] == [0, 1, 2, 3]
    first, second, third = (parameters(workdir, i) for i in (1, 2, 3))
    assert all(np.isfinite(x).all() for x in first)
    assert same(first, second)
    assert same(first, third)
    assert suspect_steps(workdir) == [f"step_00000{i}" for i in (2, 3, 4)]
    assert not (workdir / "summary.json").exists()
