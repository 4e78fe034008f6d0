"""The front door to data: a specification as users write it becomes a Dataset that fits the model."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.runtime.dataset import Dataset, Feed, is_rowwise
from graphopt.runtime.inputs import input_facts
from graphopt.runtime.sources import from_folder, from_function, from_store
from graphopt.runtime.splits import Splits, split_dataset
from graphopt.runtime.synthetic import probe_feeds, synthesize
from graphopt.runtime.text import from_text

__all__ = ["Dataset", "Feed", "Splits", "load_dataset", "probe_feeds", "split_dataset", "synthesize"]


def load_dataset(
    spec: str | Path,
    model: ir.Model,
    *,
    tokenizer: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The data that ``spec`` names, checked against the inputs of ``model``.

    ``spec`` is an ``.npz`` file (one array [N, ...] per input, or ``<input>_<i>`` per sample), a folder of ``.npz``,
    ``.npy`` or ONNX ``test_data_set_*/input_*.pb``, a ``.txt`` or ``.jsonl`` file of text (with ``tokenizer``), or
    ``file.py:function`` / ``module:function`` returning an iterable of dicts. Nothing is unpickled. ``limit`` caps the
    number of samples; ``seed`` decides the order of text.

    Raises UsageError naming the file, the input, and the shape or type expected and found: when opening, or for what
    only reading can show, while iterating.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"data limit must be at least 1, found {limit}")
    if not str(spec):
        raise UsageError("data: the specification is empty; give a file, a folder or module:function")
    path = Path(spec)
    facts = input_facts(model)
    if not facts:
        raise UsageError(f"data {spec}: the model has no inputs to feed")
    rowwise = is_rowwise(model)
    if path.is_dir():
        return from_folder(path, facts, rowwise=rowwise).head(limit)
    if path.is_file():
        if path.suffix == ".npz":
            return from_store(path, facts, rowwise=rowwise).head(limit)
        if path.suffix in (".txt", ".jsonl"):
            return from_text(path, model, tokenizer=tokenizer, limit=limit, seed=seed, rowwise=rowwise)
        hint = "; a Python file needs a function: FILE.py:function" if path.suffix == ".py" else ""
        raise UsageError(f"data {spec}: unknown kind of file; use .npz, .txt, .jsonl or a folder{hint}")
    text = str(spec)
    if ":" in text and text.rpartition(":")[2].isidentifier():
        return from_function(text, facts, rowwise=rowwise).head(limit)
    raise UsageError(f"data {spec}: no such file or folder")
