"""The nodes that take the place of int8 sites: standard ops that ONNX Runtime fuses on loading, its own where not."""

from __future__ import annotations

from graphopt.quantization.dynamic import DynamicWriter
from graphopt.quantization.recurrent import RecurrentWriter
from graphopt.quantization.sites import Site, Table
from graphopt.quantization.static import StaticWriter


class Int8Writer(StaticWriter, DynamicWriter, RecurrentWriter):
    """Rewrites sites of one model; weights, quantized activations and transpositions are made once and shared."""

    def write(self, site: Site) -> None:
        """Put int8 nodes in the place of ``site``; its own nodes stay behind, dead."""
        if isinstance(site, Table):
            self._replace(site.node.outputs[0], self._int8_rows(site))
        elif site.packed_attention:
            self._replace(site.node.outputs[0], self._attention(site))
        elif site.recurrent:
            self._lstm(site)
        elif self._names[id(site.node)] in self.choices.ranges:
            self._replace(site.result, self._static(site))
        else:
            self._replace(site.result, self._dynamic(site))
