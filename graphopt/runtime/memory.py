"""Memory of this process, for reports."""

from __future__ import annotations

import sys


def peak_memory() -> int | None:
    """The largest resident size this process ever had, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
