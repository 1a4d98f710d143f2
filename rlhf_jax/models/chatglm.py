"""The ChatGLM family: ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B, GLM-4 and GLM-4-0414.

One implementation; what the generations do differently is a field of the config.

    residual   block, with a attention, m MLP and N norms in order of use
    "pre"      y = x + a(N(x)),          out = y + m(N(y))          ChatGLM2 to GLM-4
    "sandwich" y = x + N(a(N(x))),       out = y + N(m(N(y)))       GLM-4-0414
    "normed"   h = N(x), y = s h + a(h), g = N(y), out = s g + m(g) ChatGLM-6B

Sources: the code published with THUDM/chatglm-6b, chatglm2-6b, chatglm3-6b and
glm-4-9b, and transformers' `glm` and `glm4`. A model is a pytree: `jax.jit`, `jax.grad`
and `jax.lax.scan` take it as it is. Blocks are stacked: every parameter of a block has
a leading axis of layers.

Letters: B batch, T tokens, S slots of the cache, V vocabulary, D width, F FFN width, N
query heads, K key-value heads, H head dim.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models import kv_cache
from rlhf_jax.models.attention import attend, visible
from rlhf_jax.models.kv_cache import KVCache
from rlhf_jax.models.positions import count_before, prefix, two_axes
from rlhf_jax.models.rotary import rotate, rotation
from rlhf_jax.parallel.layers import apply_layers, take
from rlhf_jax.parallel.sharding import constrain
from rlhf_jax.parallel.vocabulary import lookup


@dataclasses.dataclass(frozen=True)
class ChatGLMConfig:
    """A model of the family. Defaults are those that ChatGLM2 and later share."""

    vocab_size: int  # rows of the embedding, unused ones included
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # num_heads * head_dim need not be the width
    ffn_width: int
    context_length: int
    residual: str = "pre"  # "pre", "sandwich" or "normed"
    residual_scale: float = 1.0  # s of "normed"
    norm: str = "rms"  # "rms", or "layer" with a bias
    norm_eps: float = 1e-5
    mlp: str = "swiglu"  # "swiglu" or "gelu"
    qkv_bias: bool = True
    linear_bias: bool = False  # on the output projection and in the MLP
    rotary: str = "interleaved"  # or "two_axes", with the prefix mask
    rotary_dims: int | None = None  # turned dims of a head (of each half); None: half
    rotary_base: float = 10000.0
    position_divisor: float = 1.0
    tied: bool = False  # the head is the embedding, transposed
    start_token: int | None = None  # ends the context of "two_axes"
    mask_tokens: tuple[int, ...] = ()  # [gMASK] and [MASK] of "two_axes"
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"
    scan_layers: bool = False  # compile one block and scan it; or unroll all
    remat: str = "none"  # recompute in the backward pass: "none", "dots" or "full"

    def __post_init__(self):
        known = {
            "residual": ("pre", "sandwich", "normed"),
            "norm": ("rms", "layer"),
            "mlp": ("swiglu", "gelu"),
            "rotary": ("interleaved", "two_axes"),
            "remat": tuple(REMAT),
        }
        for field, values in known.items():
            if getattr(self, field) not in values:
                raise ValueError(f"{field}={getattr(self, field)!r}: not in {values}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads=} not a multiple of {self.num_kv_heads=}"
            )
        if self.rotary_dims is None:
            object.__setattr__(self, "rotary_dims", self.head_dim // 2)
        # Configs are stored as JSON, which has no tuples.
        object.__setattr__(self, "mask_tokens", tuple(self.mask_tokens))
        # Names, so that configs compare, hash and print alike however they were made.
        for field in ("dtype", "param_dtype"):
            name = jnp.dtype(getattr(self, field)).name
            object.__setattr__(self, field, name)

    @property
    def has_prefix(self) -> bool:
        """Whether the tokens before the start token are visible to all."""
        return self.rotary == "two_axes"


# What the backward pass computes again.
REMAT = {
    "none": lambda apply: apply,
    "dots": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
    "full": jax.checkpoint,
}


class Linear(nnx.Module):
    """An affine map: an einsum with a kernel of named axes, and perhaps a bias."""

    def __init__(self, equation, shape, *, bias, std, config, rngs):
        """`bias` is None or the bias's shape, which broadcasts to the output."""
        dtype = config.param_dtype
        self.equation = equation
        self.dtype = config.dtype
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias, dtype))

    def __call__(self, x):
        out = jnp.einsum(self.equation, x, self.kernel[...].astype(self.dtype))
        if self.bias is None:
            return out
        bias = self.bias[...].astype(self.dtype)
        return out + bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)


