"""What a process keeps of memory that it no longer needs."""

import ctypes
import mmap
import re
from pathlib import Path

# Buffers of at least this many bytes go back to the system when they are freed. By default, glibc
# raises this threshold to the largest buffer freed so far, and then large images fragment the heap,
# and each thread that decodes images keeps the memory of its largest one.
LARGE_BUFFER = 1_000_000
M_MMAP_THRESHOLD = -3

# How many free bytes stay at the end of the heap for the next request.
KEPT_BYTES = 4_000_000
M_TRIM_THRESHOLD = -1

# A mapping of a program's or a library's code in `/proc/self/maps`: its addresses. What a just-in-
# time compiler has written is of no file, so that its inode is 0.
CODE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d* ", re.MULTILINE)


def keep_small_buffers() -> None:
    """Have freed buffers go back to the system only if they are large, where the library is glibc.

    Each of the two settings ends glibc's own adaptation of both.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BUFFER)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def trim() -> None:
    """Return the heap's free pages to the system, where the library is glibc."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


def leave_code() -> None:
    """Take what has been read of programs' code out of this process's memory, on Linux.

    Most code that loading a model runs, such as OpenVINO's transformations, never runs again. The
    pages stay in the system's cache of files, from where it can take them at any time, and one that
    is run again is mapped again, for some microseconds.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    maps = Path("/proc/self/maps")
    if madvise is None or not maps.exists():
        return
    for begin, end in CODE.findall(maps.read_text()):
        start, stop = int(begin, 16), int(end, 16)
        # No code is written to, so that no page differs from its file's.
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
