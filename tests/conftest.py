"""Settings for every test: eight CPU devices, strict shapes, full precision.

Most of the time goes into compilation, so the compiler optimises little on the CPU, and
programs that several tests share are compiled once a session.

`-m gpu` takes the GPU, with the CPU beside it, where jax has a plugin for CUDA; other
tests stay on the CPU. RLHF_JAX_TEST_PLATFORMS chooses otherwise ("cuda,cpu"), and with
JAX_NUM_CPU_DEVICES=1 the CPU is one device, as a GPU is.
"""

import gc
import os
import tempfile
import threading
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

# Processes that a test starts run this copy of the package, whichever is installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

import jax
import pytest

from tests.chat_service import Service

jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", 8)))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# pytest-xdist's workers inherit the folder from the process that starts them.
if "RLHF_JAX_TEST_CACHE" not in os.environ:
    _FOLDER = tempfile.TemporaryDirectory(prefix="rlhf_jax_tests_")
    os.environ["RLHF_JAX_TEST_CACHE"] = _FOLDER.name
jax.config.update("jax_compilation_cache_dir", os.environ["RLHF_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

QUICK = "--xla_backend_optimization_level=0"
# A third of the time to compile. Later compilers, and the TPU's, do not know the flag,
# and end the process.
if jax.__version_info__ < (0, 11) and find_spec("libtpu") is None:
    QUICK += " --xla_cpu_use_fusion_emitters=false"
# Two runs on a GPU give the same bits only so; and trying kernels takes minutes.
REPEATABLE = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


def pytest_configure(config):
    """Choose the platform, of this process and of those that tests start."""
    has_cuda = any("cuda" in x.name for x in entry_points(group="jax_plugins"))
    wanted = config.option.markexpr.replace("not gpu", "")
    fitting = "cuda,cpu" if "gpu" in wanted and has_cuda else "cpu"
    platforms = os.environ.get("RLHF_JAX_TEST_PLATFORMS", fitting)
    jax.config.update("jax_platforms", platforms)
    os.environ["JAX_PLATFORMS"] = platforms
    flags = QUICK if platforms == "cpu" else REPEATABLE
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    # Several processes of a test may share a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def pytest_collection_finish():
    gc.freeze()  # what was imported stays, and is not searched for garbage again


MANY_MAPS = 10_000  # of the 65,530 that Linux allows a process


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Forget the compiled programs of earlier files before their memory maps are too
    many: XLA then ends the process with a segmentation fault."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_runtest_setup(item):
    needed = [mark.args[0] for mark in item.iter_markers("devices")]
    if needed and jax.device_count() < max(needed):
        pytest.skip(f"It needs {max(needed)} devices, which the CPU can stand for.")


@pytest.fixture
def service():
    """A chat service on this machine (tests/chat_service.py)."""
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
