"""ONNX Runtime sessions on in-memory models: any value as output, weights shared, no silent fall-back."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.runtime.exact import unshared
from graphopt.runtime.provider import check_provider, resolve_provider
from graphopt.runtime.serialized import SerializedModel, serialize, weight_memory

#: Floats that are given to a model in its own width: one model of a comparison may be in half precision.
_WIDTHS = {"float32", "float16", "bfloat16"}
#: ONNX Runtime's type strings that its numpy interface cannot carry; their bits travel through OrtValues.
_BITS = {
    "bfloat16": ir.DataType.BFLOAT16,
    "float8e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "float8e4m3fnuz": ir.DataType.FLOAT8E4M3FNUZ,
    "float8e5m2": ir.DataType.FLOAT8E5M2,
    "float8e5m2fnuz": ir.DataType.FLOAT8E5M2FNUZ,
}
#: What ONNX Runtime puts in front of its messages: where in its source, and which file it was loading.
_PLACE = re.compile(r"(?:/\S*/)?[\w-]+\.(?:cc|cpp|cu|cuh|h|hpp|inc):\d+ ")
_SIGNATURE_TAIL = re.compile(r"(?: const| noexcept|::<lambda\([^)]*\)>| \[with [^]]*\])*")
_WORD = re.compile(r"[\w:~]+ ")
_LOADING = re.compile(r"^Load model from .+? failed: ?")
_NUMPY = {
    "float": "float32",
    "double": "float64",
    "string": "object",
    **{kind: dtype.numpy().name for kind, dtype in _BITS.items()},
}


class Session:
    """A model loaded in ONNX Runtime.

    Args:
        model: in memory (never edited; its weights are mapped or shared, not copied), or the path of a file, which is
            then read by ONNX Runtime itself as a user's program would.
        provider: short name; see ``graphopt.runtime.provider``.
        threads: threads inside one operator; None lets ONNX Runtime take the physical cores.
        optimize: False switches every graph optimisation of ONNX Runtime off: each named value then exists as written.
        exact: on x86 CPUs without VNNI, which add products of uint8 and int8 in 16 bits, take slower kernels that do
            not overflow. ONNX Runtime does so in the main graph, not in bodies.
        outputs: any values of the main graph, in the order wanted; None for the graph's own outputs.
        label: what error messages call the model.
        loaded: write the graph that is really run to this file, its weights to another beside it.
        profile: record how long each operator takes, in a file whose name begins so; see ``end_profile``.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        UsageError: an output or the provider's name is unknown.
        MissingDependencyError: the provider is not installed or cannot start.
    """

    def __init__(
        self,
        model: ir.Model | Path | str,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        optimize: bool = True,
        exact: bool = False,
        outputs: Sequence[str] | None = None,
        label: str | None = None,
        profile: Path | None = None,
        loaded: Path | None = None,
    ) -> None:
        providers = resolve_provider(provider)
        self.label = label or (f"model {model.graph.name!r}" if isinstance(model, ir.Model) else str(model))
        self.threads = threads
        if isinstance(model, str | Path) and (outputs is not None or exact):
            from graphopt.model import open_model

            model = open_model(model)
        watched = outputs is not None and profile is None
        options = _options(threads=threads, optimize=optimize, watched=watched, accelerated=len(providers) > 1)
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if loaded is not None:
            options.optimized_model_filepath = str(loaded)
            for key, value in (("file_name", f"{loaded.name}.data"), ("min_size_in_bytes", "1024")):
                options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        self._keep_alive: list[Any] = []
        serialized: SerializedModel | None = None
        if isinstance(model, ir.Model):
            serialized = serialize(unshared(model) if exact else model, outputs)
            self._hand_over(serialized, options, shared=not exact)
        source: Any = serialized.proto if serialized is not None else str(model)
        self._session = self._load(source, options, providers)
        self.providers: list[str] = list(self._session.get_providers())
        check_provider(provider, self.providers)
        self._keep_alive = [v for v in self._keep_alive if not isinstance(v, bytes)]

        self._types: dict[str, str] = {i.name: _inner(i.type) for i in self._session.get_inputs()}
        self._overridable: dict[str, str] = {
            i.name: _inner(i.type) for i in self._session.get_overridable_initializers()
        }
        self._ranks: dict[str, tuple[int | str | None, ...]] = {
            i.name: tuple(i.shape or ()) for i in self._session.get_inputs() if i.type.startswith("tensor")
        }
        self._result_types = {o.name: _inner(o.type) for o in self._session.get_outputs()}
        self._constants = dict(serialized.constants) if serialized is not None else {}
        self.inputs: list[str] = list(self._types)
        self._computed: list[str] = [o.name for o in self._session.get_outputs()]
        self.outputs: list[str] = list(dict.fromkeys(outputs)) if outputs is not None else list(self._computed)
        wanted = set(self.outputs)
        self._computed = [n for n in self._computed if n in wanted]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Feed entries that are no input of the model are ignored.

        Floats of 16 and 32 bits are cast to what the model takes.

        Raises UsageError for a missing input, a wrong type or a shape the model does not take, ModelError when an
        operator fails.
        """
        given = self._checked(feed)
        found: dict[str, np.ndarray] = {}
        if self._computed:
            try:
                found = self._run(given)
            except Exception as error:
                shapes = ", ".join(f"{n}{list(a.shape)}" for n, a in given.items())
                message = f"{self.label} failed in ONNX Runtime on {shapes}: {first_line(error)}"
                if type(error).__name__ == "InvalidArgument" and "Got invalid dimensions" in str(error):
                    raise UsageError(message) from error
                raise ModelError(message) from error
        for name in self.outputs:
            if name in found:
                continue
            found[name] = self._constants[name].numpy() if name in self._constants else np.asarray(feed[name])
        return {name: found[name] for name in self.outputs}

    def placement(self) -> dict[str, int]:
        """How many nodes each provider runs, after ONNX Runtime's optimisation; empty where it does not tell.

        Only recorded for accelerated providers.
        """
        counts: dict[str, int] = {}
        try:
            for part in self._session.get_provider_graph_assignment_info():
                counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        except Exception:  # recording is off, or this onnxruntime does not record
            return {}
        return counts

    def end_profile(self) -> Path:
        """Stop recording; the file with the events so far. For a session made with ``profile``."""
        return Path(self._session.end_profiling())

    # -- building -------------------------------------------------------------------------------------------------
    def _hand_over(self, serialized: SerializedModel, options: Any, *, shared: bool) -> None:
        """Give the weights to the session by memory.

        As external initializers their values can be folded; naming them as shared initializers too makes ONNX Runtime
        drop its own copy after folding, so sessions on one model hold its weights once. It cannot rewrite shared ones.
        """
        names, values = [], []
        for name, tensor in serialized.weights.items():
            memory = weight_memory(tensor)
            value = _ort_value(memory, tensor.dtype)
            names.append(name)
            values.append(value)
            self._keep_alive.append((memory, value))
            if shared and name not in serialized.overridable:
                options.add_initializer(name, value)
        if names:
            options.add_external_initializers(names, values)
        if serialized.folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", serialized.folder)
        if serialized.packed:
            buffers = [tensor.tobytes() for tensor in serialized.packed.values()]
            options.add_external_initializers_from_files_in_memory(
                list(serialized.packed), buffers, [len(b) for b in buffers]
            )
            self._keep_alive.extend(buffers)

    def _load(self, source: Any, options: Any, providers: list[str]) -> Any:
        import onnxruntime as ort

        try:
            session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run {self.label}: {first_line(error)}") from error
        session.disable_fallback()
        return session

    # -- running --------------------------------------------------------------------------------------------------
    def _checked(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given: dict[str, np.ndarray] = {}
        for name, kind in self._types.items():
            if name not in feed:
                raise UsageError(f"{self.label} needs input {name!r}; given: {', '.join(feed) or 'nothing'}")
            value = feed[name]
            if name not in self._ranks:  # a sequence or an optional
                given[name] = value
                continue
            array = np.asarray(value)
            expected = _NUMPY.get(kind, kind)
            if array.dtype.name != expected and {array.dtype.name, expected} <= _WIDTHS:
                array = array.astype(_BITS[kind].numpy() if kind in _BITS else expected)
            if array.dtype.name != expected and not (kind == "string" and array.dtype.kind in "OUS"):
                raise UsageError(f"input {name!r} of {self.label} must be {expected}, found {array.dtype.name}")
            given[name] = array
        given.update({name: np.asarray(feed[name]) for name in self._overridable if name in feed})
        return given

    def _run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        kinds = {**self._types, **self._overridable}
        if not any(k in _BITS for k in (*kinds.values(), *(self._result_types[n] for n in self._computed))):
            return dict(zip(self._computed, self._session.run(self._computed, dict(given)), strict=True))
        arrays = {n: np.ascontiguousarray(a) for n, a in given.items()}
        values = {n: _ort_value(a, _BITS.get(kinds[n])) for n, a in arrays.items()}
        results = self._session.run_with_ort_values(self._computed, values)
        return {
            n: _read_bits(v, _BITS[self._result_types[n]]) if self._result_types[n] in _BITS else v.numpy()
            for n, v in zip(self._computed, results, strict=True)
        }


def first_line(error: BaseException) -> str:
    """ONNX Runtime's own words, without prefixes and C++ source places, on one line of at most 300 characters."""
    text = str(error).strip() or type(error).__name__
    line = next((part for part in text.splitlines() if part.strip()), text)
    if line.startswith("[ONNXRuntimeError]"):
        line = line.split(" : ", 3)[-1]
    line = _without_places(_LOADING.sub("", line))
    return line.strip() if len(line) <= 300 else line[:297].strip() + "..."


def _without_places(line: str) -> str:
    """``line`` without ``/path/file.cc:12 type ns::function(types) const`` and ``file.cc:12 Function``."""
    while place := _PLACE.search(line):
        end = place.end()
        if "/" in place[0]:  # a whole signature follows; the message stands behind its brackets
            opening = line.find("(", end)
            while opening >= 0 and (closing := _closing_bracket(line, opening)) >= 0:
                end = closing + 1
                opening = end if line.startswith("(", end) else -1
            if tail := _SIGNATURE_TAIL.match(line, end):
                end = tail.end()
        elif word := _WORD.match(line, end):
            end = word.end()
        line = f"{line[: place.start()].rstrip()} {line[end:].lstrip()}".strip()
    return line


def _closing_bracket(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1


def _options(*, threads: int | None, optimize: bool, watched: bool, accelerated: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # threads that spin after a run would slow the next session of an interleaved comparison
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if accelerated:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if watched or not optimize:
        options.enable_mem_pattern = False  # statistics run at many shapes; plans would pile up
    if watched:
        options.enable_cpu_mem_arena = False  # it would keep the most that any batch needed
    return options


def _ort_value(array: np.ndarray, dtype: ir.DataType | None) -> Any:
    """An OrtValue on the array's own memory (the caller keeps the array alive)."""
    import onnxruntime as ort

    if dtype is not None and dtype in _BITS.values():
        bits = array.view(np.uint16 if dtype is ir.DataType.BFLOAT16 else np.uint8)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, dtype.value)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _read_bits(value: Any, dtype: ir.DataType) -> np.ndarray:
    """A copy of an OrtValue whose type numpy has no name of its own for."""
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.bitwidth // 8)
    return np.frombuffer(raw, dtype=dtype.numpy()).reshape(shape).copy()


def _inner(kind: str) -> str:
    """``tensor(int64)`` -> ``int64``; other kinds as they are."""
    return kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind
