"""Codes as the bytes of a file: several to a byte, the first in the lowest bits."""

from __future__ import annotations

import numpy as np

from graphopt.quantization.weights import Codes


def offset(codes: Codes) -> np.ndarray:
    """The codes in their own orientation, counted from zero up: signed ones are moved by half their range."""
    if codes.codes.dtype == np.uint8:
        return codes.codes
    return (codes.codes.astype(np.int16) + (1 << (codes.grid.bits - 1))).astype(np.uint8)


def packed(codes: Codes) -> np.ndarray:
    """``[N, blocks * block * bits / 8]``: each column of blocks in a row; the last block is filled up with zeros."""
    rows = offset(codes) if codes.axis == 0 else offset(codes).T
    short = -rows.shape[1] % codes.grid.block
    return pack_rows(np.pad(rows, ((0, 0), (0, short))), codes.grid.bits)


def pack_rows(rows: np.ndarray, bits: int) -> np.ndarray:
    """Numbers ``[N, K]`` of ``bits`` bits as bytes ``[N, ceil(K * bits / 8)]``."""
    each = 8 // bits
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % each))).reshape(len(rows), -1, each)
    found = np.zeros(rows.shape[:2], dtype=np.uint8)
    for place in range(each):
        found |= (rows[:, :, place] << (bits * place)).astype(np.uint8)
    return found
