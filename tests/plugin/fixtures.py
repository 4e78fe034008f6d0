"""A third party's package with passes that misbehave, found through a real entry point."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

PLUGIN = Path(__file__).with_name("misbehave.py")


def declared_names(source: str) -> dict[str, str]:
    """Pass name -> class, as the plug-in's entry points declare them."""
    found = {}
    for item in ast.parse(source).body:
        if isinstance(item, ast.ClassDef):
            for line in item.body:
                named = isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "name"
                if named and isinstance(line.value, ast.Constant) and item.name != "Misnamed":
                    found[line.value.value] = item.name
    return found


def install(folder: Path, distribution: str, points: dict[str, str]) -> None:
    """Write the metadata that ``pip install`` would."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[graphopt.passes]\n{lines}")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install the misbehaving package for one test."""
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copy(PLUGIN, folder / "graphopt_misbehave.py")
    points = {name: f"graphopt_misbehave:{kind}" for name, kind in declared_names(PLUGIN.read_text()).items()}
    points |= {
        "misnamed": "graphopt_misbehave:Misnamed",
        "not-a-pass": "graphopt_misbehave:NOT_A_PASS",
        "missing": "graphopt_misbehave:Nowhere",
        "no-module": "graphopt_no_such_module:Anything",
    }
    install(folder, "graphopt-misbehave", points)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("graphopt_misbehave", None)


def make_mlp(seed: int = 0, width: int = 64) -> ir.Model:
    """``x[batch, 32] -> MatMul, Add, Relu, MatMul -> y[batch, 16]``."""
    rng = np.random.default_rng(seed)
    arrays = {"w1": (32, width), "b1": (width,), "w2": (width, 16)}
    weights = [ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name) for name, shape in arrays.items()]
    return ir.from_onnx_text(
        f"""
        <ir_version: 9, opset_import: ["" : 18]>
        mlp (float[batch, 32] x) => (float[batch, 16] y)
        <float[32, {width}] w1, float[{width}] b1, float[{width}, 16] w2>
        {{
            hidden = MatMul(x, w1)
            biased = Add(hidden, b1)
            active = Relu(biased)
            y = MatMul(active, w2)
        }}
        """,
        initializers=weights,
    )


@pytest.fixture
def mlp(tmp_path) -> Path:
    """A small model file."""
    path = tmp_path / "mlp.onnx"
    ir.save(make_mlp(), path)
    return path
