"""A step of decoding reads every weight where it lies, and copies none."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.planning.hlo import written_in_loops
from rlhf_jax.planning.programs import generation

# A layer's smallest matrices have 32 KiB in 8 bits. Of the other arrays none is larger
# than the 28 KiB of a layer's keys in the longest cache, cast to float32.
CONFIG = preset(
    "micro",
    vocab_size=64,
    width=128,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    ffn_width=256,
    num_layers=3,
    dtype="bfloat16",
)
SMALLEST = 128 * 2 * 4 * 32  # bytes, in 8 bits
SAMPLING = Sampling(
    max_new_tokens=4,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(1,),
    pad_id=0,
    num_tokens=64,
)
TOKENS, MASK = np.full((2, 8), 5, np.int32), np.ones((2, 8), bool)
KINDS = [
    {"scan_layers": scan, "param_dtype": dtype, "quantised": quantised}
    for scan in (True, False)
    for dtype, quantised in (
        ("float32", False),
        ("bfloat16", False),
        ("bfloat16", True),
    )
]
kinds = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values()))
)


def model_of(**fields):
    config = dataclasses.replace(CONFIG, **fields)
    return jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()


def written(model) -> list:
    """The arrays of a weight's size that a loop over tokens writes."""
    generate = functools.partial(generation, share=1, sampling=SAMPLING)
    lowered = jax.jit(generate).lower(model, TOKENS, MASK, jax.random.key(0))
    found = written_in_loops(lowered.compile().as_text(), smallest=SMALLEST)
    return [x for x in found if not x.trips]  # the others are of the prompts' layers


@pytest.mark.gpu
@kinds
def test_no_step_copies_slices_or_casts_a_weight(kind):
    assert written(model_of(**kind)) == []


def test_a_loop_over_stacked_layers_would_copy_all_four_matrices(monkeypatch):
    """So the test above sees what it is for."""
    monkeypatch.setattr("rlhf_jax.models.chatglm.decoded_in_a_loop", lambda scan: scan)
    jax.clear_caches()
    assert len(written(model_of(scan_layers=True))) >= 4
    jax.clear_caches()
