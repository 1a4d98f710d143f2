"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), of
GLM-4.7-Flash (transformers' `glm4_moe_lite`).

A token has one latent c, from which the keys and values of all heads are products, and
one rotary key r, which all heads share:

    [c; r] = W x,   c = norm(c),   r turned by the position
    key of head n = [r; A_n c],   value of head n = B_n c

A query is [turned; unturned] alike, from a latent of its own if `query_rank` is set.
The cache has c and r alone. It is never expanded into keys and values: a product with
a key is one with the latent,

    q (A_n c) = (A_n' q) c,   sum_s p_s (B_n c_s) = B_n (sum_s p_s c_s)

so that decoding multiplies each query by A_n' and each sum of latents by B_n. Then
attention has one key-value head, whose keys are [r; c] and whose values are c. Without
a cache, keys and values are expanded, which takes fewer operations for a whole row.

The rotary dims come first in a head here, and last in published checkpoints. Both norms
of latents have an epsilon of their own, 1e-6, whatever the config's is.

Letters: B batch, T tokens, D width, N heads, H dims of a query's or key's head, R of
which are rotary, V dims of a value, M latent width, Q rank of the queries.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.layers import Linear, Norm
from rlhf_jax.models.rotary import rotate
from rlhf_jax.parallel.sharding import constrain

EPS = 1e-6  # of the norms of latents


class LatentAttention(nnx.Module):
    """Attention whose keys and values are products of one latent a token."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        heads, rotary = (c.num_heads, c.head_dim), c.rotary_dims

        def linear(
            equation: str, *shape: int, bias: bool = False, std: float = 0.02
        ) -> Linear:
            size = shape[-1:] if bias else None
            return Linear(equation, shape, bias=size, std=std, config=c, rngs=rngs)

        rank = c.query_rank
        if rank:
            self.query_down = linear("btd,dq->btq", c.width, rank, bias=c.qkv_bias)
            self.query_latent_norm = Norm(c, rank, eps=EPS)
        self.query = linear("btq,qnh->btnh", rank or c.width, *heads)
        latent = c.latent_width
        self.latent = linear("btd,dm->btm", c.width, latent + rotary, bias=c.qkv_bias)
        self.latent_norm = Norm(c, latent, eps=EPS)
        self.key_up = linear("btm,mnh->btnh", latent, c.num_heads, c.head_dim - rotary)
        self.value_up = linear("btm,mnh->btnh", latent, c.num_heads, c.value_dim)
        self.output = linear(
            "btnh,nhd->btd",
            *(c.num_heads, c.value_dim, c.width),
            bias=c.output_bias,
            std=0.02 / math.sqrt(2 * c.num_layers),
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        turn: Any,
        attend: Callable[..., Any],
        remember: Callable[..., Any] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Attend within x [B, T, D], or to the layer's cache extended by x.

        Args:
            turn: the cosines and sines of `rotary.rotation`.
            attend: `(queries, keys, values, scale) -> [B, T, N, V]`, one of
                `models.attention`; without a cache without `scale`.
            remember: `kv_cache.write` of a layer, or None for no cache.

        Returns:
            The output [B, T, D], and the layer's updated cache or None.
        """
        c, rotary = self.config, self.config.rotary_dims
        low = x
        if c.query_rank:
            low = constrain(self.query_down(x), "rows", "length", "width")
            low = self.query_latent_norm(low)
        queries = rotate(_by_heads(self.query(low)), turn, layout=c.rotary)
        latent = constrain(self.latent(x), "batch", "length", "width")
        shared = latent[:, :, None, c.latent_width :]
        cos, sin = (part[..., : rotary // 2] for part in turn)
        shared = rotate(shared, (cos, sin), layout=c.rotary)  # [B, T, 1, R]
        latent = self.latent_norm(latent[..., : c.latent_width])
        if remember is None:
            out, stored = attend(queries, *self._expand(latent, shared)), None
        else:
            keys = shared.transpose(0, 2, 3, 1)  # [B, 1, R, T]
            keys, values, stored = remember(keys, latent[:, None])
            within = constrain(queries[..., rotary:], *_ROWS)
            within = jnp.einsum("btnh,mnh->btnm", within, self.key_up.matrix())
            queries = jnp.concatenate([queries[..., :rotary], _by_heads(within)], -1)
            out = attend(queries, keys, values, scale=c.head_dim**-0.5)
            out = constrain(out, "batch", "length", "heads", "head_dim")
            out = constrain(out, "rows", "length", "heads", "head_dim")
            out = jnp.einsum("btnm,mnh->btnh", out, self.value_up.matrix())
        out = constrain(out, *_ROWS)
        return self.output(out), stored

    def _expand(
        self, latent: Float[Array, "B T M"], shared: Float[Array, "B T 1 R"]
    ) -> tuple[Float[Array, "B N H T"], Float[Array, "B N T V"]]:
        """Return the keys and values of all heads."""
        within, values = (_by_heads(up(latent)) for up in (self.key_up, self.value_up))
        shared = jnp.broadcast_to(shared, (*within.shape[:3], shared.shape[3]))
        keys = jnp.concatenate([shared, within], axis=-1).transpose(0, 2, 3, 1)
        values = values.transpose(0, 2, 1, 3)
        return (
            constrain(keys, "batch", "heads", "head_dim", "slots"),
            constrain(values, "batch", "heads", "slots", "head_dim"),
        )


_ROWS = ("rows", "length", "heads", "head_part")


def _by_heads(x: Float[Array, "B T N _"]) -> Float[Array, "B T N _"]:
    """Lay out a product by heads, first as its matrix is and then as attention is."""
    return constrain(constrain(x, *_ROWS), "batch", "length", "heads", "head_dim")
