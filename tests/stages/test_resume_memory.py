"""A resume holds one state: what fits when a run starts also fits when it goes on."""

import gc

import jax
import pytest

from rlhf_jax.training.checkpoints import Checkpoints
from tests.stages.test_stages import TRAINED, run


class Stop(Exception):
    pass


def live_bytes() -> int:
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.parametrize("stage", TRAINED)
def test_a_resume_never_holds_two_states(stage, stage_config, tmp_path, monkeypatch):
    """Measured when the state has just been restored, against its own size; the frozen
    models of PPO are a third of it."""
    config = stage_config(stage, save_every=1, eval_every=2, keep_checkpoints=3)
    save, restore, sizes = Checkpoints.save, Checkpoints.restore, {}

    def save_and_stop(self, step, items, meta, *numbers):
        save(self, step, items, meta, *numbers)
        self.wait()
        sizes["state"] = sum(x.nbytes for x in jax.tree.leaves(items))
        raise Stop

    def restore_and_weigh(self, step, like):
        items = restore(self, step, like)
        if self.folder.parent == tmp_path / "run":
            sizes["live"] = live_bytes() - before
            raise Stop
        return items

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            run(config, tmp_path / "run")
    before = live_bytes()
    monkeypatch.setattr(Checkpoints, "restore", restore_and_weigh)
    with pytest.raises(Stop):
        run(config, tmp_path / "run")
    assert sizes["state"] <= sizes["live"] < 1.5 * sizes["state"]
