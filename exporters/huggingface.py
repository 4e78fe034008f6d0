"""Export a local Hugging Face model folder (config.json and safetensors); nothing is ever downloaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt.errors import ModelError, UsageError

from .report import ExporterChoice, ExportReport, ExportSpec
from .tasks import Output, read_task, task_spec
from .torch_export import export_torch, require, require_torch
from .verify import reason

if TYPE_CHECKING:
    import torch

Attention = Literal["auto", "eager", "sdpa"]
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def export_hf(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    exporter: ExporterChoice = "auto",
    attention: Attention = "auto",
    output: Output = "auto",
    tolerance: float | None = None,
) -> ExportReport:
    """Export the model in ``folder`` in float32 and compare the file with torch; see ``export_torch``.

    ``output`` is "logits" (what the architecture's head returns), "hidden" (``last_hidden_state [B, S, D]``, without
    the head), "pooled" (``sentence_embedding [B, D]``: mean over unmasked tokens, unit length) or "auto": logits where
    the architecture named in config.json has a head, hidden states otherwise.

    ``attention`` is how attention is written: "eager" as matrix products and a softmax, "sdpa" through torch's fused
    function, "auto" as transformers prefers for the architecture.

    Inputs by kind of model, int64 unless said otherwise, B, S and T dynamic:
      encoders and decoders   ``input_ids [B, S]``, ``attention_mask [B, S]``, ``token_type_ids [B, S]`` where used
      encoder-decoders        ``input_ids [B, S]``, ``attention_mask [B, S]``, ``decoder_input_ids [B, T]``
      speech                  ``input_features [B, M, F]`` float32, ``decoder_input_ids [B, T]``
      images                  ``pixel_values [B, C, H, W]`` float32
    Decoders are exported without a key-value cache.

    Raises: ModelError for a folder that is incomplete, damaged, of an unknown architecture, or that needs code of its
    own; UsageError for an output the architecture does not have; MissingDependencyError without torch and transformers;
    and what ``export_torch`` raises.
    """
    spec = load_hf(folder, attention=attention, output=output)
    return export_torch(
        spec.module,
        spec.inputs,
        path,
        dynamic_axes=spec.dynamic_axes,
        output_names=spec.output_names,
        opset=opset,
        exporter=exporter,
        tolerance=tolerance,
    )


def load_hf(folder: str | os.PathLike[str], *, attention: Attention = "auto", output: Output = "auto") -> ExportSpec:
    """Load the folder's model, in float32 and evaluation mode, as a module with plain tensor inputs and outputs."""
    require_torch()
    require("transformers", "a model folder")
    if attention not in ("auto", "eager", "sdpa"):
        raise UsageError(f"unknown attention {attention!r}; use auto, eager or sdpa")
    root = Path(folder)
    config = _read_config(root)
    with _offline():
        task = read_task(root, config, output)
        model = _load_model(root, task.class_name, attention, headless=task.headless)
        return task_spec(task, model)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a local model folder with config.json and model.safetensors")
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no config.json; give a model folder as save_pretrained writes it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {reason(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{file} has no model_type, so it does not say which architecture it describes")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        advice = (
            "convert its pickled weights with save_pretrained(safe_serialization=True)"
            if pickled
            else "is it complete?"
        )
        raise ModelError(f"{folder} has no .safetensors weights; {advice}")
    return config


def _load_model(folder: Path, class_name: str, attention: Attention, *, headless: bool) -> torch.nn.Module:
    """Load through a transformers class; refuse weights that would be missing and therefore random."""
    import torch
    import transformers

    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "dtype": torch.float32,
        "output_loading_info": True,
    }
    if attention != "auto":
        options["attn_implementation"] = attention
    loader = getattr(transformers, class_name)
    try:
        if headless:  # a pooler would be dead weight, and checkpoints with a head do not have one
            try:
                model, info = loader.from_pretrained(folder, add_pooling_layer=False, **options)
            except TypeError:
                model, info = loader.from_pretrained(folder, **options)
        else:
            model, info = loader.from_pretrained(folder, **options)
    except Exception as error:
        if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            raise UsageError(f"{folder}: this architecture has no sdpa attention; use eager") from error
        raise ModelError(f"cannot load {folder} as {class_name}: {reason(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not (headless and name.startswith("pooler.")))
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the weights of {class_name}, such as {missing[0]}; "
            "they would be random, so nothing is exported"
        )
    if info["mismatched_keys"]:
        raise ModelError(
            f"{folder} has weights of other shapes than its config.json says: {info['mismatched_keys'][0]}"
        )
    module: torch.nn.Module = model.eval()
    return module


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep transformers off the network and off the terminal, and put its settings back."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