class Norm(nnx.Module):
    """RMSNorm or LayerNorm, in float32 with one cast at the end."""

    def __init__(self, config: ChatGLMConfig):
        self.config = config
        dtype = config.param_dtype
        self.scale = nnx.Param(jnp.ones(config.width, dtype))
        zeros = jnp.zeros(config.width, dtype)
        self.bias = nnx.Param(zeros) if config.norm == "layer" else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = x.astype(jnp.float32)
        if self.config.norm == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        mean_square = jnp.square(y).mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(mean_square + self.config.norm_eps)
        y = y * self.scale[...].astype(jnp.float32)[None, None]
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)[None, None]
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        heads, kv = (c.num_heads, c.head_dim), (2, c.num_kv_heads, c.head_dim)
        bias = c.qkv_bias or c.linear_bias
        # Keys and values together, queries apart: either can be split between devices
        # by heads, whose number differs.
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
            bias=(c.width,) if c.linear_bias else None,
            std=0.02 / math.sqrt(2 * c.num_layers),
            config=c,
            rngs=rngs,
        )

    def __call__(self, x, turn, seen, layer=None, index=None):
        """Attend within x [B, T, D], or to one layer of a cache after adding x to it.

        Returns the output [B, T, D] and that layer's keys and values.
        """
        layout = self.config.rotary
        queries = constrain(self.query(x), "batch", "length", "heads", "head_dim")
        queries = rotate(queries, turn, layout=layout)
        both = self.key_value(x)  # [B, T, 2, K, H]
        keys = rotate(both[:, :, 0], turn, layout=layout)
        keys = keys.transpose(0, 2, 3, 1)  # [B, K, H, T]
        values = both[:, :, 1].transpose(0, 2, 1, 3)  # [B, K, T, H]
        if layer is not None:
            keys, values = kv_cache.write(layer, keys, values, index)
        out = attend(queries, keys, values, seen)
        return self.output(out), (keys, values)


class MLP(nnx.Module):
    """down(silu(gate) * up), or down(gelu(up)) with biases."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        # Gate and up are one product; their own axis lets F be split between devices.
        parts = 2 if c.mlp == "swiglu" else 1
        self.up = Linear(
            "btd,dcf->btcf",
            (c.width, parts, c.ffn_width),
            bias=(parts, c.ffn_width) if c.linear_bias else None,
            std=0.02,
            config=c,
            rngs=rngs,
        )
        self.down = Linear(
            "btf,fd->btd",
            (c.ffn_width, c.width),
            bias=(c.width,) if c.linear_bias else None,
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
        return self.down(constrain(hidden, "batch", "length", "ffn"))


class Block(nnx.Module):
    """Attention and MLP with their norms, in the config's arrangement."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = Norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config, rngs=rngs)
        if config.residual == "sandwich":
            self.post_attention_norm = Norm(config)
            self.post_mlp_norm = Norm(config)

    def __call__(self, x, turn, seen, layer=None, index=None):
        """One block on x [B, T, D]; arguments and results as of `Attention`."""
        scale = self.config.residual_scale
        h = self.attention_norm(x)
        a, layer = self.attention(h, turn, seen, layer, index)
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
        return constrain(out, "batch", "length", "width"), layer


