"""Numbers as people read them."""

from __future__ import annotations


def megabytes(count: float | None) -> str:
    """Bytes in MB (10**6), in kB below one MB."""
    if count is None:
        return "-"
    if abs(count) < 1e6:
        return f"{count:.0f} B" if abs(count) < 1000 else f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if abs(count) < 1e8 else f"{count / 1e6:.1f} MB"


def amount(count: float | None) -> str:
    """Counts in thousands, millions, billions."""
    if count is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(count) >= size:
            return f"{count / (1e3 if unit == 'k' else size):.{1 if unit == 'k' else 2}f} {unit}"
    return f"{count:.0f}"


def share(part: float, whole: float) -> str:
    """Percent of a whole; ``-`` when the whole is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def percent(part: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "-" if part is None else f"{100 * part:.1f} %"


def ratio(value: float | None) -> str:
    """``0.31x``."""
    return "-" if value is None else f"{value:.2f}x"


def seconds(value: float) -> str:
    """Milliseconds below one second, whole seconds above a hundred."""
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def small(value: float | None) -> str:
    """Errors: two significant digits, exponent form when tiny."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.3g}"


def cosine(value: float | None) -> str:
    """Four decimals; close to 1 as the distance to it, and 1 only below what float32 can tell."""
    if value is None:
        return "-"
    if 0.99995 <= value < 1 - 1e-7:
        return f"1-{1 - value:.0e}"
    return f"{value:.4f}"
