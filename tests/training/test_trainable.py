"""Training a part of the parameters: the others stay, and cost nothing."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import reward
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.layers import trained_part
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import create, shapes_of
from rlhf_jax.training import options
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.optimizers import adamw, sgd
from rlhf_jax.training.state import TrainState, from_items, optimizer_step, to_items
from tests.parallel.test_fused_update import (
    dialogues,
    language_loss,
    loss_of_two_batches,
    score_loss,
)
from tests.trees import assert_trees_close

LAST = r"blocks\.[23]\.|final_norm|head"
# The epsilon keeps rounding errors of tiny gradients from becoming steps of full size.
ADAMW = adamw(1e-2, b1=0.9, b2=0.95, eps=1e-3, weight_decay=0.1, clip_norm=0.1)
PATTERNS = {
    LAST: ("blocks.2", "blocks.3", "final_norm", "head"),
    r"final_norm|head": ("final_norm", "head"),
    r"attention\.query": tuple(f"blocks.{i}.attention.query" for i in range(4)),
    r"blocks\.3\.mlp": ("blocks.3.mlp",),
    r"embedding|blocks\.3\.": ("embedding", "blocks.3"),
    r".": ("",),
}


def model(kind="ChatGLM", **changes):
    config = preset(
        "micro", vocab_size=64, qkv_bias=False, **{"num_layers": 4} | changes
    )
    policy = ChatGLM(config, rngs=nnx.Rngs(0))
    return ScoreModel(policy, rngs=nnx.Rngs(1)) if kind == "ScoreModel" else policy


def parameters(tree) -> dict[str, np.ndarray]:
    """Name with the layer's number -> values."""
    out = {}
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = name.removesuffix(".value").removeprefix("backbone.")
        if name.startswith("blocks."):
            for i, layer in enumerate(np.asarray(x)):
                out[name.replace("blocks.", f"blocks.{i}.")] = layer
        else:
            out[name] = np.asarray(x)
    return out


def train(start, optimizer, loss_fn=language_loss, batches=None, microbatches=1):
    @jax.jit
    def step(state, batch):
        return optimizer_step(
            loss_fn, state, batch, optimizer=optimizer, microbatches=microbatches
        )

    state = TrainState.create(start, optimizer)
    for batch in batches or [dialogues(seed=i) for i in range(3)]:
        state, metrics = step(state, batch)
    return state, metrics


@functools.cache
def after_full_training(scan_layers: bool) -> dict[str, np.ndarray]:
    plain = sgd(1.0, clip_norm=0.0)
    start = model(scan_layers=scan_layers)
    return parameters(train(start, plain, batches=[dialogues()])[0].model)


@pytest.mark.parametrize(
    ("pattern", "fused", "scan_layers"),
    [(pattern, False, False) for pattern in PATTERNS]
    + [(pattern, False, True) for pattern in PATTERNS if pattern != "."]
    + [(pattern, True, True) for pattern in PATTERNS if pattern != "."],
)
def test_what_the_pattern_names_has_the_gradient_of_full_training(
    pattern, fused, scan_layers
):
    """One step of plain descent without clipping shows the gradient. All the rest stays
    equal to the bit."""
    start = model(scan_layers=scan_layers)
    plain = dataclasses.replace(sgd(1.0, clip_norm=0.0), trainable=pattern, fused=fused)
    before = parameters(start)
    after = parameters(train(start, plain, batches=[dialogues()])[0].model)
    full = after_full_training(scan_layers)
    for name, x in before.items():
        if name.startswith(PATTERNS[pattern]):
            expected = x - full[name]
            assert np.abs(expected).max() > 0, name
            np.testing.assert_allclose(
                x - after[name], expected, rtol=1e-4, atol=2e-6, err_msg=name
            )
        else:
            np.testing.assert_array_equal(x, after[name], err_msg=name)


def test_weights_that_are_not_trained_do_not_decay():
    start = model()
    optimizer = dataclasses.replace(ADAMW, trainable=LAST)
    before, after = parameters(start), parameters(train(start, optimizer)[0].model)
    for name, x in before.items():
        is_trained = name.startswith(PATTERNS[LAST])
        assert np.array_equal(x, after[name]) != is_trained, name


@pytest.mark.parametrize(
    ("kind", "loss_fn", "clip", "pattern"),
    [
        ("ChatGLM", loss_of_two_batches, "global", LAST),
        ("ChatGLM", loss_of_two_batches, "per_layer", r"embedding|blocks\.3\."),
        ("ScoreModel", score_loss, "global", r"embedding|blocks\.3\."),
        ("ScoreModel", score_loss, "per_layer", LAST),
    ],
)
def test_the_fused_update_of_a_part_is_the_ordinary_one(kind, loss_fn, clip, pattern):
    """The norm that clips is that of the trained part."""
    batches = [dialogues(seed=i) for i in range(3)]
    if loss_fn is loss_of_two_batches:
        batches = [(x, dialogues(width=8, seed=9)) for x in batches]
    optimizer = dataclasses.replace(ADAMW, trainable=pattern, clip=clip)
    fused = dataclasses.replace(optimizer, fused=True)
    start = model(kind, scan_layers=True)
    assert_trees_close(
        train(start, fused, loss_fn, batches),
        train(start, optimizer, loss_fn, batches),
        rtol=1e-4,
        atol=2e-6,
    )


def test_the_norm_is_of_the_trained_part():
    start, batch = model(), jax.tree.map(jnp.asarray, dialogues())
    optimizer = dataclasses.replace(ADAMW, trainable=LAST)
    _, metrics = train(start, optimizer, batches=[batch])
    _, _, gradients = value_and_grad(language_loss, start, batch, microbatches=1)
    squares = sum(
        float(np.square(x).sum())
        for name, x in parameters(gradients).items()
        if name.startswith(PATTERNS[LAST])
    )
    np.testing.assert_allclose(
        metrics["optim/grad_norm"].value(), np.sqrt(squares), rtol=1e-5
    )


