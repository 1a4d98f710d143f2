"""Freed memory stays with the process, as page faults show."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from rlhf_jax.training.allocator import keep_freed_memory
{call}
import numpy as np

def faults():
    np.ones(2**23)  # 64 MiB, written and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    faults()
print(-faults() + faults())
"""


def page_faults(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_that_is_freed_is_used_again():
    assert page_faults("keep_freed_memory()") < 100 < page_faults("")
