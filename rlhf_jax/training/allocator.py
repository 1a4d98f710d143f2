"""Where a CPU's arrays come from: the C library's allocator."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Make the allocator of the C library keep what is freed, for the next step.

    A compiled program asks for its temporaries anew at each call. On a CPU that means
    hundreds of thousands of page faults a step, and a quarter of its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for any block
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
        mallopt(-2, 64 << 20)  # M_TOP_PAD: grow by 64 MiB
        mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads
