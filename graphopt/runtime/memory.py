"""Memory of this process: what it took at most, and giving back what is free."""

from __future__ import annotations

import ctypes
import sys


def peak_memory() -> int | None:
    """The largest resident size this process ever had, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_free_memory() -> None:
    """Hand freed memory back to the system: glibc keeps blocks of up to 32 MB, such as a closed session's weights."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such function
        if trim is not None:
            trim(0)
