"""Text files as feeds: sentences of equal token length share a batch, so nothing ever sees padding."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import MissingDependencyError, UsageError
from graphopt.runtime.dataset import BATCH_ROWS, Dataset, Feed
from graphopt.runtime.dims import dim_role, dim_size, symbolic_dims
from graphopt.runtime.inputs import InputFacts, Kind, input_facts
from graphopt.runtime.limits import max_length

_FIELDS = ("text", "sentence", "content", "document", "sentence1", "premise", "question")
_KEPT_LINES = 100_000  #: a longer file is sampled down to this many lines, so memory stays bounded
_DEFAULT_LENGTH = 512  #: tokens, where no position table says more or less


def from_text(
    path: Path,
    model: ir.Model,
    *,
    tokenizer: Path | str | None,
    limit: int | None,
    seed: int,
    rowwise: bool,
    rows: int = BATCH_ROWS,
) -> Dataset:
    """Sentences of a .txt (one a line) or .jsonl file, in an order that the seed decides.

    ``limit`` takes that many sentences. Raises UsageError for unreadable lines, for ids beyond the model's table and
    for inputs that text cannot fill, MissingDependencyError without the ``tokenizers`` package.
    """
    facts = input_facts(model)
    lines = _shuffled(_lines(path), seed, limit)
    if not lines:
        raise UsageError(f"data {path}: no text in it")
    if any(f.kind is Kind.TEXT for f in facts):
        return _raw_text(path, lines, facts, rowwise=rowwise, rows=rows)
    encode = _encoder(path, tokenizer, model, facts)
    groups: dict[int, list[np.ndarray]] = {}
    for line in lines:
        ids = encode(line)
        groups.setdefault(len(ids), []).append(ids)
    fixed = _fixed_batch(facts)
    step = fixed or (rows if rowwise else 1)
    batches = [group[i : i + step] for group in groups.values() for i in range(0, len(group), step)]
    random.Random(seed).shuffle(batches)

    def source() -> Iterator[Feed]:
        for batch in batches:
            filled = [batch[i % len(batch)] for i in range(fixed)] if fixed else batch
            yield _feed(np.stack(filled), facts, model)

    return Dataset(path.name, source, samples=len(lines) if rowwise else len(batches), rowwise=rowwise)


def _lines(path: Path) -> Iterator[str]:
    jsonl = path.suffix == ".jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                text = _field(path, number, line) if jsonl and line.strip() else line
                if text.strip():
                    yield text.strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"data {path}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UsageError(f"data {path}: {error.strerror}") from error


def _field(path: Path, number: int, line: str) -> str:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"data {path}: line {number} is not JSON ({error.msg})") from error
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in _FIELDS:
            if isinstance(item.get(key), str):
                return str(item[key])
        for value in item.values():
            if isinstance(value, str):
                return value
    raise UsageError(f"data {path}: line {number} has no text; expected a string or an object with a 'text' field")


def _shuffled(lines: Iterator[str], seed: int, limit: int | None) -> list[str]:
    """A seeded sample of at most ``limit`` lines, in random order, in memory that does not grow with the file."""
    rng = random.Random(seed)
    room = min(limit or _KEPT_LINES, _KEPT_LINES)
    kept: list[str] = []
    for count, line in enumerate(lines):
        if count < room:
            kept.append(line)
        elif (slot := rng.randrange(count + 1)) < room:
            kept[slot] = line
    rng.shuffle(kept)
    return kept


def _encoder(path: Path, tokenizer: Path | str | None, model: ir.Model, facts: Sequence[InputFacts]) -> Any:
    if tokenizer is None:
        raise UsageError(f"data {path}: text needs a tokenizer; give --tokenizer tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f"data {path}: text needs the package 'tokenizers'; pip install tokenizers"
        ) from error
    if not Path(tokenizer).is_file():
        raise UsageError(f"tokenizer {tokenizer}: no such file")
    try:
        made = Tokenizer.from_file(str(tokenizer))
    except Exception as error:
        raise UsageError(f"tokenizer {tokenizer}: not a tokenizer.json file ({str(error)[:150]})") from error
    ids = [f for f in facts if _role(f) == "ids"]
    if not ids:
        raise UsageError(f"data {path}: the model has no token id input; inputs: {', '.join(f.name for f in facts)}")
    bound = int(min(f.high for f in ids))
    fixed = [d for f in ids if isinstance(d := f.dims[1], int)]
    longest = max_length(model) or _DEFAULT_LENGTH
    made.no_padding()
    made.enable_truncation(min([longest, *fixed]))

    def encode(text: str) -> np.ndarray:
        found = np.asarray(made.encode(text).ids, np.int64)
        if found.size == 0:
            found = np.zeros(1, np.int64)
        if found.max() > bound:
            raise UsageError(
                f"tokenizer {tokenizer}: token id {found.max()} but input {ids[0].name!r} takes ids up to {bound}; "
                "is it this model's tokenizer?"
            )
        short = fixed[0] - found.size if fixed else 0
        return np.pad(found, (0, short), constant_values=-1) if short else found

    return encode


def _role(fact: InputFacts) -> str:
    """What text puts into an input: "ids", "mask", "types", "positions", "past", or "" when it has nothing for it."""
    name = fact.name.lower()
    if fact.kind is Kind.MASK and len(fact.dims) in (2, 3, 4):
        return "mask"
    if fact.kind is Kind.POSITIONS:
        return "positions"
    if any(word in name for word in ("token_type", "segment", "type_id")):
        return "types"
    if fact.kind is Kind.IDS and len(fact.dims) == 2:
        return "ids"
    if fact.dtype is ir.DataType.BOOL and len(fact.dims) < 2:
        return "flag"
    return "past" if "past" in name or "cache" in name else ""


def _fixed_batch(facts: Sequence[InputFacts]) -> int | None:
    found = [d for f in facts if _role(f) == "ids" and isinstance(d := f.dims[0], int)]
    return found[0] if found else None


def _feed(ids: np.ndarray, facts: Sequence[InputFacts], model: ir.Model) -> Feed:
    """One batch of ids [B, L]; -1 marks the end of rows that a fixed-length model forces to be padded."""
    sizes: dict[str, int] = {}
    free = symbolic_dims(model)
    by_name = {f.name: f for f in facts}
    for name, places in free.items():
        role = dim_role(name, places, by_name)
        sizes[name] = ids.shape[0] if role == "batch" else 0 if role == "past" else ids.shape[1]
    feed: Feed = {}
    for fact in facts:
        role = _role(fact)
        shape = tuple(dim_size(d, sizes) for d in fact.dims)
        if role == "ids":
            made = np.maximum(ids, 0)
        elif role == "mask":
            real = (ids >= 0).reshape(ids.shape[0], *([1] * (len(shape) - 2)), ids.shape[1])
            made = np.broadcast_to(real, shape)
        elif role == "positions":
            made = np.broadcast_to(np.arange(shape[-1]), shape)
        elif role in ("types", "past", "flag"):
            made = np.zeros(shape)
        else:
            raise UsageError(f"input {fact.name!r} cannot be filled from text; give arrays with data=FILE.npz")
        feed[fact.name] = np.array(made, dtype=fact.dtype.numpy())
    return feed


def _raw_text(path: Path, lines: Sequence[str], facts: Sequence[InputFacts], *, rowwise: bool, rows: int) -> Dataset:
    other = [f.name for f in facts if f.kind is not Kind.TEXT]
    if other:
        raise UsageError(f"data {path}: input {other[0]!r} cannot be filled from text; give arrays with data=FILE.npz")
    step = rows if rowwise else 1

    def source() -> Iterator[Feed]:
        for i in range(0, len(lines), step):
            batch = np.array(lines[i : i + step], dtype=object)
            yield {f.name: batch.reshape(-1, *([1] * (len(f.dims) - 1))) if f.dims else batch[0] for f in facts}

    return Dataset(path.name, source, samples=len(lines), rowwise=rowwise)
