"""Settings for every test: eight CPU devices, strict shapes, full precision.

Most of the time goes into compilation, so the compiler optimises little, and programs
that several tests share are compiled once a session.
"""

import os
import tempfile
import threading
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
)

# Processes that a test starts run this copy of the package, whichever is installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

import jax
import pytest

from tests.chat_service import Service

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# pytest-xdist's workers inherit the folder from the process that starts them.
if "RLHF_JAX_TEST_CACHE" not in os.environ:
    _FOLDER = tempfile.TemporaryDirectory(prefix="rlhf_jax_tests_")
    os.environ["RLHF_JAX_TEST_CACHE"] = _FOLDER.name
jax.config.update("jax_compilation_cache_dir", os.environ["RLHF_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def service():
    """A chat service on this machine (tests/chat_service.py)."""
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
