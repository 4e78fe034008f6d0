"""graphopt takes an ONNX file and gives back a smaller, faster one that still does its job, with the evidence.

    import graphopt

    result = graphopt.optimize("model.onnx", "prune(ratio=0.25),fuse,int8", data="inputs.npz", output="small.onnx")
    assert result.passed, result.reasons

Names load when first used, so ``import graphopt`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.autograd.convert import to_torch as to_torch
    from graphopt.autograd.writeback import write_back as write_back
    from graphopt.errors import GraphoptError as GraphoptError
    from graphopt.errors import GuardError as GuardError
    from graphopt.errors import MissingDependencyError as MissingDependencyError
    from graphopt.errors import ModelError as ModelError
    from graphopt.errors import PassError as PassError
    from graphopt.errors import UsageError as UsageError
    from graphopt.model import open_model as open_model
    from graphopt.model import save_model as save_model
    from graphopt.pipeline.compare import compare as compare
    from graphopt.pipeline.optimize import optimize as optimize
    from graphopt.pipeline.recipe import Recipe as Recipe
    from graphopt.pipeline.recipe_file import load_recipe as load_recipe
    from graphopt.pipeline.result import Result as Result
    from graphopt.pipeline.sensitivity import sensitivity as sensitivity

_WHERE = {
    "GraphoptError": "graphopt.errors",
    "GuardError": "graphopt.errors",
    "MissingDependencyError": "graphopt.errors",
    "ModelError": "graphopt.errors",
    "PassError": "graphopt.errors",
    "Recipe": "graphopt.pipeline.recipe",
    "Result": "graphopt.pipeline.result",
    "UsageError": "graphopt.errors",
    "compare": "graphopt.pipeline.compare",
    "load_recipe": "graphopt.pipeline.recipe_file",
    "open_model": "graphopt.model",
    "optimize": "graphopt.pipeline.optimize",
    "save_model": "graphopt.model",
    "sensitivity": "graphopt.pipeline.sensitivity",
    "to_torch": "graphopt.autograd.convert",
    "write_back": "graphopt.autograd.writeback",
}
__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("graphopt")
        except PackageNotFoundError:
            return "0+unknown"
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'graphopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
