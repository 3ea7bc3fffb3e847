"""What the C library keeps of freed memory, if it is glibc."""

import ctypes

# Buffers of at least this many bytes go back to the system when they are freed. By default, glibc
# raises this threshold to the largest buffer freed so far, and then large images fragment the heap,
# and each thread that decodes images keeps the memory of its largest one.
LARGE_BUFFER = 1_000_000
M_MMAP_THRESHOLD = -3

# How many free bytes stay at the end of the heap for the next request.
KEPT_BYTES = 4_000_000
M_TRIM_THRESHOLD = -1


def keep_small_buffers() -> None:
    """Have freed buffers go back to the system only if they are large.

    Each of the two settings ends glibc's own adaptation of both.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BUFFER)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def trim() -> None:
    """Return the heap's free pages to the system."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
