"""The model: ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B, GLM-4, GLM-4-0414, GLM-4.5 and
GLM-4.7-Flash (mixtures of experts), and Llama, Mistral, Qwen2 and Qwen3.

One implementation serves all; each difference between families is a config field.

Sources: the code published with THUDM/chatglm-6b, chatglm2-6b, chatglm3-6b and
glm-4-9b, and transformers' `glm`, `glm4`, `glm4_moe`, `glm4_moe_lite`, `llama`,
`mistral`, `qwen2` and `qwen3`. A model is a pytree that `jax.jit`, `jax.grad` and
`jax.lax.scan` accept. Blocks are stacked: every parameter of a block has a leading axis
of layers. In a mixture of experts `blocks` are the layers with experts, and
`dense_blocks` the few layers before them, stacked too.

Letters: B batch, T tokens, V vocabulary, D width.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models import kv_cache
from rlhf_jax.models.attention import (
    attend,
    block_attend,
    causal,
    cudnn_attend,
    cudnn_refusal,
    shared_attend,
    visible,
    visible_behind,
    warn_of_fallback,
)
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.experts import Experts, loads_of, routed, through_experts
from rlhf_jax.models.kv_cache import KVCache
from rlhf_jax.models.latent_attention import LatentAttention
from rlhf_jax.models.layers import MLP, Attention, Block, Head, Norm, normal
from rlhf_jax.models.positions import count_before, prefix, two_axes
from rlhf_jax.models.rotary import rotation
from rlhf_jax.models.splash import splash_attend
from rlhf_jax.parallel.layers import (
    apart,
    apply_layers,
    apply_unrolled,
    decoded_in_a_loop,
    take,
)
from rlhf_jax.parallel.sharding import constrain, constrain_parameters, decoding
from rlhf_jax.parallel.vocabulary import lookup

# Rematerialisation by `ChatGLMConfig.remat`: what the backward pass recomputes.
REMAT = {
    "none": lambda apply: apply,
    "dots": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
    "full": jax.checkpoint,
}
# The names of the parameters that are cast; a router is float32 wherever it is read.
MATRICES = r"\b(?<!router\.)(kernel|embedding|lora_[ab])\b"


class ChatGLM(nnx.Module):
    """A causal language model of the family."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = (config.vocab_size, config.width)
        table = normal(rngs.params(), table, 0.02, config.param_dtype)
        self.embedding = nnx.Param(table)  # [V, D]
        keys = jax.random.split(rngs.params(), config.num_layers)

        attention = LatentAttention if config.latent_width else Attention

        def stacked(keys, mlp):
            def block(key):
                rngs = nnx.Rngs(key)
                return Block(config, rngs=rngs, attention=attention, mlp=mlp)

            # Layers are initialised one after another, so that the float32 numbers of
            # only one layer lie in memory at a time.
            return jax.lax.map(block, keys)

        first = config.num_dense_layers
        self.dense_blocks = stacked(keys[:first], MLP) if first else None
        self.blocks = stacked(keys[first:], Experts if config.num_experts else MLP)
        self.final_norm = Norm(config, config.width)
        self.head = None if config.tied else Head(config, rngs=rngs)

    @property
    def output_matrix(self) -> Float[Array, "D V"]:
        """The matrix that maps hidden states to logits, in `dtype`."""
        tied = self.head is None
        matrix = self.embedding[...].T if tied else self.head.kernel[...]
        return matrix.astype(self.config.dtype)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        *,
        segments: Int[Array, "B T"] | Int[np.ndarray, " T"] | None = None,
        examples: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Return logits in float32; the arguments are those of `hidden`."""
        hidden = self.hidden(tokens, mask, segments=segments, examples=examples)
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
        segments: Int[Array, "B T"] | Int[np.ndarray, " T"] | None = None,
        examples: Int[Array, "B T"] | None = None,
        routing: Int[Array, "B T L K"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the hidden states after the final norm.

        Args:
            mask: True at real tokens, with padding on either side; None means that all
                tokens are real.
            segments: the segment of each token where a row holds several responses
                after one prompt, see `positions`; one array [T] where all rows are
                alike. The result equals a forward pass over the prompt and each
                response by itself.
            examples: the number of each token's example where a row holds several, one
                after another, from 0; each then has the result of a row of its own.
            routing: of a mixture of experts, the K experts of each token in each of the
                L layers with experts (`decode` returns such), which take the place of
                the routers' choices; -1 leaves the choice to the router.
        """
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        by_row = None
        if segments is not None:
            by_row = jnp.broadcast_to(segments, tokens.shape)
        places = count_before(mask, by_row, examples)
        context, positions = None, places[..., None]
        if self.config.has_prefix:
            context, mask_place = self._prefix(tokens, mask, places, by_row, examples)
            positions = two_axes(places, context, mask_place)
        attend, masks = self._attention(
            mask,
            jnp.arange(tokens.shape[1]),
            segments=segments,
            examples=examples,
            context=context,
        )

        def apply(block, x, rows):
            turn, masks = rows
            return block(x, turn, functools.partial(attend, **masks))[0]

        x, rows = self._embed(tokens), (self._rotation(positions), masks)
        loads = loads_of(self.config)
        follows_experts = loads is not None or routing is not None
        if follows_experts:
            apply = through_experts(apply, self.config)
            x, rows = (x, jnp.zeros(2), jnp.zeros(())), (rows, mask, routing)
        checkpoint = REMAT[self.config.remat]
        if self.dense_blocks is not None:
            x = apply_unrolled(self.dense_blocks, checkpoint(apply), x, rows)
        x = apply_layers(
            self.blocks,
            apply,
            x,
            rows,
            scan=self.config.scan_layers,
            checkpoint=checkpoint,
        )
        if follows_experts:
            x, load, _ = x
        if loads is not None:
            loads.append(load)
        return self.final_norm(x)

    def decode(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        cache: KVCache,
        prompts: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache, Int[Array, "B T L K"] | None]:
        """Read T more tokens; return their hidden states, the extended cache, and the
        experts of each token in each layer with experts (int16, see `hidden`; None of a
        dense model).

        The first call reads the prompt. For ChatGLM-6B this prompt must hold the whole
        context with its start token.

        Args:
            prompts: the cache of G prompts that were read before, each for B / G rows
                that are neighbours; `cache` is then the ring of what follows. None if
                the cache holds the prompts too.
        """
        places = cache.mask.sum(axis=1, keepdims=True) + count_before(mask)
        context, mask_place, slot = cache.context, cache.mask_place, cache.index
        if prompts is not None:
            slot = cache.index % cache.length
            prompt_mask, context, mask_place = (
                jnp.repeat(x, len(tokens) // len(x), axis=0)
                for x in (prompts.mask, prompts.context, prompts.mask_place)
            )
            places += prompt_mask.sum(axis=1, keepdims=True)
        positions = places[..., None]
        if self.config.has_prefix:
            if prompts is None:
                own = self._prefix(tokens, mask, places, None, None)
                fresh = cache.index == 0
                context = jnp.where(fresh, own[0], context)
                mask_place = jnp.where(fresh, own[1], mask_place)
            positions = two_axes(places, context, mask_place)
        full_mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, slot, axis=1)
        slots = slot + jnp.arange(tokens.shape[1])
        if prompts is None:
            context_of_rows = context if self.config.has_prefix else None
            attend, masks = self._attention(
                full_mask,
                slots,
                context=context_of_rows,
                latents=self.config.latent_width > 0,
            )
            read = ()
        else:
            seen = visible_behind(
                prompt_mask,
                full_mask,
                query_slots=slots,
                places=places,
                window=self.config.window,
            )
            attend, masks = shared_attend, {"seen": seen}
            read = prompts.keys, prompts.values
        attend = functools.partial(attend, **masks)
        turn = self._rotation(positions)
        write = functools.partial(kv_cache.write, slot=slot)

        def apply(block, x, stored, behind, **which):
            """Apply a block; `behind` is what it has of the prompts, or ()."""
            remember = functools.partial(write, stored, **which)
            names = ("prompt_keys", "prompt_values")
            of_prompts = dict(zip(names, behind, strict=False))
            with routed() as choices:
                x, stored = block(
                    x, turn, functools.partial(attend, **of_prompts), remember
                )
            return x, stored, [chosen.astype(jnp.int16) for chosen in choices]

        x, stored = self._embed(tokens), (cache.keys, cache.values)
        first = self.config.num_dense_layers
        if self.config.scan_layers:
            for i in range(first):
                layer, block = jnp.int32(i), take(self.dense_blocks, i)
                behind = tuple(part[i] for part in read)
                x, stored, _ = apply(block, x, stored, behind, layer=layer)

            def in_loop(carry, layer):
                number, block, behind = layer
                *carry, choices = apply(block, *carry, behind, layer=number)
                return tuple(carry), choices

            (x, stored), choices = jax.lax.scan(
                in_loop,
                (x, stored),
                (
                    jnp.arange(first, self.config.num_layers),
                    self.blocks,
                    tuple(part[first:] for part in read),
                ),
            )
            routing = jnp.moveaxis(choices[0], 0, 2) if choices else None
        else:
            layers, choices = list(zip(*stored, strict=True)), []
            apply = jax.jit(apply, inline=True)  # traced once for all layers of a kind
            for i, layer in enumerate(layers):
                blocks = self.dense_blocks if i < first else self.blocks
                block = take(blocks, i if i < first else i - first)
                behind = tuple(part[i] for part in read)
                x, layers[i], chosen = apply(block, x, layer, behind)
                choices += chosen
            stored = tuple(zip(*layers, strict=True))
            routing = jnp.stack(choices, axis=2) if choices else None
        cache = KVCache(
            keys=stored[0],
            values=stored[1],
            mask=full_mask,
            index=cache.index + tokens.shape[1],
            context=context,
            mask_place=mask_place,
        )
        return self.final_norm(x), cache, routing

    def init_cache(self, batch: int, length: int) -> KVCache:
        """Return an empty cache for `length` tokens a row, padding included."""
        return kv_cache.empty(
            batch,
            length,
            layers=self.config.num_layers,
            shape=self.config.cache_shape,
            dtype=self.config.dtype,
            stacked=self.config.scan_layers,
        )

    def for_decoding(self) -> "ChatGLM":
        """Return the model as every step of a decode loop reads it: matrices are cast
        to `dtype` (integers and routers stay), lie on the devices as the table for
        decoding says, and layers are apart unless `decoded_in_a_loop`."""
        model, dtype = self, self.config.dtype
        if not decoded_in_a_loop(self.config.scan_layers):
            model = apart(model)
            model.config = dataclasses.replace(self.config, scan_layers=False)

        def cast(path, x):
            is_matrix = re.search(MATRICES, jax.tree_util.keystr(path))
            is_float = jnp.issubdtype(x.dtype, jnp.floating)
            return x.astype(dtype) if is_matrix and is_float else x

        model = jax.tree_util.tree_map_with_path(cast, model)
        with decoding():
            return constrain_parameters(model)

    def _embed(self, tokens):
        x = lookup(self.embedding[...], tokens, self.config.dtype)
        return constrain(x, "rows", "length", "width")

    def _attention(
        self,
        mask,
        query_slots,
        *,
        segments=None,
        examples=None,
        context=None,
        latents=False,
    ):
        """Return the attention function of the layers, with the mask of
        `attention.visible`, and its keyword arguments with a row axis. Splash needs its
        mask, apart from padding and examples, at compile time; where the rest is not
        static, or has a window, XLA's attention is used. So it is where cuDNN has none,
        and for a single query a row, whose keys and values XLA reads in the cache's own
        order, and where the cache has `latents` in their place."""
        kernel = "xla" if latents else self.config.attention
        window = self.config.window
        is_static = context is None and (segments is None or segments.ndim == 1)
        square = len(query_slots) == mask.shape[1]
        is_causal = is_static and square and window is None
        if kernel == "splash" and is_causal:
            attend_static = functools.partial(splash_attend, segments=segments)
            return attend_static, {"mask": mask, "examples": examples}
        rows = segments
        if segments is not None:
            rows = jnp.broadcast_to(segments, mask.shape)
        seen = visible(
            mask,
            query_slots=query_slots,
            segments=rows,
            examples=examples,
            context=context,
            window=window,
        )
        if kernel == "cudnn" and len(query_slots) > 1:
            sizes = {"queries": len(query_slots), "slots": mask.shape[1]}
            refusal = cudnn_refusal(self.config, rows=mask.shape[0], **sizes)
            if not refusal:
                return cudnn_attend, {"seen": seen}
            warn_of_fallback(refusal)
        if context is None and square:
            possible = causal(mask.shape[1], segments if is_static else None)
            return functools.partial(block_attend, possible=possible), {"seen": seen}
        return attend, {"seen": seen}

    def _prefix(self, tokens, mask, places, segments, examples):
        return prefix(
            tokens,
            mask,
            places,
            segments,
            examples,
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
            scaling=self.config.rope_scaling,
        )
