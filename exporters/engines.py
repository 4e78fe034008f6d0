"""The two exporters that torch ships, each called the same way and each silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .inputs import Tensors

if TYPE_CHECKING:
    import torch

    from .report import DynamicAxes

EXTERNAL_DATA_ABOVE = 1_500_000_000  #: bytes of weights from which they go to a file of their own
_STACK_TRACE = "pkg.torch.onnx.stack_trace"  # holds paths of the exporting machine, line by line, for every node


@dataclass(frozen=True, slots=True)
class Request:
    """One export, whichever engine makes it; names are in the order of ``inputs`` and of the outputs."""

    module: torch.nn.Module
    inputs: Tensors
    input_names: Sequence[str]
    output_names: Sequence[str]
    dynamic_axes: DynamicAxes  #: by argument name of ``forward``
    opset: int

    @property
    def external(self) -> bool:
        """Whether the weights are too large for a single file."""
        return weight_bytes(self.module) > EXTERNAL_DATA_ABOVE


def dynamo(request: Request, path: Path) -> None:
    """Write the module through ``torch.export``; opset 18 and later."""
    import torch

    shapes = {name: dict(request.dynamic_axes.get(name, {})) for name in request.inputs}
    with quiet():
        program = torch.onnx.export(
            request.module,
            (),
            kwargs=dict(request.inputs),
            dynamo=True,
            opset_version=request.opset,
            input_names=list(request.input_names),
            output_names=list(request.output_names),
            dynamic_shapes=shapes if any(shapes.values()) else None,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        for node in program.model.graph.all_nodes():
            node.metadata_props.pop(_STACK_TRACE, None)
        program.save(path, external_data=request.external)


def torchscript(request: Request, path: Path) -> None:
    """Write the module through tracing; any opset that torch still knows (7 to 23 in torch 2.13)."""
    import torch

    names = dict(zip(request.inputs, request.input_names, strict=True))
    axes = {names.get(name, name): dict(axes) for name, axes in request.dynamic_axes.items()}
    with quiet():
        torch.onnx.export(
            request.module,
            (),
            str(path),
            kwargs=dict(request.inputs),
            dynamo=False,
            opset_version=request.opset,
            input_names=list(request.input_names),
            output_names=list(request.output_names),
            dynamic_axes=axes,
        )
    if request.external:
        _gather_external_data(path)


def weight_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep gradients out of the traced graph, and torch's progress, warnings and graph dumps off the terminal.

    What matters among them is measured instead: the file is run and compared. TorchScript prints its whole graph on
    standard output when it fails, which would spoil ``--json``.
    """
    import torch

    loggers = {logger: logger.level for logger in map(logging.getLogger, ("torch", "onnxscript", "onnx_ir"))}
    dump = getattr(torch._C, "_jit_onnx_log", None)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if dump is not None:
            setattr(torch._C, "_jit_onnx_log", lambda *_: None)  # noqa: B010
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)
            if dump is not None:
                setattr(torch._C, "_jit_onnx_log", dump)  # noqa: B010


def _gather_external_data(path: Path) -> None:
    """Put the weights of a large TorchScript export, one file each, into ``<name>.data``."""
    import onnx_ir

    model = onnx_ir.load(path)
    scattered = [file for file in path.parent.iterdir() if file != path]
    data = path.with_name(path.name + ".data")
    onnx_ir.save(model, path.with_name(path.name + ".gathered"), external_data=data.name)
    del model
    for file in scattered:
        file.unlink()
    path.with_name(path.name + ".gathered").replace(path)
