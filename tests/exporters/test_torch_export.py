"""export_torch: which exporter is kept, what the report says, and what is left on disk when nothing is."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphopt.errors import GraphoptError, MissingDependencyError, UsageError  # noqa: E402
from graphopt.exporters import ExportError, engines, export_torch, torch_export  # noqa: E402
from graphopt.runtime import Session  # noqa: E402
from tests.exporters import modules  # noqa: E402

BATCH = {"x": {0: "batch"}}


def rows(count: int = 2) -> Any:
    return torch.linspace(0.1, 1.0, 4 * count).reshape(count, 4)


def shapes(path: Path) -> dict[str, list[str | int]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 18), ("torchscript", 17)])
def test_export_matches_torch_at_three_sizes_and_names_dims(tmp_path: Path, exporter: Any, opset: int) -> None:
    report = export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", dynamic_axes=BATCH, exporter=exporter)
    assert (report.exporter, report.opset, report.verified) == (exporter, opset, True)
    assert [check.sizes["batch"] for check in report.checks] == [2, 5, 1]
    assert report.numerics.startswith("agrees with torch within ")
    assert shapes(report.path) == {"x": ["batch", 4], "output": ["batch", 3]}
    assert report.bytes == report.path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_dynamo_failure_falls_through_to_torchscript_with_the_reason_kept(tmp_path: Path) -> None:
    report = export_torch(modules.Branching(), {"x": rows()}, tmp_path / "m.onnx", dynamic_axes=BATCH)
    assert (report.exporter, report.opset) == ("torchscript", 17)
    (failure,) = report.failures
    assert failure.exporter == "dynamo"
    assert failure.reason is not None and "\n" not in failure.reason and len(failure.reason) < 400
    assert report.attempts[-1].reason is None


def test_file_that_differs_from_torch_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_torch(modules.SizeDependent(), {"x": rows()}, tmp_path / "m.onnx", dynamic_axes=BATCH)
    dynamo, traced = caught.value.attempts
    assert dynamo.reason is not None
    assert traced.reason is not None and "differs from torch" in traced.reason and "batch=5" in traced.reason
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_failure_leaves_an_earlier_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"earlier")
    with pytest.raises(ExportError):
        export_torch(modules.SizeDependent(), {"x": rows()}, target, dynamic_axes=BATCH)
    assert target.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_refused_file_is_written_only_for_the_exporter_asked_for(tmp_path: Path) -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    example = {"x": torch.rand(2, 3, 8), "mask": mask}
    axes = {"x": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="name the exporter to get its file"):
        export_torch(modules.NarrowMask(), example, path, dynamic_axes=axes, opset=24)
    assert not list(tmp_path.iterdir())
    other = export_torch(modules.NarrowMask(), example, path, dynamic_axes=axes, opset=23)
    assert (other.exporter, other.verified) == ("torchscript", True)
    assert "ONNX Runtime" in str(other.failures[0].reason)
    report = export_torch(modules.NarrowMask(), example, path, dynamic_axes=axes, opset=23, exporter="dynamo")
    assert report.numerics.startswith("not run at batch=2 sequence=3: ")
    assert not report.verified
    assert path.exists()


def test_auto_below_opset_18_uses_torchscript_and_says_why(tmp_path: Path) -> None:
    report = export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", dynamic_axes=BATCH, opset=15)
    assert (report.exporter, report.opset) == ("torchscript", 15)
    assert [str(failure) for failure in report.failures] == ["dynamo opset 15: writes opset 18 and later only"]


def test_dynamo_below_opset_18_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use exporter torchscript for 17"):
        export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", opset=17, exporter="dynamo")


def test_inputs_follow_forward_not_the_dict(tmp_path: Path) -> None:
    example = {"b": torch.ones(2, 2), "a": torch.zeros(2, 2)}
    report = export_torch(modules.TwoInputs(), example, tmp_path / "m.onnx", exporter="torchscript")
    assert (report.inputs, report.outputs) == (("a", "b"), ("minus", "plus"))
    found = Session(report.path).run({"a": np.full((2, 2), 5, np.float32), "b": np.full((2, 2), 2, np.float32)})
    assert found["minus"].tolist() == [[3, 3], [3, 3]]


def test_positional_inputs_and_new_names(tmp_path: Path) -> None:
    report = export_torch(
        modules.TwoInputs(),
        (torch.zeros(1, 2), torch.ones(1, 2)),
        tmp_path / "m.onnx",
        dynamic_axes={"a": {0: "batch"}, "b": {0: "batch"}},
        input_names=["left", "right"],
        output_names=["difference", "total"],
        exporter="torchscript",
    )
    assert shapes(report.path) == {
        "left": ["batch", 2], "right": ["batch", 2], "difference": ["batch", 2], "total": ["batch", 2],
    }  # fmt: skip


def test_without_dynamic_axes_every_size_is_frozen(tmp_path: Path) -> None:
    report = export_torch(modules.Affine(), {"x": rows(1)}, tmp_path / "m.onnx", exporter="torchscript")
    assert shapes(report.path) == {"x": [1, 4], "output": [1, 3]}
    assert len(report.checks) == 1


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_large_weights_go_to_one_file_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: Any
) -> None:
    monkeypatch.setattr(engines, "EXTERNAL_DATA_ABOVE", 1000)
    wide = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 64))
    report = export_torch(wide, (rows(),), tmp_path / "m.onnx", dynamic_axes={"input": {0: "b"}}, exporter=exporter)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.external_data == tmp_path / "m.onnx.data"
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    found = Session(report.path).run({"input": rows(3).numpy()})
    assert np.allclose(next(iter(found.values())), wide(rows(3)).detach().numpy(), atol=1e-6)


def test_modes_of_submodules_are_put_back(tmp_path: Path) -> None:
    module = modules.Affine().train()
    module.drop.eval()
    export_torch(module, {"x": rows()}, tmp_path / "m.onnx", dynamic_axes=BATCH, exporter="torchscript")
    assert (module.training, module.layer.training, module.drop.training) == (True, True, False)


def test_half_precision_is_held_to_its_own_tolerance(tmp_path: Path) -> None:
    module = modules.Affine().half()
    report = export_torch(module, {"x": rows().half()}, tmp_path / "m.onnx", dynamic_axes=BATCH, exporter="torchscript")
    assert report.verified


@pytest.mark.parametrize(
    ("inputs", "axes", "message"),
    [
        ({"y": 0}, {}, "has no argument 'y'; it takes: x"),
        ({"x": None}, {}, "every example input must be a tensor"),
        ({"x": 0}, {"z": {0: "batch"}}, "neither an input nor an output"),
        ({"x": 0}, {"x": {2: "batch"}}, "it has no axis 2"),
        ({"x": 0}, {"x": {0: "2*n"}}, "must be an identifier"),
        ({"x": 0}, {"x": {0: "n", 1: "n"}}, "is 2 elsewhere and 4 in 'x'"),
    ],
)
def test_senseless_inputs_are_usage_errors(tmp_path: Path, inputs: Any, axes: Any, message: str) -> None:
    example: Any = {name: rows() if value is not None else [1.0] for name, value in inputs.items()}
    with pytest.raises(UsageError) as caught:
        export_torch(modules.Affine(), example, tmp_path / "m.onnx", dynamic_axes=axes)
    assert message in str(caught.value)


def test_too_many_output_names_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="returns 1 tensors, but output names are: p, q"):
        export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", output_names=["p", "q"])


def test_module_that_fails_on_its_example_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="Affine fails on its own example inputs: RuntimeError"):
        export_torch(modules.Affine(), {"x": torch.rand(2, 9)}, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["", "missing/m.onnx"])
def test_unusable_targets_are_usage_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"is a folder|does not exist"):
        export_torch(modules.Affine(), {"x": rows()}, tmp_path / name)


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(request: Any, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setitem(torch_export._ENGINES, "torchscript", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", exporter="torchscript")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GraphoptError, match=r"cannot write .*m\.onnx: No space left on device"):
        export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", exporter="torchscript")
    assert not list(tmp_path.iterdir())


def test_exporters_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=r"torchscript opset 17: .*aten::diff"):
        export_torch(modules.Difference(), {"x": rows()}, tmp_path / "m.onnx", exporter="torchscript")
    report = export_torch(modules.Difference(), {"x": rows()}, tmp_path / "m.onnx")
    assert report.exporter == "dynamo"
    assert capfd.readouterr() == ("", "")


def test_no_path_of_this_machine_gets_into_the_file(tmp_path: Path) -> None:
    report = export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", dynamic_axes=BATCH, exporter="dynamo")
    assert b"stack_trace" not in report.path.read_bytes()
    assert str(Path(__file__).parent).encode() not in report.path.read_bytes()


def test_report_is_json_ready(tmp_path: Path) -> None:
    import json

    report = export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx", exporter="torchscript")
    data = json.loads(json.dumps(report.as_dict()))
    assert (data["exporter"], data["verified"], data["external_data"]) == ("torchscript", True, None)
    assert data["checks"][0]["error"] < 1e-6


def test_missing_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_export, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install graphopt\[torch\]"):
        export_torch(modules.Affine(), {"x": rows()}, tmp_path / "m.onnx")


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    code = "import sys, graphopt.exporters; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnxruntime"} & set(done.stdout.split())
