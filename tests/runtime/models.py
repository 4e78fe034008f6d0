"""Small models for the runtime's tests."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def text_model(text: str, **weights: np.ndarray) -> ir.Model:
    """A model from ONNX text; ``weights`` become initializers (they must not be declared in the text)."""
    model = ir.from_onnx_text(text)
    for name, array in weights.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        for node in model.graph.all_nodes():
            for slot, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(slot, value)
        model.graph.register_initializer(value)
    return model


def mlp() -> ir.Model:
    rng = np.random.default_rng(0)
    return text_model(
        """<ir_version: 9, opset_import: ["": 18]>
        mlp (float[batch, 64] x) => (float[batch, 64] y) {
            h = MatMul(x, W)
            r = Relu(h)
            y = Add(r, b)
        }""",
        W=rng.normal(size=(64, 64)).astype(np.float32),
        b=np.zeros(64, np.float32),
    )


def encoder(rows: int = 50, positions: int = 24) -> ir.Model:
    """Ids, a mask, token types; positions cut from a stored row, as exporters write them."""
    rng = np.random.default_rng(1)
    return text_model(
        """<ir_version: 9, opset_import: ["": 18]>
        encoder (int64[batch, seq] input_ids, int64[batch, seq] attention_mask, int64[batch, seq] token_type_ids)
            => (float[batch, seq, 8] hidden)
        <int64[1] one = {1}, int64[1] two = {2}, int64[1] zero = {0}, int64[1] last = {-1}, float big = {-10000.0},
         float unit = {1.0}>
        {
            words = Gather(word_table, input_ids)
            types = Gather(type_table, token_type_ids)
            shape = Shape(input_ids)
            length = Slice(shape, one, two)
            picked = Slice(position_row, zero, length, one)
            places = Gather(position_table, picked)
            s1 = Add(words, types)
            s2 = Add(s1, places)
            keep = Cast<to = 1>(attention_mask)
            drop = Sub(unit, keep)
            bias = Mul(drop, big)
            wide = Unsqueeze(bias, one)
            turned = Transpose<perm = [0, 2, 1]>(s2)
            scores = MatMul(s2, turned)
            masked = Add(scores, wide)
            probs = Softmax<axis = -1>(masked)
            hidden = MatMul(probs, s2)
        }""",
        word_table=rng.normal(size=(rows, 8)).astype(np.float32),
        type_table=rng.normal(size=(2, 8)).astype(np.float32),
        position_row=np.arange(positions, dtype=np.int64)[None],
        position_table=rng.normal(size=(positions, 8)).astype(np.float32),
    )
