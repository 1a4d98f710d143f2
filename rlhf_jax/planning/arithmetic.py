"""Temporary memory of a program by arithmetic: for GPUs, whose compiler runs only on a
GPU, and for a first look at TPUs. The error is perhaps a fifth; a run tells the
truth."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rlhf_jax import algorithms
from rlhf_jax.batches import Experience, PackedPairs, SFTBatch
from rlhf_jax.generation.responses import first_layout, ring_sizes
from rlhf_jax.models.adapters import own_part
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.experts import ROOM
from rlhf_jax.models.presets import num_parameters


def temporaries(config, model: ChatGLMConfig, name: str, *, devices: int) -> dict:
    """Estimate a program's temporary bytes of one device, by purpose.

    Args:
        config: a stage's config.
        model: that of the policy, whose attention says which machine it runs on.
        name: of the program: "update", "score" or "generate".
        devices: the number of devices that share rows and parameters equally.
    """
    if name == "generate":
        return _generation(config, model, devices)
    batch = algorithms.find(config.stage).Batch
    parts = config.microbatches * config.get("minibatches", 1)
    if batch is SFTBatch:
        length = config.max_tokens
    elif batch is Experience:
        length = config.max_prompt_tokens + config.max_response_tokens
    else:  # two responses behind a prompt
        length = config.max_prompt_tokens + 2 * config.max_response_tokens
    rows = config.batch_size / parts / devices
    tokens = rows * length
    if name == "update" and config.get("beta_sft"):
        dialogues = config.sft_batch_size / config.microbatches / devices
        tokens += dialogues * config.max_sft_tokens
    found = _layer(config, model, rows, length, tokens)
    if batch is not PackedPairs:
        chunk = min(config.chunk_size or length, length)
        found["logits of a chunk"] = 3 * 4 * rows * chunk * model.vocab_size
    if name != "update":
        return found
    weights = num_parameters(model) * jnp.dtype(model.param_dtype).itemsize / devices
    if model.lora is not None:
        shapes = jax.eval_shape(lambda: own_part(ChatGLM(model, rngs=nnx.Rngs(0))))
        weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    copies = 2 if config.microbatches > 1 else 1
    if config.optimizer.fused:
        outside = 2 * model.width * model.vocab_size / num_parameters(model)
        weights *= outside + (1 - outside) / model.num_layers
    found["gradient"] = copies * weights
    size = jnp.dtype(model.dtype).itemsize
    kept = {"full": model.width, "dots": _per_token(model), "none": _per_token(model)}
    found["kept for the backward pass"] = (
        model.num_layers * tokens * kept[model.remat] * size
    )
    found["a layer of the backward pass"] = found["a layer"]
    return found


def _generation(config, model: ChatGLMConfig, devices: int) -> dict:
    samples, size = config.samples_per_prompt, jnp.dtype(model.dtype).itemsize
    count = config.batch_size // samples + config.prompts_ahead
    layout = first_layout(count, samples, config.rollout_rows)
    prompts = layout.prompts / devices
    rows = prompts * layout.share
    # Prompts and ring, before and after the ring has grown for the last time.
    before, after = [0, *ring_sizes(config.max_response_tokens)][-2:]
    slots = prompts * 2 * config.max_prompt_tokens + rows * (before + after)
    kv_heads, key_dim, value_dim = model.cache_shape
    tokens = prompts * config.max_prompt_tokens
    found = _layer(config, model, prompts, config.max_prompt_tokens, tokens)
    per_slot = model.num_layers * kv_heads * (key_dim + value_dim)
    found["cache"] = slots * per_slot * size
    found["logits"] = 3 * 4 * rows * model.vocab_size
    answering = model
    if config.rollout_param_dtype != "same":
        is_quantised = model.quantised or config.rollout_param_dtype == "int8"
        answering = dataclasses.replace(model, quantised=is_quantised, lora=None)
    is_stored_so = answering.quantised or answering.param_dtype == answering.dtype
    if model.attention == "splash" and model.scan_layers and is_stored_so:
        return found  # TPUs read a layer inside the stacked array
    apart = jax.eval_shape(lambda: ChatGLM(answering, rngs=nnx.Rngs(0)).for_decoding())
    found["the layers apart"] = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(apart)) / devices
    )
    return found


def _layer(config, model: ChatGLMConfig, rows, length, tokens) -> dict:
    size = jnp.dtype(model.dtype).itemsize
    found = {"a layer": tokens * _per_token(model) * size}
    if model.quantised:
        heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
        ffn = 3 * (model.num_shared_experts * model.expert_width or model.ffn_width)
        found["a layer's matrices as floats"] = model.width * (heads + ffn) * size
    if model.attention == "xla":
        found["scores of attention"] = 2 * 4 * rows * model.num_heads * length**2
    return found


def _per_token(model: ChatGLMConfig) -> int:
    """Return how many numbers one layer computes for a token."""
    value_dim = model.value_dim if model.latent_width else model.head_dim
    heads = model.num_heads * (model.head_dim + value_dim)
    kv_heads = model.num_kv_heads * (model.head_dim + value_dim)
    latents = sum(model.cache_shape[1:]) + model.query_rank
    ffn = 3 * model.ffn_width
    if model.num_experts:  # what visits and what is sent, twice if loads are even
        one = 2 * model.width + 3 * model.expert_width
        ffn = 3 * model.num_shared_experts * model.expert_width
        ffn += (1 + ROOM) * model.experts_per_token * one
    return 6 * model.width + heads + kv_heads + latents * bool(model.latent_width) + ffn
