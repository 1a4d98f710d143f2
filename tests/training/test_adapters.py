"""Training adapters: what is updated, how, and what it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.adapters import adapted, base_parts, own_part
from rlhf_jax.models.lora import LoRA
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.checkpoints import flatten
from rlhf_jax.training.optimizers import adamw
from rlhf_jax.training.state import compiled, first_state, optimizer_step
from tests.parallel.test_fused_update import dialogues, language_loss, score_loss
from tests.training.test_trainable import ADAMW, model, score_loss_sum, train
from tests.trees import assert_trees_close

LORA = LoRA(rank=4, alpha=8.0, maps="")


def adapters(kind="ChatGLM", lora=LORA, **changes):
    return adapted(model(kind, **changes), lora, key=jax.random.key(3))


@pytest.mark.parametrize(
    ("kind", "loss_fn", "scan_layers", "changes", "microbatches"),
    [
        ("ChatGLM", language_loss, True, {"fused": True}, 1),
        ("ScoreModel", score_loss, False, {"fused": True, "clip": "per_layer"}, 1),
        ("ChatGLM", score_loss_sum, True, {}, 2),
    ],
)
def test_fused_and_accumulated_updates_are_the_ordinary_one(
    kind, loss_fn, scan_layers, changes, microbatches
):
    start = adapters(kind, scan_layers=scan_layers)
    plain = dataclasses.replace(ADAMW, clip=changes.get("clip", "global"))
    other = dataclasses.replace(ADAMW, **changes)
    assert_trees_close(
        train(start, other, loss_fn, microbatches=microbatches)[0],
        train(start, plain, loss_fn)[0],
        rtol=1e-4,
        atol=2e-6,
    )


def test_the_base_is_neither_changed_nor_given_away():
    """The adapters' memory goes over to the new state, the base's does not."""
    start = adapters("ScoreModel", scan_layers=True)
    before = jax.tree.map(np.array, start)
    state = first_state(start, ADAMW)
    step = compiled(
        lambda state, batch: optimizer_step(
            score_loss, state, batch, optimizer=ADAMW, microbatches=1
        )
    )
    for seed in range(2):
        state, _ = step(state, dialogues(seed=seed))
    assert all(x.is_deleted() for x in jax.tree.leaves(own_part(start)))
    bases = [base_parts(x)[0] for x in (start, state)]
    assert all(bases[1][name] is x for name, x in bases[0].items())
    moved = {
        name
        for name, x in flatten(state.model).items()
        if not np.array_equal(x, flatten(before)[name])
    }
    names = flatten(own_part(start)).keys() - {"offset"}
    assert moved == names
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    own = sum(x.size for x in jax.tree.leaves(own_part(state.model)))
    assert moments <= 2 * own + 4 + 4  # Adam's two, and the counts of the layers


def test_the_backward_pass_keeps_no_copy_of_the_base():
    """No loop returns an array in the type of the base, which is int8 here."""
    start = adapters(scan_layers=True, remat="full", quantised=True)
    state = first_state(start, ADAMW)
    program = jax.make_jaxpr(
        lambda state, batch: optimizer_step(
            language_loss, state, batch, optimizer=ADAMW, microbatches=2
        )
    )(state, dialogues())
    loops = [x for x in inner_equations(program.jaxpr) if x.primitive.name == "scan"]
    assert len(loops) >= 3  # over microbatches, and over layers there and back
    for loop in loops:
        assert not [x for x in loop.outvars if x.aval.dtype == jnp.int8]
    assert all([x for x in loop.invars if x.aval.dtype == jnp.int8] for loop in loops)


def inner_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from inner_equations(inner)


def test_a_pattern_of_the_optimizer_trains_some_of_them():
    optimizer = dataclasses.replace(ADAMW, trainable=r"blocks\.3\.")
    start = adapters(scan_layers=True)
    state, _ = train(start, optimizer, batches=[dialogues()])
    old, new = flatten(start), flatten(state.model)
    for name in old:
        if not name.startswith("blocks.") or name.endswith("lora_a"):
            continue  # A of the first update has no gradient, for B is zero
        pairs = zip(old[name], new[name], strict=True)
        changed = [not np.array_equal(x, y) for x, y in pairs]
        assert changed == [False, False, False, name.endswith("lora_b")], name


def test_a_rank_as_large_as_the_width_trains_like_all_matrices():
    """A few sentences by heart, in as many steps, whichever way."""
    optimizer = adamw(5e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
    matrices = dataclasses.replace(optimizer, trainable=r"blocks.*kernel")
    batches = [dialogues(seed=1)] * 40

    def loss(start, optimizer):
        state, _ = train(start, optimizer, batches=batches)
        return float(evaluate(state.model, batches[0])[0])

    changes = {"num_layers": 2, "scan_layers": True}
    evaluate = jax.jit(language_loss)
    start = float(evaluate(model(**changes), batches[0])[0])
    fallen = start - loss(model(**changes), matrices)
    whole = dataclasses.replace(LORA, rank=32, alpha=32.0)
    assert start - loss(adapters(lora=whole, **changes), optimizer) == pytest.approx(
        fallen, rel=0.02
    )
    thin = dataclasses.replace(LORA, rank=1, alpha=1.0)
    assert start - loss(adapters(lora=thin, **changes), optimizer) < 0.7 * fallen


@pytest.mark.devices(8)
def test_on_a_mesh():
    expected, _ = train(adapters(scan_layers=True), ADAMW)
    with jax.set_mesh(make_mesh((2, 2, 2), devices=jax.devices()[:8])):
        got, _ = train(adapters(scan_layers=True), ADAMW)
    got, expected = jax.tree.map(np.asarray, (got, expected))
    assert_trees_close(got, expected, rtol=1e-3, atol=1e-5)
