"""The read-only view a pass plans on: one model and every fact about it, each computed once when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.model import clone_model

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np

    from graphopt.analysis.axes import AxisAnalysis
    from graphopt.analysis.blocks import Structure
    from graphopt.analysis.cost import CostTable
    from graphopt.analysis.shapes import ShapeTable


class GraphView:
    """Facts about ``model``, which must not be edited while the view is in use (make a new view afterwards).

    With ``shared`` the model belongs to somebody else: ``view.model`` is then a private copy, made when asked for.
    ``example`` gives a real feed, or None, for models that do not run on synthetic ones.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        provider: str = "cpu",
        shared: bool = False,
        example: Callable[[], dict[str, np.ndarray] | None] | None = None,
    ) -> None:
        self._given = model
        self._shared = shared
        self._example = example
        self.provider = provider

    @cached_property
    def model(self) -> ir.Model:
        """The model to look at; the pipeline hands this very object to ``apply``."""
        return clone_model(self._given) if self._shared else self._given

    @property
    def seen(self) -> bool:
        """Whether anybody has asked for the model."""
        return "model" in self.__dict__

    def clone(self) -> ir.Model:
        """A copy to edit freely, for a plan that carries the whole rewritten model."""
        return clone_model(self._given)

    @cached_property
    def graph(self) -> nx.MultiDiGraph[Any]:
        """Nodes and values as a frozen networkx graph; see ``graphopt.analysis.to_networkx``."""
        from graphopt.analysis.network import to_networkx

        return to_networkx(self.model)

    @cached_property
    def shapes(self) -> ShapeTable:
        """Concrete sizes of every value at two assignments of the dynamic dims."""
        from graphopt.analysis.shapes import measure_shapes

        return measure_shapes(self.model, provider=self.provider, example=self._example)

    @cached_property
    def axes(self) -> AxisAnalysis:
        """Which axes of which tensors move together: the groups that can be pruned, and those that cannot."""
        from graphopt.analysis.axes import analyse_axes

        return analyse_axes(self.model, self.shapes)

    @cached_property
    def structure(self) -> Structure:
        """Residual blocks and repeated layers of every trunk."""
        from graphopt.analysis.blocks import find_structure

        return find_structure(self.model)

    @cached_property
    def cost(self) -> CostTable:
        """Parameters, bytes and multiply-accumulates per node."""
        from graphopt.analysis.cost import count_cost

        return count_cost(self.model, self.shapes)
