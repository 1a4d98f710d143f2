import gc
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import ppo
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.sharding import shard_parameters
from rlhf_jax.training import checksums, model_records, weights
from rlhf_jax.training.checkpoints import (
    Checkpoints,
    DamagedError,
    flatten,
    has_checkpoint,
)
from rlhf_jax.training.optimizers import adamw
from rlhf_jax.training.state import TrainState, from_items, to_items


def small_model(seed=0, **changes):
    return ChatGLM(preset("micro", **changes), rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def state():
    optimizer = adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    return TrainState.create(small_model(), optimizer)


def save(folder, state, step=3, **meta):
    checkpoints = Checkpoints(folder, keep=2)
    models = {"model": model_records.describe(state.model)}
    checkpoints.save(step, to_items(state), {"models": models} | meta)
    checkpoints.close()


def equal(a, b) -> bool:
    same = jax.tree.map(lambda x, y: bool((x == y).all()) and x.dtype == y.dtype, a, b)
    return all(jax.tree.leaves(same))


def test_a_state_comes_back_bit_for_bit(tmp_path, state):
    save(tmp_path, state, note="x")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() == 3
    assert checkpoints.meta(3)["note"] == "x"
    like = jax.tree.map(jnp.zeros_like, state)
    assert equal(from_items(checkpoints.restore(3, to_items(like))), state)


def live_bytes() -> int:
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def size_of(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_shapes_are_enough_to_restore_into_and_nothing_is_held_twice(tmp_path, state):
    save(tmp_path, state)
    like = shard_parameters(jax.eval_shape(lambda: to_items(state)))
    before = live_bytes()
    restored = Checkpoints(tmp_path, keep=2).restore(3, like)
    assert live_bytes() - before == size_of(restored) == size_of(to_items(state))
    assert equal(from_items(restored), state)


def test_a_model_is_loaded_without_making_another_first(tmp_path, state, monkeypatch):
    save(tmp_path, state)
    before, restore, found = live_bytes(), Checkpoints.restore, []

    def watched(*args):
        found.append(live_bytes() - before)
        items = restore(*args)
        found.append(live_bytes() - before)
        return items

    monkeypatch.setattr(Checkpoints, "restore", watched)
    how = weights.computation(ppo.get_config("tiny"))
    key = jax.random.key(0)
    policy = weights.load_policy(
        str(tmp_path), model="micro", num_tokens=8, key=key, **how
    )
    assert found[0] <= 64 and found[1] - found[0] == size_of(policy)
    assert live_bytes() - before <= size_of(policy) + 64  # and the key


def test_names_in_a_checkpoint_are_readable(state):
    names = flatten(state.model)
    assert {"embedding", "blocks.attention.query.kernel"} <= set(names)
    assert not any(name.endswith(".value") for name in names)


def test_weights_load_alone_without_a_config(tmp_path, state):
    save(tmp_path, state)
    model = weights.load_model(tmp_path)
    assert isinstance(model, ChatGLM)
    assert model.config == state.model.config
    assert equal(model, state.model)


def test_weights_load_in_another_dtype(tmp_path, state):
    save(tmp_path, state)
    model = weights.load_model(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
    eight = {"dtype": "bfloat16", "param_dtype": "bfloat16", "quantised": True}
    assert equal(weights.load_model(tmp_path, **eight), jax.jit(quantise)(model))


def test_a_reward_model_loads_as_one_with_its_offset(tmp_path):
    model = ScoreModel(small_model(), rngs=nnx.Rngs(1))
    model.offset[...] = jnp.float32(2.5)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(
        1, {"model": model}, {"models": {"model": model_records.describe(model)}}
    )
    checkpoints.close()
    loaded = weights.load_model(tmp_path)
    assert isinstance(loaded, ScoreModel)
    assert loaded.offset[...] == 2.5
    with pytest.raises(ValueError, match="is a reward model, not a language model"):
        weights.load_policy(
            str(tmp_path),
            model="micro",
            num_tokens=8,
            key=jax.random.key(0),
            dtype="float32",
            param_dtype="float32",
        )


def test_only_the_newest_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": {"a": jnp.ones(2) * step}}, {})
    checkpoints.close()
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert {"2", "3"} <= names
    assert "1" not in names


def test_another_shape_or_name_is_refused_with_both_sides(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"x": {"a": jnp.ones(2), "b": jnp.ones(3)}}, {})
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"a: saved \(2,\), expected \(4,\)"):
        checkpoints.restore(1, {"x": {"a": jnp.ones(4), "b": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r'(?s)missing: .*"c".*not expected: .*"b"'):
        checkpoints.restore(1, {"x": {"a": jnp.ones(2), "c": jnp.ones(3)}})
    with pytest.raises(ValueError, match="has no 'y'"):
        checkpoints.restore(1, {"y": {"a": jnp.ones(2)}})
    checkpoints.close()


def test_a_save_that_was_cut_off_is_not_taken_for_a_checkpoint(tmp_path, state):
    save(tmp_path, state)
    unfinished = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "half").write_text("x")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() == 3
    checkpoints.close()


def test_a_save_that_is_being_written_is_not_taken_for_a_damaged_one(
    tmp_path, monkeypatch
):
    write = checksums.write

    def write_slowly(folder):
        time.sleep(0.5)
        write(folder)

    monkeypatch.setattr(checksums, "write", write_slowly)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"model": {"x": jnp.ones(2)}}, {})
    assert checkpoints.latest_step() == 1
    checkpoints.close()


