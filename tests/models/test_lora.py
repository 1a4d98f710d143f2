"""Adapters of the linear maps: their product, their gradient, and merging."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models.adapters import adapted, base_parts, join, merged, own_part
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.layers import Linear
from rlhf_jax.models.lora import LoRA, equations, shapes
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import create
from rlhf_jax.training.checkpoints import flatten, path_name

LORA = LoRA(rank=4, alpha=8.0, maps="")
MAPS = {
    "btd,dnh->btnh": (6, 2, 4),
    "btd,dckh->btckh": (6, 2, 1, 4),
    "btnh,nhd->btd": (2, 4, 6),
    "btd,dcf->btcf": (6, 2, 5),
    "btf,fd->btd": (5, 6),
}
EXPERTS = {
    "family": "glm4_moe",
    "num_dense_layers": 1,
    "num_experts": 4,
    "expert_width": 16,
    "num_shared_experts": 1,
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 60)


def model(kind="ChatGLM", lora=LORA, **changes):
    """A model whose adapters are not zero, as after training."""
    config = preset("micro", vocab_size=64, **changes)
    policy = create(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    if kind == "ScoreModel":
        policy = ScoreModel(policy, rngs=nnx.Rngs(1))
    return stirred(adapted(policy, lora, key=jax.random.key(2)))


def stirred(tree):
    def stir(path, x):
        if "lora_b" not in jax.tree_util.keystr(path):
            return x
        return 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(stir, tree)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("equation", MAPS)
def test_the_gradient_in_float64(equation, rslora):
    """By finite differences, and by the chain rule from the gradient of the merged
    kernel. alpha / rank is 2, and alpha / sqrt(rank) is 4."""
    lora = dataclasses.replace(LORA, rslora=rslora)
    scale = 4.0 if rslora else 2.0
    with jax.enable_x64(True):
        config = dataclasses.replace(preset("micro"), dtype="float64")
        rng = np.random.default_rng(0)
        linear = Linear(
            equation, MAPS[equation], bias=None, std=1, config=config, rngs=nnx.Rngs(0)
        )
        linear.add_adapter(lora, key=jax.random.key(0))
        a, b = (rng.normal(size=s) for s in shapes(equation, MAPS[equation], 4))
        kernel = np.asarray(linear.kernel[...], np.float64)
        inputs, outputs = equation.split(",")[0], equation.split("->")[1]
        letters = equation.replace("->", ",").split(",")[1]
        axes = dict(zip(letters, kernel.shape, strict=True))
        axes |= {"b": 2, "t": 3}
        x = rng.normal(size=[axes[i] for i in inputs])
        weight = rng.normal(size=[axes[i] for i in outputs])

        def loss(a, b):
            parts = {"lora_a": a, "lora_b": b}
            changed = jax.tree_util.tree_map_with_path(
                lambda path, x: parts.get(path_name(path), x), linear
            )
            return (jnp.sin(changed(x)) * weight).sum()

        def merged_loss(kernel):
            return (jnp.sin(jnp.einsum(equation, x, kernel)) * weight).sum()

        _, _, product = equations(equation)
        whole = kernel + scale * np.einsum(product, a, b)
        np.testing.assert_allclose(loss(a, b), merged_loss(whole), rtol=1e-12)
        d_a, d_b = jax.grad(loss, (0, 1))(a, b)
        d_kernel = jax.grad(merged_loss)(whole)
        (left, out), right = product.split("->")[0].split(","), product.split("->")[1]
        chain_a = scale * np.einsum(f"{right},{out}->{left}", d_kernel, b)
        chain_b = scale * np.einsum(f"{right},{left}->{out}", d_kernel, a)
        np.testing.assert_allclose(d_a, chain_a, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(d_b, chain_b, rtol=1e-9, atol=1e-12)
        for direction in range(2):
            step_a, step_b = rng.normal(size=a.shape), rng.normal(size=b.shape)
            step = 1e-6
            ahead = loss(a + step * step_a, b + step * step_b)
            behind = loss(a - step * step_a, b - step * step_b)
            slope = (d_a * step_a).sum() + (d_b * step_b).sum()
            np.testing.assert_allclose(
                (ahead - behind) / (2 * step), slope, rtol=1e-6, err_msg=str(direction)
            )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ChatGLM", {}),
        ("ChatGLM", {"scan_layers": True, "tied": True}),
        ("ChatGLM", EXPERTS),
        ("ScoreModel", {"mlp": "gelu", "norm": "layer", "linear_bias": True}),
    ],
)
def test_merging_keeps_the_function(kind, changes):
    """The gradient of a block's adapter is by the chain rule that of the merged
    model."""
    adapter = model(kind, **changes)
    whole = jax.jit(merged)(adapter)
    assert whole.config.lora is None
    assert not [name for name in flatten(whole) if "lora" in name]

    def outputs(model):
        out = model(TOKENS)
        return (jnp.sin(out)).sum(), out

    grad = jax.jit(jax.value_and_grad(outputs, has_aux=True))
    (_, out), gradient = grad(adapter)
    (_, expected), d_whole = grad(whole)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    prefix = "" if kind == "ChatGLM" else "backbone."
    name = f"{prefix}blocks.mlp.{'shared.' if changes is EXPERTS else ''}down"
    b = flatten(adapter)[f"{name}.lora_b"]
    chain = 2.0 * jnp.einsum("lfd,lrd->lfr", flatten(d_whole)[f"{name}.kernel"], b)
    np.testing.assert_allclose(
        flatten(gradient)[f"{name}.lora_a"], chain, rtol=1e-3, atol=1e-5
    )


def test_at_the_start_nothing_changes():
    base = ChatGLM(preset("micro", vocab_size=64), rngs=nnx.Rngs(0))
    fresh = adapted(base, LORA, key=jax.random.key(2))
    np.testing.assert_array_equal(fresh(TOKENS), base(TOKENS))
    assert np.abs(model()(TOKENS) - base(TOKENS)).max() > 0.01
    a = flatten(fresh)["blocks.mlp.down.lora_a"]  # 48 inputs
    assert 0.9 / 48**0.5 < np.abs(a).max() <= 1 / 48**0.5
    assert not np.array_equal(a[0], a[1])  # each layer has its own


@pytest.mark.parametrize("scan_layers", [False, True])
def test_int8_below_adapters(scan_layers):
    """Merging rounds to int8 again."""
    base = ChatGLM(preset("micro", scan_layers=scan_layers), rngs=nnx.Rngs(0))
    adapter = stirred(adapted(quantise(base), LORA, key=jax.random.key(2)))
    near = stirred(adapted(base, LORA, key=jax.random.key(2)))
    whole = jax.jit(merged)(adapter)
    assert whole.blocks.mlp.up.kernel[...].dtype == jnp.int8
    np.testing.assert_allclose(adapter(TOKENS), near(TOKENS), atol=0.02)
    np.testing.assert_allclose(whole(TOKENS), near(TOKENS), atol=0.02)


def test_bfloat16():
    adapter = model(dtype="bfloat16", param_dtype="bfloat16")
    assert flatten(adapter)["blocks.mlp.up.lora_a"].dtype == jnp.float32
    assert flatten(adapter)["blocks.mlp.up.kernel"].dtype == jnp.bfloat16
    same = model()(TOKENS)
    np.testing.assert_allclose(adapter(TOKENS), same, atol=0.05)

    lora = dataclasses.replace(LORA, param_dtype="bfloat16")
    own = flatten(own_part(model("ScoreModel", lora)))
    assert own.pop("offset").dtype == jnp.float32
    assert {x.dtype for x in own.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("kind", ["ChatGLM", "ScoreModel"])
def test_a_base_is_shared_not_copied(kind):
    adapter = model(kind)
    tree = {"model": adapter, "others": jnp.ones(3)}
    own, bases = own_part(tree), base_parts(tree)
    names = set(flatten(own))
    assert all("lora" in x or ".head" in x or "offset" in x for x in names - {"others"})
    assert ("model.head.kernel" in names) == (kind == "ScoreModel")
    again = join(own, bases)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert x is y


def test_maps_by_a_pattern():
    lora = dataclasses.replace(LORA, maps=r"query|mlp\.down")
    names = {name for name in flatten(model(lora=lora)) if name.endswith("lora_a")}
    assert names == {"blocks.attention.query.lora_a", "blocks.mlp.down.lora_a"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"lora.rank=0: not a whole number above 0"),
        ({"rank": 33}, r"lora.rank=33 is above the model's width 32"),
        ({"alpha": 0.0}, r"lora.alpha=0.0: not a number above 0"),
        ({"maps": "("}, r"lora.maps='\(' is not a regular expression"),
        (
            {"maps": "q_proj"},
            r"matches no linear map of a block; there are: attention.key_value, .*up",
        ),
    ],
)
def test_adapters_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        model(lora=dataclasses.replace(LORA, **fields))


@pytest.mark.devices(8)
def test_on_a_mesh():
    """Adapters are split as their matrices are."""
    changes = {"num_heads": 2, "num_kv_heads": 2, "scan_layers": True}
    expected = model(**changes)(TOKENS)
    with jax.set_mesh(make_mesh((2, 2, 2), devices=jax.devices()[:8])):
        adapter = model(**changes)
        flat = flatten(adapter)
        assert flat["blocks.attention.output.lora_a"].sharding.spec[1] == "tensor"
        assert flat["blocks.attention.query.lora_a"].sharding.spec[1] == "fsdp"
        out = jax.jit(lambda model: model(TOKENS))(adapter)
    np.testing.assert_allclose(out, expected, atol=1e-5)
