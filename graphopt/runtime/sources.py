"""Feeds from .npz files, folders of arrays, ONNX test data, and Python functions."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError, UsageError
from graphopt.runtime.arrays import ArrayStore
from graphopt.runtime.conform import check_shape, conform, describe, shown
from graphopt.runtime.dataset import BATCH_ROWS, Dataset, Feed
from graphopt.runtime.inputs import InputFacts, Kind


def from_store(path: Path, facts: Sequence[InputFacts], *, rowwise: bool) -> Dataset:
    """One array per input, [N, ...] or one per sample (``<input>_<i>``)."""
    store = ArrayStore(path)
    where = f"data {path}"
    if all(f.name in store.names for f in facts):
        return _stacked(store, where, facts, rowwise=rowwise)
    numbered = _numbered(store.names, facts)
    if numbered:
        return Dataset(
            path.name,
            lambda: _per_sample(store, where, facts, numbered),
            samples=None if rowwise else len(numbered),
            rowwise=rowwise,
        )
    missing = [f"{f.name!r} {describe(f)}" for f in facts if f.name not in store.names]
    raise UsageError(f"{where}: no array for input {', '.join(missing)}; found {_listing(store.names)}")


def _stacked(store: ArrayStore, where: str, facts: Sequence[InputFacts], *, rowwise: bool) -> Dataset:
    """Arrays with the samples along axis 0: rows of the batch axis, or, one rank higher, whole inputs."""
    shapes = {f.name: store.header(f.name)[0] for f in facts}
    for fact in facts:
        if len(shapes[fact.name]) - len(fact.dims) not in (0, 1) or not shapes[fact.name]:
            raise UsageError(
                f"{where}: input {fact.name!r} must have shape {shown(fact.dims)}, found {list(shapes[fact.name])}"
            )
    extra = {f.name: len(shapes[f.name]) == len(f.dims) + 1 for f in facts}
    fixed = {f.name: f.dims[0] for f in facts if not extra[f.name] and isinstance(f.dims[0], int)}
    one_each = any(extra.values()) or bool(fixed)  # a feed is one sample: batch axes come one row at a time too
    rows: dict[str, int] = {}
    for fact in facts:
        name, count = fact.name, shapes[fact.name][0]
        rows[name] = fixed.get(name, 1 if one_each else BATCH_ROWS if rowwise else max(count, 1))
        if rows[name] == 0 or (name in fixed and count % rows[name]):
            raise UsageError(
                f"{where}: input {name!r} must have shape {shown(fact.dims)}: {count} rows do not divide into batches"
            )
        check_shape(where, shapes[name][1:] if extra[name] else (fixed.get(name, count), *shapes[name][1:]), fact)
    counts = {name: shape[0] for name, shape in shapes.items()}
    feeds = {name: -(-count // rows[name]) for name, count in counts.items()}
    if len(set(feeds.values())) > 1 or (rowwise and len(set(counts.values())) > 1):
        listed = ", ".join(f"{n}: {c}" for n, c in counts.items())
        raise UsageError(f"{where}: inputs hold different numbers of samples ({listed})")
    number = next(iter(feeds.values()))

    def source() -> Iterator[Feed]:
        with ExitStack() as stack:
            streams = []
            for fact in facts:
                size, total = rows[fact.name], counts[fact.name]
                stream = store.rows(fact.name, [min(size, total - i * size) for i in range(number)])
                stack.callback(stream.close)
                streams.append(stream)
            for parts in zip(*streams, strict=True):
                feed = {f.name: (p[0] if extra[f.name] else p) for f, p in zip(facts, parts, strict=True)}
                yield conform(where, feed, facts)

    samples = None if rowwise and one_each else next(iter(counts.values())) if rowwise else number
    return Dataset(store.path.name, source, samples=samples, rowwise=rowwise)


def _numbered(names: Sequence[str], facts: Sequence[InputFacts]) -> list[int]:
    """Indices i for which every input has an array ``<input>_<i>``; empty when some input has none at all."""
    found: list[set[int]] = []
    for fact in facts:
        pattern = re.compile(re.escape(fact.name) + r"_(\d+)$")
        found.append({int(m.group(1)) for n in names if (m := pattern.match(n))})
    if not found or not all(found):
        return []
    if len({frozenset(f) for f in found}) > 1:
        odd = sorted({n for f in found for n in f if not all(n in other for other in found)})
        raise UsageError(f"sample {odd[0]} has no array for some input; every input needs <input>_{odd[0]}")
    return sorted(found[0])


def _per_sample(store: ArrayStore, where: str, facts: Sequence[InputFacts], numbers: Sequence[int]) -> Iterator[Feed]:
    for number in numbers:
        spelled = {f.name: _spelling(store.names, f.name, number) for f in facts}
        feed = {name: store.load(spelling) for name, spelling in spelled.items()}
        yield conform(f"{where}, sample {number}", _with_batch_axis(feed, facts), facts)


def _spelling(names: Sequence[str], name: str, number: int) -> str:
    return next(n for n in names if re.fullmatch(re.escape(name) + rf"_0*{number}", n))


def _with_batch_axis(feed: Feed, facts: Sequence[InputFacts]) -> Feed:
    """Samples without their batch axis get one."""
    return {
        f.name: feed[f.name][None] if feed[f.name].ndim == len(f.dims) - 1 else feed[f.name]
        for f in facts
        if f.kind is not Kind.OTHER
    } | {f.name: feed[f.name] for f in facts if f.kind is Kind.OTHER}


def from_folder(path: Path, facts: Sequence[InputFacts], *, rowwise: bool) -> Dataset:
    """A folder of .npz files (each read as ``from_store`` reads one), of .npy files, or of ONNX test data."""
    sets = [path] if list(path.glob("input_*.pb")) else sorted(path.glob("test_data_set_*"), key=_natural)
    if sets:
        known_size = None if rowwise else len(sets)
        return Dataset(path.name, lambda: _test_data(sets, facts), samples=known_size, rowwise=rowwise)
    archives = sorted(path.glob("*.npz"), key=_natural)
    if archives:
        parts = [from_store(p, facts, rowwise=rowwise) for p in archives]
        known = [p.samples for p in parts]
        total = sum(k for k in known if k is not None) if None not in known else None
        return Dataset(path.name, lambda: (feed for part in parts for feed in part), samples=total, rowwise=rowwise)
    if list(path.glob("*.npy")):
        return from_store(path, facts, rowwise=rowwise)
    raise UsageError(f"data {path}: no .npz, .npy or test_data_set_*/input_*.pb in this folder")


def _test_data(sets: Sequence[Path], facts: Sequence[InputFacts]) -> Iterator[Feed]:
    import onnx
    import onnx_ir as ir

    names = [f.name for f in facts]
    for folder in sets:
        feed: Feed = {}
        for file in sorted(folder.glob("input_*.pb"), key=_natural):
            proto = onnx.TensorProto()
            try:
                proto.ParseFromString(file.read_bytes())
                if proto.data_location == onnx.TensorProto.EXTERNAL:
                    raise UsageError(f"data {file}: keeps its values in another file, which is not supported")
                array = ir.serde.deserialize_tensor(proto).numpy()
            except UsageError:
                raise
            except Exception as error:
                raise UsageError(f"data {file}: not an ONNX tensor ({str(error).splitlines()[0][:150]})") from error
            index = int(file.stem.rpartition("_")[2]) if file.stem.rpartition("_")[2].isdigit() else -1
            name = proto.name if proto.name in names else (names[index] if 0 <= index < len(names) else proto.name)
            feed[name] = array
        yield conform(f"data {folder}", feed, facts)


def _natural(path: Path) -> list[int | str]:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)]


def from_function(spec: str, facts: Sequence[InputFacts], *, rowwise: bool) -> Dataset:
    """``file.py:function`` or ``module:function``: called without arguments, it returns an iterable of dicts."""
    target, _, attribute = spec.rpartition(":")
    made = _import(spec, target, attribute)
    if not callable(made) and isinstance(made, Iterator):
        raise UsageError(f"data {spec}: an iterator can be read only once; give a function that makes it")

    def source() -> Iterator[Feed]:
        for number, item in enumerate(_items(spec, made)):
            if not isinstance(item, dict):
                raise UsageError(f"data {spec}: item {number} must be a dict of arrays, found {type(item).__name__}")
            try:
                feed = {str(k): np.asarray(v) for k, v in item.items()}
            except ValueError as error:
                raise UsageError(f"data {spec}: item {number} holds no arrays ({error})") from error
            yield conform(f"data {spec}, item {number}", feed, facts)

    return Dataset(spec, source, samples=None, rowwise=rowwise)


def _items(spec: str, made: Any) -> Iterator[Any]:
    """What the user's function returns, one by one. Raises UsageError for whatever it raises."""
    try:
        items: Iterable[Any] = made() if callable(made) else made
        if not isinstance(items, Iterable):
            kind = type(items).__name__
            raise UsageError(f"data {spec}: must return an iterable of dicts, returned {kind}")
        yield from items
    except GraphoptError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"data {spec}: failed: {type(error).__name__}: {error}") from error


def _import(spec: str, target: str, attribute: str) -> Any:
    try:
        if target.endswith(".py"):
            path = Path(target)
            if not path.is_file():
                raise UsageError(f"data {spec}: no such file {target}")
            found = importlib.util.spec_from_file_location(f"graphopt_data_{path.stem}", path)
            if found is None or found.loader is None:
                raise UsageError(f"data {spec}: {target} cannot be imported")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            try:
                module = importlib.import_module(target)
            finally:
                sys.path.remove(str(Path.cwd()))
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"data {spec}: importing {target} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise UsageError(f"data {spec}: {target} has no {attribute!r}")
    return getattr(module, attribute)


def _listing(names: Sequence[str]) -> str:
    shown_names = ", ".join(names[:8])
    return f"{shown_names}, ... ({len(names)} arrays)" if len(names) > 8 else shown_names or "nothing"
