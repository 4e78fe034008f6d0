"""What becomes of a tensor in a 16-bit float type: the rounded values, or why it had better stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

#: What one rounding may change in the root mean square; subnormal values are rounded much more coarsely.
_LIMIT = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
_BLOCK = 1 << 20  #: elements looked at together


def largest(dtype: ir.DataType) -> float:
    """The largest finite number of FLOAT16 or BFLOAT16."""
    return _LARGEST[dtype]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A float32 tensor in another type; or without it, and the reason why not."""

    tensor: ir.TensorProtocol | None
    reason: str = ""


def round_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType) -> Rounded:
    """``tensor`` (float32) in ``dtype``, unless finite values leave the type's range or too much of them is lost.

    Lost: the root mean square of the rounding errors is above 2**-10 (bfloat16: 2**-7) of the values', which takes
    values that the type cannot hold at full precision. Infinities and NaN stay what they are.
    """
    array = tensor.numpy()
    limit, bound = _LIMIT[dtype], _LARGEST[dtype]
    result = np.empty(array.shape, dtype=dtype.numpy())
    target = result.reshape(-1)
    signal = noise = 0.0
    vanished = 0
    for start, block in _blocks(array):
        finite = np.isfinite(block)
        top = float(np.abs(block[finite]).max(initial=0.0))
        with np.errstate(over="ignore"):
            rounded = block.astype(dtype.numpy())
        back = rounded.astype(np.float32)
        if not np.array_equal(np.isfinite(back), finite):
            return Rounded(None, f"it holds {top:.3g}, beyond the {bound:.5g} of {dtype.name.lower()}")
        target[start : start + len(block)] = rounded
        exact = block[finite].astype(np.float64)
        signal += float(np.square(exact).sum())
        noise += float(np.square(exact - back[finite]).sum())
        vanished += int(np.count_nonzero((exact != 0) & (back[finite] == 0)))
    if noise > limit * limit * signal:
        share = (noise / signal) ** 0.5
        lost = f", {vanished} of its values vanish" if vanished else ""
        return Rounded(None, f"rounding to {dtype.name.lower()} would change it by {share:.2%}{lost}")
    return Rounded(ir.Tensor(result, dtype=dtype, name=tensor.name))


def _blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    flat = array.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        yield start, flat[start : start + _BLOCK]