def test_moments_are_those_of_the_trained_parameters():
    start = model()
    optimizer = dataclasses.replace(ADAMW, trainable=LAST)
    trained = sum(
        x.size
        for name, x in parameters(start).items()
        if name.startswith(PATTERNS[LAST])
    )
    moments = [x for x in jax.tree.leaves(optimizer.init(start)) if x.ndim > 1]
    vectors = [x for x in jax.tree.leaves(optimizer.init(start)) if x.ndim == 1]
    layers, rest = trained_part(start, LAST)
    assert sum(x.size for x in jax.tree.leaves((layers, rest))) == trained
    count = sum(x.size for x in jax.tree.leaves((moments, vectors)))
    # Adam's two moments, and a count of steps for each layer.
    assert count == 2 * trained + 2
    assert set(optimizer.init(start)["rest"]) == {"final_norm.scale", "head.kernel"}


def program(pattern: str, **changes) -> str:
    """The computation of one step, before any compiler has simplified it."""
    start = model(num_layers=8, **changes)
    optimizer = dataclasses.replace(sgd(1.0, clip_norm=0.0), trainable=pattern)

    def step(state, batch):
        return optimizer_step(
            language_loss, state, batch, optimizer=optimizer, microbatches=1
        )

    return str(jax.make_jaxpr(step)(TrainState.create(start, optimizer), dialogues()))


def test_the_backward_pass_ends_at_the_lowest_trained_layer():
    """Each trained layer has the products of its backward pass; a frozen one has
    none."""
    names = (
        "head",
        r"blocks\.7\.|head",
        r"blocks\.[67]\.|head",
        r"blocks\.[5-7]\.|head",
    )
    none, one, two, three = (program(x).count("dot_general") for x in names)
    assert none < one < two < three < program("").count("dot_general")
    assert three - two == two - one


def test_a_loop_over_layers_ends_there_too():
    def lengths(pattern):
        loops = program(pattern, scan_layers=True).split("scan[")[1:]
        return [int(re.search(r"length=(\d+)", loop).group(1)) for loop in loops]

    assert lengths("") == [8, 8]  # forward, backward
    assert lengths(r"blocks\.[67]\.|head") == [6, 2, 2]
    assert lengths("head") == [8]


def test_parts_of_a_batch_give_the_same():
    start = model()
    optimizer = dataclasses.replace(ADAMW, trainable=LAST)
    whole, parts = (
        train(start, optimizer, score_loss_sum, microbatches=x)[0] for x in (1, 2)
    )
    assert_trees_close(parts, whole, rtol=1e-4, atol=2e-6)


def score_loss_sum(policy, batch):
    """A loss whose parts add up."""
    loss, metrics = language_loss(policy, batch)
    count = metrics["loss"].count
    return loss * count / 24, metrics


@pytest.mark.devices(4)
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_mesh(fused):
    """The slices of stacked parameters keep their layout."""
    optimizer = dataclasses.replace(ADAMW, trainable=LAST, fused=fused)
    expected = train(model(scan_layers=True), optimizer)
    with jax.set_mesh(make_mesh((1, 2, 2), devices=jax.devices()[:4])):
        start = create(lambda: model(scan_layers=True))
        got = train(start, optimizer)
        kernel = got[0].opt_state["layers"]
        specs = {x.sharding.spec for x in jax.tree.leaves(kernel) if x.ndim > 2}
        assert any("fsdp" in str(spec) for spec in specs)
    got, expected = jax.tree.map(np.asarray, (got, expected))
    assert_trees_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "lm_head",
            r"trainable='lm_head' matches no parameter; there are: blocks\.0\.\.3",
        ),
        (r"blocks\.0\.", r"matches blocks\S* of the layers \[0\] of 4: .* last"),
        (
            r"blocks\.[02]\.mlp|blocks\.3",
            r"matches blocks\S* of the layers \[0, 2, 3\]",
        ),
        (r"blocks\.3\.|query", r"matches blocks.attention.query.kernel of the layers"),
    ],
)
def test_a_wrong_pattern(pattern, message):
    with pytest.raises(ValueError, match=message):
        TrainState.create(model(), dataclasses.replace(ADAMW, trainable=pattern))


def test_training_goes_on_from_a_checkpoint(tmp_path):
    optimizer = dataclasses.replace(ADAMW, trainable=LAST)
    batches = [dialogues(seed=i) for i in range(3)]
    whole, _ = train(model(), optimizer, batches=batches)
    first, _ = train(model(), optimizer, batches=batches[:1])
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, to_items(first), {})
    checkpoints.close()
    make = functools.partial(TrainState.create, optimizer=optimizer)
    items = to_items(shapes_of(make, shapes_of(model)))
    state = from_items(Checkpoints(tmp_path, keep=1).restore(1, items))

    @jax.jit
    def step(state, batch):
        return optimizer_step(
            language_loss, state, batch, optimizer=optimizer, microbatches=1
        )

    for batch in batches[1:]:
        state, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.mark.devices(2)
def test_options_that_cannot_be():
    config = reward.get_config("tiny")
    config.optimizer.trainable = "("
    with pytest.raises(ValueError, match=r"config.optimizer.trainable='\(' is not a"):
        options.check(config)
    config.optimizer.trainable = "head"
    options.check(config)
    with (
        jax.set_mesh(make_mesh((1, 1, 1, 2), devices=jax.devices()[:2])),
        pytest.raises(ValueError, match=r"optimizer.trainable leaves"),
    ):
        options.fused_updates(config)
