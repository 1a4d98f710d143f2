"""Models that several tests of generation share."""

import jax
import pytest
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from tests.models.families import FAMILIES, random_model


@pytest.fixture(scope="session")
def model():
    config = preset("micro", vocab_size=32, context_length=64)
    model = ChatGLM(config, rngs=nnx.Rngs(0))
    # Sharper than at initialisation, so that log-probabilities differ visibly.
    return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, model)


@pytest.fixture(scope="session")
def chatglm_6b():
    """ChatGLM-6B's prefix mask and two positions."""
    return random_model(FAMILIES["v1"])
