"""The layers of a model: attention, MLP, norms, and the block that joins them.

    residual   block, with a attention, m MLP and N norms in order of use
    "pre"      y = x + a(N(x)),          out = y + m(N(y))          all others
    "sandwich" y = x + N(a(N(x))),       out = y + N(m(N(y)))       GLM-4-0414
    "normed"   h = N(x), y = s h + a(h), g = N(y), out = s g + m(g) ChatGLM-6B

Letters: B batch, T tokens, D width, F FFN width, N query heads, K key-value heads, H
head dim.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.lora import LoRA, add_adapters, equations, random_a, shapes
from rlhf_jax.models.rotary import rotate
from rlhf_jax.parallel.sharding import constrain


def normal(key, shape: tuple[int, ...], std, dtype) -> Array:
    """Draw normal random weights in float32 and cast them to `dtype`, so that one key
    gives the same model in every dtype, apart from rounding."""
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def quantise_kernel(kernel: Float[Array, "..."], summed: Sequence[int]):
    """Return a matrix as int8 and a float32 scale for every output, which is the
    largest absolute weight of that output divided by 127.

    Args:
        summed: the axes that the product sums over.
    """
    kernel = kernel.astype(jnp.float32)
    scale = jnp.abs(kernel).max(axis=summed, keepdims=True) / 127
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    return jnp.round(kernel / scale).astype(jnp.int8), scale


class Linear(nnx.Module):
    """An affine map: an einsum with a kernel of named axes, an optional bias, and an
    optional adapter (`models.lora`)."""

    def __init__(self, equation, shape, *, bias, std, config, rngs):
        """Draw the kernel; `bias` is None or the bias's shape, which broadcasts to the
        output."""
        dtype = config.param_dtype
        self.equation = equation
        self.dtype = config.dtype
        key = rngs.params()
        if config.quantised:
            _, axes, outputs = equation.replace("->", ",").split(",")
            summed = tuple(i for i, a in enumerate(axes) if a not in outputs)
            kernel = normal(key, shape, std, jnp.float32)
            kernel, scale = quantise_kernel(kernel, summed)
            self.kernel, self.kernel_scale = nnx.Param(kernel), nnx.Param(scale)
        else:
            self.kernel = nnx.Param(normal(key, shape, std, dtype))
            self.kernel_scale = None
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias, dtype))
        self.lora_scale = 0.0  # 0 without an adapter

    def add_adapter(self, lora: LoRA, *, key: Array) -> None:
        """Add an adapter, which changes nothing until it is trained."""
        a, b = shapes(self.equation, self.kernel.shape, lora.rank)
        self.lora_scale = lora.scale
        self.lora_a = nnx.Param(random_a(key, self.equation, a, lora.param_dtype))
        self.lora_b = nnx.Param(jnp.zeros(b, lora.param_dtype))

    def matrix(self):
        """Return the kernel, in `dtype`, with its scale and its adapter in it."""
        kernel = self.kernel[...].astype(self.dtype)
        if self.kernel_scale is not None:
            kernel = (kernel * self.kernel_scale[...]).astype(self.dtype)
        if self.lora_scale:
            a, b = (x[...].astype(self.dtype) for x in (self.lora_a, self.lora_b))
            kernel += self.lora_scale * jnp.einsum(equations(self.equation)[2], a, b)
        return kernel

    def __call__(self, x):
        out = jnp.einsum(self.equation, x, self.kernel[...].astype(self.dtype))
        if self.kernel_scale is not None:
            scale = self.kernel_scale[...].reshape(1, 1, *out.shape[2:])
            out = (out * scale).astype(self.dtype)
        if self.lora_scale:
            with_a, with_b, _ = equations(self.equation)
            low = jnp.einsum(with_a, x, self.lora_a[...].astype(self.dtype))
            low = low * self.lora_scale
            out += jnp.einsum(with_b, low, self.lora_b[...].astype(self.dtype))
        if self.bias is None:
            return out
        bias = self.bias[...].astype(self.dtype)
        return out + bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)


class Norm(nnx.Module):
    """RMSNorm or LayerNorm, in float32 with one cast at the end."""

    def __init__(self, config: ChatGLMConfig, width: int, *, eps: float | None = None):
        """Make a norm with the config's epsilon, or with `eps`."""
        self.config = config
        self.eps = config.norm_eps if eps is None else eps
        dtype = config.param_dtype
        self.scale = nnx.Param(jnp.ones(width, dtype))
        zeros = jnp.zeros(width, dtype)
        self.bias = nnx.Param(zeros) if config.norm == "layer" else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        if self.config.norm == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        mean_square = jnp.square(y).mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(mean_square + self.eps)
        alone = (1,) * (x.ndim - 1)
        y = y * self.scale[...].astype(jnp.float32).reshape(*alone, -1)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32).reshape(*alone, -1)
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        heads, kv = (c.num_heads, c.head_dim), (2, c.num_kv_heads, c.head_dim)
        bias = c.qkv_bias or c.linear_bias
        # Keys and values are one product and queries another: each can be split between
        # devices by heads, whose number differs.
        self.query = Linear(
            "btd,dnh->btnh",
            (c.width, *heads),
            bias=heads if bias else None,
            std=0.02,
            config=c,
            rngs=rngs,
        )
        self.key_value = Linear(
            "btd,dckh->btckh",
            (c.width, *kv),
            bias=kv if bias else None,
            std=0.02,
            config=c,
            rngs=rngs,
        )
        self.output = Linear(
            "btnh,nhd->btd",
            (*heads, c.width),
            bias=(c.width,) if c.output_bias or c.linear_bias else None,
            std=0.02 / math.sqrt(2 * c.num_layers),
            config=c,
            rngs=rngs,
        )
        if c.qk_norm:
            self.query_norm = Norm(c, c.head_dim)
            self.key_norm = Norm(c, c.head_dim)

    def __call__(self, x, turn, attend, remember=None):
        """Attend within x [B, T, D], or to the layer's cache extended by x.

        Args:
            turn: the cosines and sines of `rotary.rotation`.
            attend: `(queries, keys, values) -> [B, T, N, H]`, see `models.attention`.
            remember: `kv_cache.write` of a layer, or None for no cache.

        Returns:
            The output [B, T, D], and the layer's updated cache or None.
        """
        layout = self.config.rotary
        queries = constrain(self.query(x), "rows", "length", "heads", "head_part")
        queries = constrain(queries, "batch", "length", "heads", "head_dim")
        if self.config.qk_norm:
            queries = self.query_norm(queries)
        queries = rotate(queries, turn, layout=layout)
        kv = self.key_value(x)  # [B, T, 2, K, H]
        kv = constrain(kv, "rows", "length", "parts", "kv_heads", "head_part")
        kv = constrain(kv, "batch", "length", "parts", "kv_heads", "head_dim")
        keys = kv[:, :, 0]
        if self.config.qk_norm:
            keys = self.key_norm(keys)
        keys = rotate(keys, turn, layout=layout)
        keys = keys.transpose(0, 2, 3, 1)  # [B, K, H, T]
        values = kv[:, :, 1].transpose(0, 2, 1, 3)  # [B, K, T, H]
        keys = constrain(keys, "batch", "kv_heads", "head_dim", "slots")
        values = constrain(values, "batch", "kv_heads", "slots", "head_dim")
        stored = None
        if remember is not None:
            keys, values, stored = remember(keys, values)
        out = attend(queries, keys, values)
        out = constrain(out, "batch", "length", "heads", "head_dim")
        out = constrain(out, "rows", "length", "heads", "head_part")
        return self.output(out), stored


