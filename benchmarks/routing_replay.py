"""The distance between the log-probabilities of sampler and trainer where the router
chooses in both, and where the trainer has the sampler's choices (PPO's
`replay_routing`).

python -m benchmarks.routing_replay [--model=tiny_moe] [--init_from=WORKDIR]
    [--dtype=bfloat16] [--rollout_param_dtype=same] [--prompts=32] [--prompt=64]
    [--response=64]

Without `--init_from` the weights are random and stored in float32; the prompts are
random tokens in either case. JSON: of the tokens of the responses, the mean distance in
nats, the largest, and the share above 0.1.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.inputs import full_length, random_prompt_batch
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.scoring import one_response, response_logprobs
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training.placement import COPIES
from rlhf_jax.training.weights import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny_moe")
    parser.add_argument("--init_from", default="")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rollout_param_dtype", default="same", choices=COPIES)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    flags = parser.parse_args()

    if flags.init_from:
        model = load_model(flags.init_from, dtype=flags.dtype)
    else:
        config = preset(flags.model, dtype=flags.dtype)
        model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    size = model.config.vocab_size
    batch = random_prompt_batch(flags.prompts, longest=flags.prompt, vocab_size=size)
    sampling = full_length(flags.response, vocab_size=size, stop_id=1)
    copy = COPIES[flags.rollout_param_dtype]
    sampler = model if copy is None else jax.jit(copy)(model)
    routed = model.config.num_experts > 0
    rolled = rollout(sampler, batch, jax.random.key(0), sampling, routed=routed)
    bare = dataclasses.replace(rolled, routing=None)
    ways = {"chosen_again": None, "replayed": rolled.routing}
    gaps = {name: distances(model, bare, ways[name]) for name in ways}
    results = {
        name: {
            "mean": float(gap.mean()),
            "largest": float(gap.max()),
            "above_0.1": float((gap > 0.1).mean()),
        }
        for name, gap in gaps.items()
        if routed or name == "chosen_again"
    }
    print(json.dumps({"flags": vars(flags), "tokens": rolled.responses.size} | results))


@jax.jit
def distances(model: ChatGLM, rolled, routing) -> jax.Array:
    """Return the distances at all tokens of responses that are full, [B, R]."""
    out = response_logprobs(
        model,
        *one_response(rolled),
        temperature=1.0,
        num_tokens=model.config.vocab_size,
        chunk_size=0,
        routing=routing,
    )
    return jnp.abs(out.logprobs[:, 0] - rolled.logprobs)


if __name__ == "__main__":
    main()
