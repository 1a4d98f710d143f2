"""Small models of every family, and the reference outputs where they are at hand."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM, ChatGLMConfig

# What the published implementations compute for small random checkpoints.
PARITY = Path(__file__).parents[2] / ".." / "shared" / "parity"
CASES = (
    "chatglm_v1",
    "chatglm_v2",
    "chatglm_v3",
    "glm4_remote",
    "glm_9b_like",
    "glm_edge_like",
    "glm4_9b_like",
    "glm4_32b_like",
)

START, GMASK, MASK = 60, 61, 62
SMALL = {
    "vocab_size": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "ffn_width": 48,
    "context_length": 64,
}
FAMILIES = {
    "v1": ChatGLMConfig(
        **SMALL | {"num_kv_heads": 4},
        residual="normed",
        residual_scale=56**0.5,
        norm="layer",
        mlp="gelu",
        linear_bias=True,
        rotary="two_axes",
        tied=True,
        start_token=START,
        mask_tokens=(GMASK, MASK),
    ),
    "v2": ChatGLMConfig(**SMALL),
    "v2_32k": ChatGLMConfig(**SMALL, position_divisor=50.0),
    "glm_edge": ChatGLMConfig(**SMALL, rotary_dims=16, qkv_bias=False, tied=True),
    "glm4": ChatGLMConfig(**SMALL, residual="sandwich"),
}


@pytest.fixture(scope="session", params=CASES)
def reference(request):
    """(folder, model in float32, expected arrays) of one reference checkpoint."""
    folder = PARITY / request.param
    if not folder.is_dir():
        pytest.skip("The reference outputs are not here.")
    model = huggingface.load(folder, dtype="float32", param_dtype="float32")
    return folder, model, dict(np.load(folder / "expected.npz"))


@pytest.fixture(scope="session", params=FAMILIES)
def model(request):
    """A model of each family with weights large enough for every part to matter."""
    return random_model(FAMILIES[request.param])


def random_model(config: ChatGLMConfig, seed: int = 0) -> ChatGLM:
    """Weights of unit gain; random biases and scales, so that none can be left out."""
    model = ChatGLM(config, rngs=nnx.Rngs(seed))
    keys = iter(jax.random.split(jax.random.key(seed), 100))

    def draw(path, x):
        noise = jax.random.normal(next(keys), x.shape, x.dtype)
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return 1 + 0.2 * noise
        return noise * (0.5 if "embedding" in name else 0.15)

    return jax.tree_util.tree_map_with_path(draw, model)


def random_tokens(config: ChatGLMConfig, shape, seed: int = 0, prompt: int = 0):
    """Token ids; for ChatGLM-6B, row b's context ends before place `prompt + b`."""
    tokens = np.random.default_rng(seed).integers(0, START, shape)
    if config.has_prefix:
        for b in range(shape[0]):
            tokens[b, prompt + b - 1 : prompt + b + 1] = GMASK, START
    return tokens.astype(np.int32)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
