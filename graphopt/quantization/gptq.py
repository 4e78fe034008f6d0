"""GPTQ: rounding weights one input at a time, the error of each made up for by those that are still to come.

Frantar et al., 2023 (arXiv:2210.17323), after optimal brain surgeon. Scales are fixed before (*static groups*), so
inputs can go in the order of their energy, the loudest first, whatever block they are in.
"""

from __future__ import annotations

import numpy as np

from graphopt.quantization.grids import Grid, Steps

_LAZY = 128  #: inputs whose corrections reach the rest of the matrix in one product


def compensated(W: np.ndarray, second: np.ndarray, steps: Steps, grid: Grid, *, damping: float = 0.01) -> np.ndarray:
    """Codes of ``W[K, N]`` for inputs with second moments ``second[K, K]``; little is lost of ``x W``, not of ``W``.

    ``damping`` is a share of the mean diagonal. Inputs that never fire keep their nearest codes.
    Raises ValueError when the moments are not those of any inputs.
    """
    K, N = W.shape
    energy = np.diag(second)
    order = np.argsort(-energy, kind="stable")
    H = second[np.ix_(order, order)] + damping * max(float(energy.mean()), 1e-12) * np.eye(K)
    upper = _inverse_factor(H)
    scale, zero = (values[order] for values in steps.of(grid, K))
    rest = W[order].astype(np.float64)
    codes = np.empty((K, N), dtype=grid.dtype)
    for start in range(0, K, _LAZY):
        end = min(start + _LAZY, K)
        block, errors = rest[start:end], np.empty((end - start, N))
        for i in range(end - start):
            k = start + i
            code = np.clip(np.rint(block[i] / scale[k] + zero[k]), grid.low, grid.high)
            codes[k] = code
            errors[i] = (block[i] - (code - zero[k]) * scale[k]) / upper[k, k]
            block[i + 1 :] -= np.outer(upper[k, k + 1 : end], errors[i])
        rest[end:] -= upper[start:end, end:].T @ errors
    found = np.empty_like(codes)
    found[order] = codes
    return found


def _inverse_factor(H: np.ndarray) -> np.ndarray:
    """Upper U with ``U^T U = H^-1``."""
    try:
        return np.asarray(np.linalg.cholesky(np.linalg.inv(H)).T)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the inputs' second moments have no inverse: {error}") from error