class Head(nnx.Module):
    """The output matrix; `ChatGLM.__call__` multiplies, losses do so in chunks."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        shape = (config.width, config.vocab_size)
        kernel = jax.random.normal(rngs.params(), shape, config.param_dtype)
        self.kernel = nnx.Param(0.02 * kernel)  # [D, V]


class ChatGLM(nnx.Module):
    """A causal language model of the family."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = (config.vocab_size, config.width)
        table = 0.02 * jax.random.normal(rngs.params(), table, config.param_dtype)
        self.embedding = nnx.Param(table)  # [V, D]
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.final_norm = Norm(config)
        self.head = None if config.tied else Head(config, rngs=rngs)

    @property
    def output_matrix(self) -> Float[Array, "D V"]:
        """What hidden states are multiplied with to give logits, in `dtype`."""
        tied = self.head is None
        matrix = self.embedding[...].T if tied else self.head.kernel[...]
        return matrix.astype(self.config.dtype)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        *,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits in float32; see `hidden`."""
        hidden = self.hidden(tokens, mask, segments=segments)
        logits = jnp.einsum(
            "btd,dv->btv",
            hidden,
            self.output_matrix,
            preferred_element_type=jnp.float32,
        )
        return constrain(logits, "batch", "length", "vocab")

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        *,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm.

        Args:
            mask: True at real tokens, on whichever side the padding is; None: all real.
            segments: several responses after one prompt in one row, see `positions`.
                Equal to a forward pass for each response behind the prompt.
        """
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        places = count_before(mask, segments)
        context, positions = None, places[..., None]
        if self.config.has_prefix:
            context, mask_place = self._prefix(tokens, mask, places, segments)
            positions = two_axes(places, context, mask_place)
        seen = visible(
            mask,
            query_slots=jnp.arange(tokens.shape[1]),
            segments=segments,
            context=context,
        )
        turn = self._rotation(positions)

        x = apply_layers(
            self.blocks,
            lambda block, x: block(x, turn, seen)[0],
            self._embed(tokens),
            scan=self.config.scan_layers,
            checkpoint=REMAT[self.config.remat],
        )
        return self.final_norm(x)

    def decode(
        self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Read T more tokens: their hidden states, and the cache with them in it.

        The first call reads the prompt; for ChatGLM-6B it must hold the whole context
        with its start token. The layers are always unrolled, see `kv_cache`.
        """
        places = cache.mask.sum(axis=1, keepdims=True) + count_before(mask)
        context, mask_place = cache.context, cache.mask_place
        positions = places[..., None]
        if self.config.has_prefix:
            found = self._prefix(tokens, mask, places, None)
            fresh = cache.index == 0
            context = jnp.where(fresh, found[0], context)
            mask_place = jnp.where(fresh, found[1], mask_place)
            positions = two_axes(places, context, mask_place)
        full_mask = jax.lax.dynamic_update_slice_in_dim(
            cache.mask, mask, cache.index, axis=1
        )
        seen = visible(
            full_mask,
            query_slots=cache.index + jnp.arange(tokens.shape[1]),
            context=context if self.config.has_prefix else None,
        )
        turn = self._rotation(positions)
        x = self._embed(tokens)
        layers = []
        for i, layer in enumerate(zip(cache.keys, cache.values, strict=True)):
            x, layer = take(self.blocks, i)(x, turn, seen, layer, cache.index)
            layers.append(layer)
        keys, values = zip(*layers, strict=True)
        cache = KVCache(
            keys=keys,
            values=values,
            mask=full_mask,
            index=cache.index + tokens.shape[1],
            context=context,
            mask_place=mask_place,
        )
        return self.final_norm(x), cache

    def init_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `length` tokens a row, padding included."""
        return kv_cache.empty(
            batch,
            length,
            layers=self.config.num_layers,
            kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.config.dtype,
        )

    def _embed(self, tokens):
        x = lookup(self.embedding[...], tokens, self.config.dtype)
        return constrain(x, "batch", "length", "width")

    def _prefix(self, tokens, mask, places, segments):
        return prefix(
            tokens,
            mask,
            places,
            segments,
            start_token=self.config.start_token,
            mask_tokens=self.config.mask_tokens,
        )

    def _rotation(self, positions):
        return rotation(
            positions,
            layout=self.config.rotary,
            head_dim=self.config.head_dim,
            rotary_dims=self.config.rotary_dims,
            base=self.config.rotary_base,
            position_divisor=self.config.position_divisor,
        )