def test_a_run_cut_off_in_this_program_finishes_its_save_before_the_next_begins(
    tmp_path, state, monkeypatch
):
    """Ctrl-C in a notebook, and the cell again: the first run still saves."""
    write, begun = checksums.write, threading.Event()

    def slow_write(folder):
        begun.set()
        time.sleep(0.5)
        write(folder)

    monkeypatch.setattr(checksums, "write", slow_write)
    first = Checkpoints(tmp_path, keep=2)
    first.save(3, to_items(state), {})
    assert begun.wait(timeout=60)
    second = Checkpoints(tmp_path, keep=2)
    assert second.latest_step() == 3
    second.save(4, to_items(state), {})
    second.close()
    assert second.steps() == [3, 4]


def test_a_folder_without_a_model_says_so(tmp_path):
    assert not has_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        weights.load_model(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path, state):
    save(tmp_path, state)
    with pytest.raises(ValueError, match="The tokenizer has 5000 tokens, but"):
        weights.load_policy(
            str(tmp_path),
            model="micro",
            num_tokens=5000,
            key=jax.random.key(0),
            dtype="float32",
            param_dtype="float32",
        )


@pytest.fixture
def evaluated(tmp_path):
    """A workdir whose second of three checkpoints is the best."""
    checkpoints = Checkpoints(tmp_path, keep=3, best="-eval/loss")
    for step, loss in ((5, 3.0), (10, 1.0), (15, 2.0)):
        model = small_model(seed=step)
        meta = {"models": {"model": model_records.describe(model)}}
        checkpoints.save(step, {"model": model}, meta, {"eval/loss": loss})
    checkpoints.close()
    (tmp_path / "config.json").write_text('{"config": {"seed": 4}}')
    return tmp_path


@pytest.mark.parametrize(
    ("which", "step"),
    [("", 15), ("checkpoints/15", 15), ("checkpoints/5", 5), ("checkpoints/best", 10)],
)
def test_any_checkpoint_of_a_workdir_can_be_named(which, step, evaluated):
    folder = evaluated / which
    assert equal(weights.load_model(folder), small_model(seed=step))
    assert weights.fingerprint(str(folder)) == f"{evaluated} step {step} (seed 4)"


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(evaluated):
    with pytest.raises(ValueError, match=r"no checkpoint '6', only \[5, 10, 15\]"):
        weights.load_model(evaluated / "checkpoints" / "6")


def test_without_evaluations_there_is_no_best(tmp_path, state):
    save(tmp_path, state)
    with pytest.raises(ValueError, match=r"no checkpoint 'best', only \[3\]. SFT and"):
        weights.load_model(tmp_path / "checkpoints" / "best")


def test_a_damaged_checkpoint_that_was_asked_for_is_not_replaced_by_another(evaluated):
    next((evaluated / "checkpoints" / "10" / "model" / "d").iterdir()).unlink()
    with pytest.raises(DamagedError, match=r"checkpoints/10 is damaged: model/d"):
        weights.load_model(evaluated / "checkpoints" / "best")
