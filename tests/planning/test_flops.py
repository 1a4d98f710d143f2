import jax
import jax.numpy as jnp
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.planning.flops import count_flops


def test_a_product_is_two_operations_a_multiplication():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert count_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7


def test_loops_count_as_often_as_they_run():
    a = jnp.ones((4, 4))

    def scanned(a):
        return jax.lax.fori_loop(0, 10, lambda i, x: x @ a, a)

    def unbounded(a):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ a, a)

    assert count_flops(scanned, a) == 10 * 128
    assert count_flops(jax.jit(unbounded), a, loop_steps=6) == 6 * 128


def test_a_model_takes_two_operations_a_weight_and_token_and_its_attention():
    config = preset("micro", scan_layers=True)
    model = jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    kernels = sum(
        x.size
        for path, x in jax.tree_util.tree_flatten_with_path(model)[0]
        if "kernel" in jax.tree_util.keystr(path)
    )
    heads = config.num_heads * config.head_dim
    attention = 4 * 2 * 16 * 16 * heads * config.num_layers
    found = count_flops(lambda model, tokens: model(tokens), model, tokens)
    assert found == 2 * kernels * 2 * 16 + attention


def test_the_backward_pass_is_two_forward_passes():
    a, x = jnp.ones((8, 8)), jnp.ones((4, 8))

    def loss(a, x):
        return jnp.sum(jnp.tanh(x @ a) @ a)

    forward = count_flops(loss, a, x)
    assert count_flops(jax.grad(loss, (0, 1)), a, x) == 3 * forward


def test_a_row_of_a_grouped_product_meets_one_matrix():
    rows, kernels = jnp.ones((12, 5)), jnp.ones((3, 5, 7))
    sizes = jnp.array([2, 4, 6])

    def product(rows, kernels):
        return jax.lax.ragged_dot(rows, kernels, sizes).sum()

    once = 2 * 12 * 5 * 7
    assert count_flops(product, rows, kernels) == once
    assert count_flops(jax.grad(product, (0, 1)), rows, kernels) == 3 * once
