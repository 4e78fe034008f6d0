"""export_hf: which class, which inputs, which outputs, and folders that are not what they seem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from graphopt.errors import ModelError, UsageError  # noqa: E402
from graphopt.exporters import export_hf  # noqa: E402
from graphopt.runtime import Session  # noqa: E402

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = SIZES | {"vocab_size": 50, "max_position_embeddings": 40}


def save(folder: Path, name: str, config: Any, **options: Any) -> Path:
    torch.manual_seed(0)
    getattr(transformers, name)(config).to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)
    return folder


def bert(folder: Path, name: str = "BertModel", **options: Any) -> Path:
    return save(folder, name, transformers.BertConfig(**BERT), **options)


def llama(folder: Path) -> Path:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, vocab_size=50, max_position_embeddings=64)
    return save(folder, "LlamaForCausalLM", config)


def t5(folder: Path) -> Path:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return save(folder, "T5ForConditionalGeneration", transformers.T5Config(**sizes, vocab_size=50))


def whisper(folder: Path) -> Path:
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_mel_bins=8,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=10,
        max_target_positions=40, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return save(folder, "WhisperForConditionalGeneration", config)


def vit(folder: Path) -> Path:
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)
    return save(folder, "ViTForImageClassification", config)


TEXT = ("input_ids", "attention_mask")
SEGMENTED = (*TEXT, "token_type_ids")


def deberta(folder: Path) -> Path:
    config = transformers.DebertaV2Config(**BERT, relative_attention=True, pos_att_type=["p2c", "c2p"])
    return save(folder, "DebertaV2ForMaskedLM", config)


@pytest.mark.parametrize(
    ("make", "output", "inputs", "outputs", "shape"),
    [
        (bert, "auto", SEGMENTED, ("last_hidden_state",), ["batch", "sequence", 16]),
        (bert, "pooled", SEGMENTED, ("sentence_embedding",), ["batch", 16]),
        (lambda f: bert(f, "BertForMaskedLM"), "auto", SEGMENTED, ("logits",), ["batch", "sequence", 50]),
        (lambda f: bert(f, "BertForMaskedLM"), "hidden", SEGMENTED, ("last_hidden_state",), ["batch", "sequence", 16]),
        (lambda f: bert(f, "BertForSequenceClassification"), "logits", SEGMENTED, ("logits",), ["batch", 2]),
        (
            lambda f: bert(f, "BertForQuestionAnswering"),
            "auto",
            SEGMENTED,
            ("start_logits", "end_logits"),
            ["batch", "sequence"],
        ),
        (llama, "auto", TEXT, ("logits",), ["batch", "sequence", 50]),
        (t5, "auto", (*TEXT, "decoder_input_ids"), ("logits",), ["batch", "decoder_sequence", 50]),
        (whisper, "auto", ("input_features", "decoder_input_ids"), ("logits",), ["batch", "decoder_sequence", 50]),
        (vit, "auto", ("pixel_values",), ("logits",), ["batch", 3]),
    ],
    ids=["bert", "pooled", "mlm", "mlm-hidden", "classifier", "answers", "llama", "t5", "whisper", "vit"],
)
def test_inputs_and_outputs(
    tmp_path: Path, make: Callable[[Path], Path], output: Any, inputs: Any, outputs: Any, shape: Any
) -> None:
    report = export_hf(make(tmp_path / "hf"), tmp_path / "m.onnx", output=output, exporter="torchscript")
    assert (report.inputs, report.outputs) == (inputs, outputs)
    assert report.verified, report.numerics
    assert len(report.checks) == 3
    (dims,) = {
        tuple(d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim) for o in _graph(report.path).output
    }
    assert list(dims) == shape


def _graph(path: Path) -> Any:
    return onnx.load(path).graph


def test_dynamo_is_tried_first(tmp_path: Path) -> None:
    report = export_hf(bert(tmp_path / "hf"), tmp_path / "m.onnx")
    assert (report.exporter, report.opset, report.failures) == ("dynamo", 18, ())


def test_weights_stored_in_bfloat16_become_float32(tmp_path: Path) -> None:
    report = export_hf(bert(tmp_path / "hf", dtype=torch.bfloat16), tmp_path / "m.onnx", exporter="torchscript")
    assert onnx.TensorProto.BFLOAT16 not in {tensor.data_type for tensor in _graph(report.path).initializer}
    assert report.verified


def test_pooled_is_the_masked_mean_scaled_to_length_one(tmp_path: Path) -> None:
    folder = bert(tmp_path / "hf")
    feed = {
        "input_ids": np.array([[5, 6, 7, 8], [9, 10, 0, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "token_type_ids": np.zeros((2, 4), np.int64),
    }
    results = {}
    for output in ("hidden", "pooled"):
        path = tmp_path / f"{output}.onnx"
        export_hf(folder, path, output=output, exporter="torchscript")
        (results[output],) = Session(path).run(feed).values()
    mean = np.stack([results["hidden"][0].mean(axis=0), results["hidden"][1, :2].mean(axis=0)])
    assert np.allclose(results["pooled"], mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)


def test_environment_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    with pytest.raises(UsageError):
        export_hf(bert(tmp_path / "hf"), tmp_path / "m.onnx", output="logits")
    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["TRANSFORMERS_OFFLINE"] == "0"


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def write_pooling(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')


@pytest.mark.parametrize(
    ("damage", "options", "kind", "message"),
    [
        (lambda f: (f / "config.json").unlink(), {}, ModelError, "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), {}, ModelError, "cannot be read as JSON"),
        (lambda f: edit_config(f, model_type=None), {}, ModelError, "has no model_type"),
        (lambda f: edit_config(f, model_type="mystery"), {}, ModelError, "'mystery' (BertModel) is unknown"),
        (lambda f: edit_config(f, model_type="mystery", auto_map={}), {}, ModelError, "code of its own"),
        (lambda f: (f / "model.safetensors").unlink(), {}, ModelError, "has no .safetensors weights; is it complete?"),
        (pickle_weights, {}, ModelError, "convert its pickled weights"),
        (cut_weights, {}, ModelError, "cannot load"),
        (lambda f: edit_config(f, num_hidden_layers=2), {}, ModelError, "lacks 16 of the weights of AutoModel"),
        (lambda f: edit_config(f, architectures=["BertForMaskedLM"]), {}, ModelError, "they would be random"),
        (lambda f: edit_config(f, vocab_size=60), {}, ModelError, ""),
        (lambda f: None, {"output": "logits"}, UsageError, "has no known head"),
        (lambda f: None, {"output": "mean"}, UsageError, "unknown output 'mean'"),
        (lambda f: None, {"attention": "flash"}, UsageError, "unknown attention 'flash'"),
        (write_pooling, {"output": "pooled"}, UsageError, "asks for pooling_mode_cls_token"),
    ],
)
def test_bad_folders_are_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], Any], options: Any, kind: type[Exception], message: str
) -> None:
    folder = bert(tmp_path / "hf")
    damage(folder)
    with pytest.raises(kind) as caught:
        export_hf(folder, tmp_path / "m.onnx", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


def test_attention_falls_back_to_what_the_architecture_has(tmp_path: Path) -> None:
    folder = deberta(tmp_path / "hf")
    with pytest.raises(UsageError, match="has no sdpa attention; use eager"):
        export_hf(folder, tmp_path / "m.onnx", attention="sdpa", exporter="torchscript")
    assert export_hf(folder, tmp_path / "m.onnx", exporter="torchscript").verified


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        export_hf(tmp_path / "nowhere", tmp_path / "m.onnx")


def test_encoder_decoders_have_no_sentence_embedding(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no sentence embedding"):
        export_hf(t5(tmp_path / "hf"), tmp_path / "m.onnx", output="pooled")