class MLP(nnx.Module):
    """down(silu(gate) * up), or down(gelu(up)) with biases."""

    def __init__(
        self, config: ChatGLMConfig, *, rngs: nnx.Rngs, width: int | None = None
    ):
        """Make an MLP of a width F, by default `ffn_width`."""
        c = self.config = config
        width = c.ffn_width if width is None else width
        # Gate and up are one product, on an axis of size 2, so that F can be split
        # between devices.
        parts = 2 if c.mlp == "swiglu" else 1
        bias = c.mlp_bias or c.linear_bias
        self.up = Linear(
            "btd,dcf->btcf",
            (c.width, parts, width),
            bias=(parts, width) if bias else None,
            std=0.02,
            config=c,
            rngs=rngs,
        )
        self.down = Linear(
            "btf,fd->btd",
            (width, c.width),
            bias=(c.width,) if bias else None,
            std=0.02 / math.sqrt(2 * c.num_layers),
            config=c,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        up = self.up(x)
        if self.config.mlp == "swiglu":
            hidden = jax.nn.silu(up[:, :, 0]) * up[:, :, 1]
        else:
            hidden = jax.nn.gelu(up[:, :, 0], approximate=True)
        return self.down(constrain(hidden, "rows", "length", "ffn"))


class Block(nnx.Module):
    """Attention and MLP with their norms, in the config's arrangement."""

    def __init__(
        self,
        config: ChatGLMConfig,
        *,
        rngs: nnx.Rngs,
        attention: type = Attention,
        mlp: type = MLP,
    ):
        self.config = config
        self.attention_norm = Norm(config, config.width)
        self.attention = attention(config, rngs=rngs)
        self.mlp_norm = Norm(config, config.width)
        self.mlp = mlp(config, rngs=rngs)
        if config.residual == "sandwich":
            self.post_attention_norm = Norm(config, config.width)
            self.post_mlp_norm = Norm(config, config.width)
        if config.lora is not None:
            add_adapters(self, config.lora, Linear, rngs=rngs)

    def __call__(self, x, turn, attend, remember=None):
        """Apply the block to x [B, T, D]; arguments and results as in `Attention`."""
        scale = self.config.residual_scale
        h = self.attention_norm(x)
        a, stored = self.attention(h, turn, attend, remember)
        if self.config.residual == "normed":
            y = scale * h + a
            g = self.mlp_norm(y)
            out = scale * g + self.mlp(g)
        elif self.config.residual == "sandwich":
            y = x + self.post_attention_norm(a)
            out = y + self.post_mlp_norm(self.mlp(self.mlp_norm(y)))
        else:
            y = x + a
            out = y + self.mlp(self.mlp_norm(y))
        return constrain(out, "rows", "length", "width"), stored


class Head(nnx.Module):
    """The output matrix; `ChatGLM.__call__` multiplies by it, losses do in chunks."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        shape = (config.width, config.vocab_size)
        kernel = normal(rngs.params(), shape, 0.02, config.param_dtype)
        self.kernel = nnx.Param(kernel)  # [D, V]
