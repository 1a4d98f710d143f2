"""Decoding on a mesh: tokens go around, parameters stay."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from rlhf_jax.generation import responses
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import decoding, parameter_spec, shard_parameters
from rlhf_jax.planning.hlo import collectives
from rlhf_jax.planning.programs import generation

CONFIG = preset("micro", width=64, num_heads=4, ffn_width=512, scan_layers=True)
SAMPLING = Sampling(
    max_new_tokens=4,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(1,),
    pad_id=0,
    num_tokens=512,
)


@pytest.mark.devices(8)
@pytest.mark.parametrize("quantised", [False, True])
def test_no_step_of_a_decode_loop_gathers_a_parameter(quantised, monkeypatch):
    """A layer has 280 KiB of matrices (70 in 8 bits), none of which is sent; its 8
    tokens send a few KiB. The ring grows once, and no part of the cache is sent."""
    monkeypatch.setattr(responses, "SHORTEST_RING", 2)
    config = dataclasses.replace(CONFIG, quantised=quantised)
    with jax.set_mesh(make_mesh((1, 8, 1))):
        model = shard_parameters(
            jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
        )
        rows = jax.NamedSharding(jax.sharding.get_mesh(), P("fsdp"))
        tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rows)
        mask = jax.ShapeDtypeStruct((8, 16), bool, sharding=rows)
        generate = functools.partial(generation, share=2, sampling=SAMPLING)
        lowered = jax.jit(generate).lower(model, tokens, mask, jax.random.key(0))
        found = collectives(lowered.compile().as_text(), loop_steps=100)
    in_steps = [c for c in found if c.times == 100]
    assert in_steps
    assert not [c for c in found if re.search(r"\b(18|20)\b", c.shape)]  # slots
    assert max(c.bytes_moved for c in in_steps) < 8 * 1024
    # To read the prompts, a layer's matrices are gathered.
    gathered = max(c.bytes_moved for c in found if c.times == CONFIG.num_layers)
    assert gathered > (25 if quantised else 100) * 1024


def test_while_decoding_products_are_split_by_what_they_give():
    sizes = {"data": 1, "fsdp": 4, "tensor": 2}
    path, shape = ".blocks.mlp.up.kernel", (2, 64, 2, 512)
    assert parameter_spec(path, shape, sizes) == P(None, "fsdp", None, "tensor")
    with decoding():
        spec = parameter_spec(path, shape, sizes)
        assert spec == P(None, None, None, ("tensor", "fsdp"))
    assert parameter_spec(path, shape, sizes) == P(None, "fsdp", None, "tensor")
