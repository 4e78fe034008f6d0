"""Replace float weights and the products with them by int8."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_validator

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.quantization.sites import Linear, Site, Table, by_weight, find_sites
from graphopt.quantization.weights import Codes, quantize, read_matrix
from graphopt.quantization.writer import Choices, Int8Writer
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan


class Int8Config(PassConfig):
    """Parameters of ``int8``."""

    mode: Literal["auto", "dynamic", "static"] = "auto"
    per_channel: bool = True
    embeddings: bool = True
    exclude: list[str] = Field(default_factory=list)
    exclude_ops: list[str] = Field(default_factory=list)


class Int8(Pass[Int8Config]):
    """int8."""

    name: ClassVar[str] = "int8"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.PRECISION
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    Config: ClassVar[type[PassConfig]] = Int8Config

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """x."""
        sites, declined = find_sites(view.model)
        codes: dict[str, Codes] = {}
        changes = []
        for weight, axis, listed in by_weight(sites):
            c = quantize(read_matrix(weight.const_value), axis)
            for s in listed:
                codes[s.name] = c
                changes.append(Change(s.name, "f", "i", 0))
        return Plan(tuple(changes), tuple(declined), payload=Choices(codes))

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """x."""
        sites = [s for s in find_sites(editor.model)[0] if s.name in plan.payload.codes]
        writer = Int8Writer(editor, plan.payload, sites)
        for site in sites:
            writer.write(site)
        editor.drop_dead()
