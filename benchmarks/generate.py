"""Benchmark of sampling, in tokens per second: prefill and decoding in one program.

python -m benchmarks.generate [--prompts=32] [--prompt=64] [--response=128] [--int8]
    [--lora_rank=16] [--width=1024]

Prompts have 16 to 64 tokens, left-padded; each gets 128 new tokens from the whole
distribution, none of which ends a response. The model is the preset "benchmark" (4
layers, width 256, vocabulary 8,192) with random weights, or as much wider as `--width`
says; with a rank, adapters on it and their merged copy take turns. JSON: new tokens per
second, seconds, memory.
"""

import argparse
import dataclasses
import functools
import itertools
import json

import jax
from flax import nnx

from benchmarks.inputs import full_length, random_prompt_batch, sampling_operations
from benchmarks.timing import measure
from rlhf_jax.batches import PromptBatch
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.adapters import adapted, merged
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.training.allocator import keep_freed_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument(
        "--width", type=int, default=0, help="a multiple of the model's; heads follow"
    )
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits")
    parser.add_argument(
        "--lora_rank", type=int, default=0, help="adapters beside their merged copy"
    )
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    times = flags.width // config.width
    if flags.width != times * config.width:
        parser.error(f"--width={flags.width}: not a multiple of {config.width}.")
    if times:
        sizes = ("width", "head_dim", "ffn_width")
        wider = {name: times * getattr(config, name) for name in sizes}
        config = dataclasses.replace(config, **wider)
    model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    if flags.int8:
        model = jax.jit(quantise)(model)
    models = {"generate": model}
    if flags.lora_rank:
        rank = flags.lora_rank
        lora = LoRA(rank=rank, alpha=2.0 * rank, maps="")  # of all maps
        model = adapted(model, lora, key=jax.random.key(1))
        models = {"adapters": model, "merged": jax.jit(merged)(model)}
    batch = random_prompt_batch(
        flags.prompts, longest=flags.prompt, vocab_size=config.vocab_size
    )
    sampling = full_length(
        flags.response,
        vocab_size=config.vocab_size,
        top_k=flags.top_k,
        top_p=flags.top_p,
    )
    results = sampling_rates(models, batch, sampling, repeats=flags.repeats)
    print(json.dumps(vars(flags) | results))


def sampling_rates(
    models: dict[str, ChatGLM], batch: PromptBatch, sampling: Sampling, *, repeats: int
) -> dict:
    """Time responses of full length by each of the models, in turns."""
    keys = map(jax.random.key, itertools.count())
    return measure(
        {
            name: functools.partial(
                lambda model: rollout(model, batch, next(keys), sampling), model
            )
            for name, model in models.items()
        },
        repeats=repeats,
        work=len(batch.prompts) * sampling.max_new_tokens,
        operations=lambda: {
            name: sampling_operations(model, batch, next(keys), sampling)
            for name, model in models.items()
        },
    )


if __name__ == "__main__":
    main()
