"""Settings and models for these tests, and the reference outputs where at hand."""

from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.models import huggingface
from tests.models.families import FAMILIES, random_model, with_fields

# Outputs of the published implementations for small random checkpoints.
PARITY = Path(__file__).parents[2] / ".." / "shared" / "parity"
RECORDED = Path(__file__).parent / "recorded"  # by the program there
CASES = (
    "chatglm_v1",
    "chatglm_v2",
    "chatglm_v3",
    "glm4_remote",
    "glm_9b_like",
    "glm_edge_like",
    "glm4_9b_like",
    "glm4_32b_like",
    "glm4_moe_like",
    "glm4_moe_lite_like",
)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Compile quickly on the CPU: programs here run once or twice, and compilation
    dominates."""
    quickly = jax.default_backend() == "cpu"
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session", params=CASES)
def reference(request):
    """(folder, model in float32, expected arrays) of one reference checkpoint."""
    folder = RECORDED / request.param
    folder = folder if folder.is_dir() else PARITY / request.param
    if not folder.is_dir():
        pytest.skip("The reference outputs are not here.")
    model = huggingface.load(folder, dtype="float32", param_dtype="float32")
    model = with_fields(model, scan_layers=True)
    return folder, model, dict(np.load(folder / "expected.npz"))


@pytest.fixture(scope="session", params=FAMILIES)
def model(request):
    """A model of each family with weights large enough for every part to matter."""
    return random_model(FAMILIES[request.param])
