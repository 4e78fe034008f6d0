"""The only door to model files: open, save, clone, hash, describe.

In memory a model is an ``onnx_ir.Model`` whose functions are inlined, whose nodes are in order, and in which every node
and value has a name of its own over all scopes. Weights on disk stay there until somebody asks for them.
"""

from graphopt.model.description import (
    Signature,
    Sizes,
    ValueInfo,
    clone_model,
    drop_exporter_notes,
    file_digest,
    model_bytes,
    model_sizes,
    provenance,
    set_provenance,
    signature,
    source_path,
    stored_bytes,
    with_graph_of,
)
from graphopt.model.foreign import OpaqueType, SparseTensor
from graphopt.model.graphs import all_graphs, bodies, uncollected, walk_nodes
from graphopt.model.hashing import attribute_bytes, digest, structure_digest, tensor_digest
from graphopt.model.interface import interface_fault
from graphopt.model.names import Names, make_names_unique
from graphopt.model.nodes import remove_node, replace_input
from graphopt.model.opening import is_standard_op, open_model
from graphopt.model.operators import operator_fault
from graphopt.model.proto import to_proto
from graphopt.model.saving import EXTERNAL_ABOVE, file_bytes, replaceable, save_model
from graphopt.model.spilling import SpillFolder
from graphopt.model.tensors import FileTensor, all_tensors, same_bytes, string_data, tensor_chunks, tensor_window
from graphopt.model.upgrading import upgrade_opset

__all__ = [
    "EXTERNAL_ABOVE",
    "FileTensor",
    "Names",
    "OpaqueType",
    "Signature",
    "Sizes",
    "SparseTensor",
    "SpillFolder",
    "ValueInfo",
    "all_graphs",
    "all_tensors",
    "attribute_bytes",
    "bodies",
    "clone_model",
    "digest",
    "drop_exporter_notes",
    "file_bytes",
    "file_digest",
    "interface_fault",
    "is_standard_op",
    "make_names_unique",
    "model_bytes",
    "model_sizes",
    "open_model",
    "operator_fault",
    "provenance",
    "remove_node",
    "replace_input",
    "replaceable",
    "same_bytes",
    "save_model",
    "set_provenance",
    "signature",
    "source_path",
    "stored_bytes",
    "string_data",
    "structure_digest",
    "tensor_chunks",
    "tensor_digest",
    "tensor_window",
    "to_proto",
    "uncollected",
    "upgrade_opset",
    "walk_nodes",
    "with_graph_of",
]
