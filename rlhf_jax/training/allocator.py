"""Settings of the C library's allocator, which serves the arrays on a CPU."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Make the allocator of the C library keep freed memory for the next step.

    A compiled program allocates its temporaries anew at each call. On a CPU that causes
    hundreds of thousands of page faults per step, which take a quarter of its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
        mallopt(-2, 64 << 20)  # M_TOP_PAD: grow by 64 MiB
        mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads
