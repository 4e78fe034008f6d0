"""What every writer of quantized sites does: nodes beside the old ones, shared initializers, gains, biases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.quantization.balance import norm_before
from graphopt.quantization.finding import Scope, find_sites
from graphopt.quantization.sites import Linear, Site
from graphopt.quantization.weights import Codes


class SiteChoices(Protocol):
    """What a draft decides for the sites that it names, at least."""

    @property
    def codes(self) -> Mapping[str, Codes]:
        """By site name; those of sites that share a weight are one object."""
        ...

    @property
    def gains(self) -> Mapping[str, np.ndarray]:
        """By activation name; the codes of their readers are those of ``W / gain``."""
        ...


ChoicesT = TypeVar("ChoicesT", bound=SiteChoices)


class SiteWriter(ABC, Generic[ChoicesT]):
    """Rewrites the sites of one model that ``choices`` names; what several sites need is made once."""

    prefix: ClassVar[str]  #: of the names of new values
    scope: ClassVar[Scope]  #: what sites are looked for in

    @classmethod
    def rewrite(cls, editor: GraphEditor, choices: ChoicesT) -> None:
        """Write all that ``choices`` names into the editor's model."""
        sites = [site for site in find_sites(editor.model, cls.scope)[0] if site.name in choices.codes]
        writer = cls(editor, choices, sites)
        for site in sites:
            writer.write(site)
        editor.drop_dead()

    @classmethod
    def written(cls, model: ir.Model, choices: ChoicesT) -> ir.Model:
        """A rewritten clone."""
        clone = clone_model(model)
        cls.rewrite(GraphEditor(clone), choices)
        return clone

    def __init__(self, editor: GraphEditor, choices: ChoicesT, sites: Sequence[Site]) -> None:
        self.editor, self.choices = editor, choices
        self.codes, self.gains = choices.codes, choices.gains
        self._weights: dict[tuple[object, ...], ir.Value] = {}
        self._activations: dict[tuple[object, ...], list[ir.Value]] = {}
        self._norms = self._norms_before(sites)
        # Replacing a site renames what it made, which another site may read.
        products = [site for site in sites if isinstance(site, Linear) and not site.recurrent]
        self._names = {id(site.node): site.activation.name or "" for site in products}

    @abstractmethod
    def write(self, site: Site) -> None:
        """Put the new nodes in the place of ``site``; its own nodes stay behind, dead."""

    def _norms_before(self, sites: Sequence[Site]) -> dict[str, ir.Node]:
        """The normalisations that take a gain themselves, so that no Mul is needed, by the activation they make."""
        readers: dict[str, list[Linear]] = {}
        for site in sites:
            if isinstance(site, Linear) and (site.activation.name or "") in self.gains:
                readers.setdefault(site.activation.name or "", []).append(site)
        found = {name: norm_before(listed) for name, listed in readers.items()}
        return {name: node for name, node in found.items() if node is not None}

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """``new`` takes over ``old``'s readers, and its name."""
        if old.type is not None:
            new.type, new.shape = old.type, old.shape
        output = old.is_graph_output()
        self.editor.replace_uses(old, new)
        if not output:
            name = old.name
            old.name = self.editor.fresh_name(f"{name}_float")
            new.name = name

    def _add(
        self, op: str, inputs: Sequence[ir.Value | None], site: Site, *, domain: str = "", **attributes: object
    ) -> ir.Value:
        """One node before the site's. Its value has a short name: a thousand long ones would be felt in the file."""
        (out,) = self.editor.insert_node(
            op,
            inputs,
            before=site.node,
            domain=domain,
            attributes=attributes,
            outputs=[self.prefix],
            name=f"{site.name}/{op}",
        )
        return out

    def _initializer(self, key: tuple[object, ...], hint: str, array: np.ndarray) -> ir.Value:
        if key not in self._weights:
            self._weights[key] = self.editor.add_initializer(hint, array)
        return self._weights[key]

    def _input(self, site: Linear) -> ir.Value:
        """The activation, with its gains applied."""
        x = site.node.inputs[0]  # not ``site.activation``: the site before may have been replaced already
        assert x is not None
        name = self._names[id(site.node)]
        gain = self.gains.get(name)
        if gain is None:
            return x
        key = ("gain", id(x), id(site.node.graph))
        if key not in self._activations:
            norm = self._norms.get(name)
            if norm is not None:
                self._scale_norm(norm, gain)
                self._activations[key] = [x]
                return x
            stored = self.editor.add_initializer(f"{x.name}_gain", gain.astype(np.float16))
            factor = self._add("Cast", [stored], site, to=site.dtype)
            self._activations[key] = [self._add("Mul", [x, factor], site)]
        return self._activations[key][0]

    def _scale_norm(self, norm: ir.Node, gain: np.ndarray) -> None:
        """Let a normalisation put out ``gain`` times as much."""
        for index, value in enumerate(norm.inputs[1:3], start=1):
            if value is not None and value.const_value is not None:
                array = value.const_value.numpy()
                self.editor.set_initializer(value, (array * gain).astype(array.dtype), uses=[(norm, index)])

    def _biased(self, site: Linear, result: ir.Value) -> ir.Value:
        """``Add(result, bias)``, in this order and of this type whatever it was before: only so it is fused."""
        if site.bias is None:
            return result
        return self._add("Add", [result, self._addend(site)], site)

    def _addend(self, site: Linear) -> ir.Value:
        """What a site with a bias adds, times its factor where that is not one."""
        assert site.bias is not None
        added = site.bias.value if site.bias.node is not None else site.node.inputs[2]
        assert added is not None
        if site.bias.scale == 1.0 or added.const_value is None:
            return added
        array = added.const_value.numpy()
        scaled = (array * np.float32(site.bias.scale)).astype(array.dtype)
        return self.editor.add_initializer(f"{added.name}_scaled", scaled)
