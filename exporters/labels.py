"""Give the outputs of a TorchScript export the sizes that they really have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .verify import Sample


def label_outputs(path: Path, samples: Sequence[Sample], declared: Mapping[str, Mapping[int, str]]) -> None:
    """Replace invented symbols such as ``MatMullogits_dim_0`` in the graph's output shapes.

    An axis whose size is the same in every sample becomes that number; one that follows a dynamic axis in every sample
    takes its name; anything else keeps its symbol. Names in ``declared`` (output -> {axis: name}) stay.
    With a single sample nothing is known about what varies, and nothing is changed.
    """
    import onnx

    if len(samples) < 2:
        return
    model = onnx.load(path, load_external_data=False)
    changed = False
    for index, value in enumerate(model.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_param") or axis in declared.get(value.name, {}):
                continue
            sizes = [sample.outputs[index].shape[axis] for sample in samples]
            same = [
                name
                for name in samples[0].sizes
                if all(s.sizes[name] == n for s, n in zip(samples, sizes, strict=True))
            ]
            if len(set(sizes)) == 1:
                dim.dim_value = sizes[0]
            elif same:
                dim.dim_param = same[0]
            else:
                continue
            changed = True
    if changed:
        path.write_bytes(model.SerializeToString())
