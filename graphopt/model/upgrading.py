"""Files of the first opsets, brought to the oldest one that everything here understands."""

from __future__ import annotations

import onnx
from onnx import version_converter

from graphopt.model.checks import OLDEST_OPSET, DefectError


def upgraded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` itself, or a copy at opset 7 where it is older: up to 6, broadcasting was an attribute.

    Raises DefectError when ``onnx.version_converter`` has no way.
    """
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= OLDEST_OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as error:  # the converter raises whatever its C++ side throws
        cause = " ".join(str(error).split())[:200]
        raise DefectError(
            f"it uses opset {versions[0]}, which cannot be converted to {OLDEST_OPSET} ({cause}); export it again"
        ) from error
