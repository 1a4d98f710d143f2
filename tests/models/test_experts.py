"""Layers with experts, by hand and against a plain loop over tokens."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import experts, huggingface, huggingface_config
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.experts import Experts, Router
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import layer_specs, shard_batch
from tests.models.families import FAMILIES, random_model
from tests.trees import assert_trees_close

MOE = FAMILIES["glm4_moe"]
SCORES = np.array([0.9, 0.2, 0.6, 0.5, 0.8, 0.1])  # of one token for six experts


def routed(scores, correction, **changes):
    """The experts of a token and their weights, from its scores."""
    config = dataclasses.replace(
        MOE, width=1, normalise_weights=False, routed_scale=1.0
    )
    router = Router(dataclasses.replace(config, **changes), rngs=nnx.Rngs(0))
    logits = np.log(scores) - np.log1p(-scores)
    router.kernel[...] = jnp.asarray(logits[None], jnp.float32)
    router.correction[...] = jnp.asarray(correction, jnp.float32)
    chosen, weights = router(jnp.ones((1, 1, 1)))
    pairs = zip(chosen[0, 0].tolist(), weights[0, 0].tolist(), strict=True)
    return {expert: round(weight, 5) for expert, weight in pairs}


@pytest.mark.parametrize(
    ("correction", "changes", "expected"),
    [
        (np.zeros(6), {}, {0: 0.9, 4: 0.8}),
        # The correction chooses, and does not weigh.
        ([0, 0.75, 0, 0, 0, 0], {}, {1: 0.2, 0: 0.9}),
        ([-0.9, 0, 0, 0, -0.9, 0], {}, {2: 0.6, 3: 0.5}),
        (np.zeros(6), {"normalise_weights": True}, {0: 0.9 / 1.7, 4: 0.8 / 1.7}),
        (np.zeros(6), {"routed_scale": 2.5}, {0: 2.25, 4: 2.0}),
        (
            np.zeros(6),
            {"routed_scale": 2.5, "normalise_weights": True},
            {0: 2.5 * 0.9 / 1.7, 4: 2.5 * 0.8 / 1.7},
        ),
        # Groups {0, 1}, {2, 3}, {4, 5} are worth 1.1, 1.1, 0.9; with the correction
        # 1.1, 1.15, 0.9; and {0, 1, 2}, {3, 4, 5} 1.5 and 1.3.
        (
            [0, 0, 0, 0.05, 0, 0],
            {"expert_groups": 3, "groups_per_token": 1},
            {2: 0.6, 3: 0.5},
        ),
        (
            [0, 0, 0, 0.05, 0, 0],
            {"expert_groups": 3, "groups_per_token": 2},
            {0: 0.9, 2: 0.6},
        ),
        (
            [-2.0, -2.0, -2.0, -3, -3, -3],  # below 0, what is out stays out
            {"expert_groups": 2, "groups_per_token": 1, "experts_per_token": 3},
            {0: 0.9, 2: 0.6, 1: 0.2},
        ),
    ],
)
def test_experts_are_chosen_with_the_correction_and_weighed_without(
    correction, changes, expected
):
    expected = {expert: round(weight, 5) for expert, weight in expected.items()}
    assert routed(SCORES, correction, **changes) == expected


@pytest.mark.gpu
def test_each_token_has_the_sum_of_its_experts_whoever_shares_them():
    """Also where all tokens want the same experts: none is dropped."""
    layer = jax.tree.map(lambda x: x[0], random_model(MOE).blocks.mlp)
    x = np.random.default_rng(0).normal(size=(2, 9, MOE.width)).astype(np.float32)
    x[1] = x[1, :1] + 1e-3 * x[1]
    x = jnp.asarray(x)
    chosen, weights = (np.asarray(y) for y in layer.router(x))
    assert len(np.unique(chosen[1])) == MOE.experts_per_token
    up, down = (np.asarray(k.kernel[...], float) for k in _bank(layer))
    expected = np.asarray(layer.shared(x), float)
    for b, t, k in np.ndindex(chosen.shape):
        gate, value = np.einsum("d,dcf->cf", x[b, t], up[chosen[b, t, k]])
        hidden = gate / (1 + np.exp(-gate)) * value
        expected[b, t] += weights[b, t, k] * (hidden @ down[chosen[b, t, k]])
    tolerance = 2e-5 if jax.default_backend() == "cpu" else 1e-3
    out = jax.jit(Experts.__call__)(layer, x)
    np.testing.assert_allclose(out, expected, tolerance, tolerance)


def _bank(layer):
    return layer.experts.up, layer.experts.down


def test_the_router_is_float32_in_a_model_of_sixteen_bits():
    config = dataclasses.replace(MOE, dtype="bfloat16", param_dtype="bfloat16")
    model = random_model(config)
    model.blocks.mlp.router.correction[...] = jnp.zeros((1, 6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50, 32)), jnp.bfloat16)
    layer = jax.tree.map(lambda x: x[0], model.blocks.mlp)
    for router in (layer.router, model.for_decoding().blocks[0].mlp.router):
        kernel = np.asarray(router.kernel[...])
        assert kernel.dtype == np.float32
        logits = np.asarray(x, np.float64) @ kernel.astype(np.float64)
        scores = np.sort(1 / (1 + np.exp(-logits)))[..., :-3:-1]
        expected = 2.5 * scores / scores.sum(-1, keepdims=True)
        np.testing.assert_allclose(router(x)[1], expected, rtol=1e-5)


def test_a_shared_expert_may_be_absent_and_all_layers_may_have_experts(tmp_path):
    config = dataclasses.replace(MOE, num_shared_experts=0, num_dense_layers=0)
    model = random_model(config)
    huggingface.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not any("shared" in name or "mlp.up_proj" in name for name in tensors)
    # transformers writes one of width 0.
    name = "model.layers.1.mlp.shared_experts.up_proj.weight"
    tensors[name] = np.zeros((0, 32), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    again = huggingface.load(tmp_path, dtype="float32", param_dtype="float32")
    assert again.config == config
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(x, y)


def test_layers_that_predict_several_tokens_are_left_out_with_a_line(tmp_path, caplog):
    model = random_model(MOE)
    huggingface.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {
        name.replace("layers.1.", "layers.2."): x
        for name, x in tensors.items()
        if "layers.1." in name
    }
    extra["model.layers.2.eh_proj.weight"] = np.zeros((4, 4), np.float32)
    save_file(tensors | extra, tmp_path / "model.safetensors")
    with caplog.at_level("INFO"):
        again = huggingface.load(tmp_path, dtype="float32", param_dtype="float32")
    (line,) = [r.getMessage() for r in caplog.records if "MTP" in r.getMessage()]
    assert f"{len(extra)} tensors of model.layers.2," in line
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(x, y)
    save_file(
        tensors | {"model.layers.3.eh_proj.weight": extra.popitem()[1]},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"unknown: model\.layers\.3\.eh_proj"):
        huggingface.load(tmp_path, dtype="float32", param_dtype="float32")


def test_a_router_is_stored_in_float32_and_all_else_in_the_models_dtype(tmp_path):
    config = dataclasses.replace(MOE, dtype="bfloat16", param_dtype="bfloat16")
    huggingface.save(random_model(config), tmp_path)
    kinds = {"float32": set(), "bfloat16": set()}
    for name, x in load_file(tmp_path / "model.safetensors").items():
        kinds[x.dtype.name].add(name)
    gate = "model.layers.1.mlp.gate."
    assert kinds["float32"] == {gate + "weight", gate + "e_score_correction_bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_dense_layers=1 without num_experts"),
        ({"num_dense_layers": 2}, "leaves no layer of self.num_layers=2"),
        ({"experts_per_token": 7}, "can choose from 6"),
        ({"expert_groups": 4}, "groups=4"),
        ({"expert_groups": 6}, "of two or more each"),
        ({"groups_per_token": 2}, "groups_per_token=2 of groups=1"),
        ({"expert_groups": 3, "experts_per_token": 3}, "can choose from 2"),
        ({"expert_width": 0}, "expert_width=0"),
        ({"num_shared_experts": -1}, "num_shared_experts=-1"),
        ({"routed_scale": 0.0}, "routed_scale=0.0"),
    ],
)
def test_numbers_of_experts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ChatGLMConfig(**dataclasses.asdict(MOE) | changes)


@jax.jit
def loads_of(model, tokens, mask):
    with experts.recorded_loads() as loads:
        hidden = model.hidden(tokens, mask)
    return hidden, loads


def test_loads_are_shares_of_the_choices_of_real_tokens_layer_by_layer():
    chosen = jnp.array([[[0, 1], [0, 2], [1, 2]]])
    load = experts._load(chosen, jnp.array([[True, True, False]]), 3)
    assert load.tolist() == [0.5, 0.25]
    # Two layers, each of which sends all tokens to two experts, but not the same two.
    config = dataclasses.replace(MOE, num_layers=3, scan_layers=True)
    model = random_model(config)
    wanted = [[9.0, 9, 0, 0, 0, 0], [0, 0, 9, 9, 0, 0]]
    model.blocks.mlp.router.correction[...] = jnp.asarray(wanted)
    tokens, mask = jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), bool)
    hidden, (load,) = loads_of(model, tokens, mask)
    assert load.tolist() == [0.5, 0.0]
    np.testing.assert_array_equal(hidden, jax.jit(lambda m: m.hidden(tokens))(model))


@pytest.mark.parametrize("family", ["glm4_moe", "glm4_moe_lite"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring_func": "softmax"}, "scoring_func='softmax'.*only 'sigmoid' is"),
        ({"topk_method": "greedy"}, "topk_method='greedy'.*only 'noaux_tc' is"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2.*only 1 is"),
        ({"n_routed_experts": 0}, "n_routed_experts=0: not a whole number above 0"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor='2.5'"),
        (
            {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}},
            "quantization_config: .* get the model with weights in 16 bits",
        ),
    ],
)
def test_other_routers_and_quantised_weights_are_refused(family, changes, message):
    fields = huggingface_config.write(FAMILIES[family], "native") | changes
    with pytest.raises(ValueError, match=message) as error:
        huggingface_config.read(fields, dtype="float32", param_dtype="float32")
    assert "\n" not in str(error.value)


def test_tensors_of_eight_bits_are_refused(tmp_path):
    tensors = {"model.norm.weight": np.ones(4, ml_dtypes.float8_e4m3fn)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"type F8_E4M3: .* without quantisation\.$"):
        huggingface.load(tmp_path, dtype="float32", param_dtype="float32")


@pytest.mark.parametrize("wanted", [(0, 0, 9, 2), (1, 3, 2, 5), (0, 1, 0, 0), (0,) * 4])
def test_blocks_compute_the_ragged_product(wanted):
    """Also where rows at the end belong to none of the experts."""
    rng = np.random.default_rng(0)
    sizes = np.array(wanted, np.int32)
    owners = np.concatenate([np.repeat(np.arange(4), sizes), [4, 4, 4]])
    rows = jnp.asarray(rng.normal(size=(len(owners), 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)

    def products(multiply):
        out, vjp = jax.vjp(
            lambda rows, kernel: multiply(rows, kernel)[:-3], rows, kernel
        )
        return out, vjp(jnp.cos(out))

    got = products(
        lambda *x: experts.in_blocks(
            *x, jnp.asarray(owners, jnp.int32), jnp.asarray(sizes)
        )
    )
    expected = products(lambda *x: jax.lax.ragged_dot(*x, jnp.asarray(sizes)))
    assert_trees_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.devices(8)
@pytest.mark.parametrize(("room", "count"), [(4, 5), (0.25, 12)])
def test_tokens_go_to_their_experts_and_back_by_all_to_all(room, count, monkeypatch):
    """Outputs and gradients are those of one device, also in several rounds, where one
    device is wanted by nearly all tokens."""
    monkeypatch.setattr(experts, "ROOM", room)
    config = dataclasses.replace(MOE, num_experts=8)
    layer = jax.tree.map(lambda x: x[0], random_model(config).blocks.mlp)
    layer.router.correction[...] = jnp.asarray([1, 1, 0, 0, 0, 0, 0, 0.0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 32)), jnp.float32)

    def loss(layer, x):
        out = layer(x)
        return jnp.sin(out).sum(), out

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected = jax.jit(run)(layer, x)
    with jax.set_mesh(make_mesh((1, 4, 2))):
        specs = layer_specs(layer, ".blocks.mlp", {"fsdp": 4, "tensor": 2})
        placed = jax.tree.map(
            lambda x, spec: jax.device_put(
                x, NamedSharding(jax.sharding.get_mesh(), spec)
            ),
            layer,
            specs,
        )
        assert placed.experts.up.kernel.sharding.spec == P("fsdp", None, None, "tensor")
        program = jax.jit(run).lower(placed, shard_batch(np.asarray(x))).compile()
        got = program(placed, shard_batch(np.asarray(x)))
    assert_trees_close(got, expected, rtol=1e-4, atol=1e-5)
    text = program.as_text()
    # Tokens and the numbers of their experts go and outputs come back; then gradients
    # of outputs go and those of tokens come back. Rounds that only an uneven load needs
    # stand in a loop of their own, where the backward pass sends tokens once more.
    assert len(re.findall(r" all-to-all\(", text)) == count
