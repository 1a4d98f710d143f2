"""Grouped attention against jax's own."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from rlhf_jax.models import attention, chatglm
from rlhf_jax.models.attention import (
    attend,
    block_attend,
    causal,
    cudnn_refusal,
    library_attend,
    visible,
)
from rlhf_jax.parallel.mesh import make_mesh
from tests.models.families import FAMILIES, random_model, random_tokens, with_fields


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_equals_the_library_forward_and_backward(kv_heads):
    keys = jax.random.split(jax.random.key(0), 4)
    queries = jax.random.normal(keys[0], (2, 5, 4, 8))
    k, v = (jax.random.normal(key, (2, 7, kv_heads, 8)) for key in keys[1:3])
    seen = jax.random.bernoulli(keys[3], 0.5, (2, 5, 7)).at[:, :, 0].set(True)

    @jax.jit
    @jax.value_and_grad
    def ours(arrays):
        q, k, v = arrays
        out = attend(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), seen)
        return (out**2).sum()

    @jax.jit
    @jax.value_and_grad
    def theirs(arrays):
        q, k, v = arrays
        k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
        return (library_attend(q, k, v, seen, implementation="xla") ** 2).sum()

    for a, b in zip(
        jax.tree.leaves(ours((queries, k, v))),
        jax.tree.leaves(theirs((queries, k, v))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_gets_the_mean_of_the_values():
    """Any finite answer would do: it only must not be NaN."""
    ones = jnp.ones((1, 1, 2, 4))
    values = jnp.arange(12.0).reshape(1, 1, 3, 4).repeat(2, 1)
    keys = jnp.ones((1, 2, 4, 3))
    out = attend(ones, keys, values, jnp.zeros((1, 1, 3), bool))
    np.testing.assert_allclose(out[0, 0, 0], [4, 5, 6, 7], rtol=1e-6)


@pytest.mark.parametrize("segments", [None, [0] * 70 + [1] * 50 + [2] * 50])
def test_blocks_that_read_only_what_they_may_see_change_nothing(segments):
    """Three blocks of 64, the last cut short; one straddles two responses."""
    length = 170
    segments = None if segments is None else np.array(segments)
    possible = causal(length, segments)
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = (
        jax.random.normal(keys[0], (2, length, 4, 8)),
        jax.random.normal(keys[1], (2, 2, 8, length)),
        jax.random.normal(keys[2], (2, 2, length, 8)),
    )
    mask = jnp.ones((2, length), bool).at[0, :9].set(False).at[1, -3:].set(False)
    seen = visible(
        mask,
        query_slots=jnp.arange(length),
        segments=None if segments is None else jnp.broadcast_to(segments, mask.shape),
    )
    real = mask[:, :, None, None]

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(arrays, attend):
        return jnp.sum(jnp.where(real, attend(*arrays, seen), 0.0) ** 2)

    blocks = functools.partial(block_attend, possible=possible)
    expected, got = loss(arrays, attend), loss(arrays, blocks)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_block_reads_no_key_that_it_cannot_see():
    """A key that none may see can be NaN: nothing reads it."""
    segments = np.array([0] * 64 + [1] * 64 + [2] * 64)
    queries = jnp.ones((1, 192, 2, 4))
    keys, values = jnp.ones((1, 1, 4, 192)), jnp.ones((1, 1, 192, 4))
    keys = keys.at[..., 64:128].set(jnp.nan)
    possible = causal(192, segments)
    out = block_attend(
        queries, keys, values, jnp.asarray(possible)[None], possible=possible
    )
    assert np.isfinite(out[:, 128:]).all() and np.isnan(out[:, 64:128]).all()


@pytest.fixture
def fake_cudnn(monkeypatch):
    """jax's kernel for GPUs as this machine can run it, with limits of its own; the
    list has the query tokens of every call."""
    calls = []

    def kernel(queries, keys, values, seen):
        if queries.dtype != jnp.bfloat16:
            raise NotImplementedError(f"Q must be bf16, got {queries.dtype}")
        if queries.shape[1] % 2:
            raise NotImplementedError(f"Unsupported sequence length Q {queries.shape}")
        calls.append(queries.shape[1])
        return library_attend(queries, keys, values, seen, implementation="xla")

    monkeypatch.setattr(attention, "cudnn_attend", kernel)
    monkeypatch.setattr(chatglm, "cudnn_attend", kernel)
    return calls


@pytest.mark.parametrize(
    ("length", "dtype", "reason"),
    [
        (8, "bfloat16", ""),
        (7, "bfloat16", "Unsupported sequence length"),
        (8, "float32", "Q must be bf16, got float32"),
    ],
)
def test_xla_stands_in_where_cudnn_has_no_attention_and_says_so_once(
    length, dtype, reason, fake_cudnn, caplog, monkeypatch
):
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    model = random_model(FAMILIES["v2"])
    tokens = jnp.asarray(random_tokens(model.config, (2, length)))
    mask = jnp.arange(length)[None] >= jnp.array([[3], [0]])
    fields = {"dtype": dtype, "param_dtype": dtype}
    exact, *others = (
        with_fields(model, attention=kernel, **fields)(tokens, mask)[mask]
        for kernel in ("xla", "cudnn", "cudnn")
    )
    for logits in others:
        np.testing.assert_allclose(exact, logits, atol=0.1)
    assert bool(fake_cudnn) == (not reason)
    warnings = [r.getMessage() for r in caplog.records if "cudnn" in r.getMessage()]
    assert len(warnings) == bool(reason)
    assert all(reason in text for text in warnings)


def test_single_queries_are_not_for_cudnn(fake_cudnn, caplog, monkeypatch):
    """A step of decoding would bring the cache into another order for cuDNN."""
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    model = with_fields(
        random_model(FAMILIES["v2"]), attention="cudnn", dtype="bfloat16"
    )
    tokens = jnp.asarray(random_tokens(model.config, (2, 8)))
    mask = jnp.ones(tokens.shape, bool)
    _, cache, _ = model.decode(tokens, mask, model.init_cache(2, 10))
    read = len(fake_cudnn)
    model.decode(tokens[:, :1], mask[:, :1], cache)
    assert set(fake_cudnn[:read]) == {8} and len(fake_cudnn) == read
    assert not caplog.records


@pytest.mark.devices(8)
def test_heads_that_the_mesh_does_not_divide_are_not_for_cudnn(fake_cudnn):
    """The kernel wants queries and keys split alike."""
    sizes = {"rows": 2, "queries": 8, "slots": 8}
    config = dataclasses.replace(FAMILIES["v2"], dtype="bfloat16")
    for tensor, refused in ((2, False), (4, True)):
        with jax.set_mesh(make_mesh((1, -1, tensor))):
            reason = cudnn_refusal(config, **sizes)
        assert ("num_kv_heads=2" in reason) == refused


@pytest.mark.parametrize(("version", "refused"), [("7.5", True), ("10.3", False)])
def test_old_gpus_have_no_cudnn_attention(version, refused, fake_cudnn, monkeypatch):
    gpu = types.SimpleNamespace(compute_capability=version)
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    config = dataclasses.replace(FAMILIES["v2"], dtype="bfloat16")
    reason = cudnn_refusal(config, rows=2, queries=8, slots=8)
    assert (f"compute capability {version}" in reason) == refused


@pytest.mark.gpu
@pytest.mark.parametrize("side", ["left", "right"])
def test_cudnn_equals_xla_in_bfloat16(side, request, caplog, monkeypatch):
    """Logits and gradients; without a GPU jax's own attention stands in for cuDNN's."""
    if jax.default_backend() != "gpu":
        request.getfixturevalue("fake_cudnn")
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    config = dataclasses.replace(FAMILIES["v2"], head_dim=64, context_length=128)
    model = random_model(config)
    tokens = jnp.asarray(random_tokens(config, (2, 128)))
    places, padded = jnp.arange(128)[None], jnp.array([[0], [50]])
    mask = places >= padded if side == "left" else places < 128 - padded

    @jax.jit
    def run(model):
        def loss(model):
            logits = jnp.where(mask[..., None], model(tokens, mask), 0.0)
            return jnp.square(logits).mean(), logits

        return jax.grad(loss, has_aux=True)(model)

    results = [
        run(with_fields(model, attention=kernel, dtype="bfloat16"))
        for kernel in ("xla", "cudnn")
    ]
    assert not caplog.records  # cuDNN has this attention
    leaves = (jax.tree.leaves(jax.tree.map(np.asarray, x)) for x in results)
    for expected, got in zip(*leaves, strict=True):
        size = np.linalg.norm(expected)
        # The gradient of the keys' bias is 0 but for rounding.
        assert np.linalg.norm(got - expected) < 0.05 * size + 1e-3
