"""What every probe shares: token inputs, interleaved timing, operator profiles and the two quality figures.

A ratio is only ever taken inside one run: the candidates of a shape are timed in turn, one call each a round, in an
order that is shuffled every round, and the figure is the median over the rounds of ``candidate / reference``. Sessions
run on the calling thread alone, so what is timed is that thread's processor time: other load on the machine then costs
cache and clock, but no turns.
"""

from __future__ import annotations

import collections
import csv
import gc
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

SHAPES: tuple[tuple[int, int], ...] = ((1, 16), (1, 128), (16, 32))
"""(batch, sequence) of every latency table."""

Feeds = dict[str, np.ndarray]


def session(model: str | os.PathLike[str] | bytes, *, profile: bool = False, dump: str = "") -> ort.InferenceSession:
    """A CPU session on one thread; ``dump`` writes the graph that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = profile
    if profile:
        options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "graphopt_probe")
    if dump:
        options.optimized_model_filepath = dump
    source = model if isinstance(model, bytes) else os.fspath(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def token_feeds(names: Sequence[str], batch: int, length: int, *, ragged: bool = False, seed: int = 0) -> Feeds:
    """Random word ids; the mask is full, or ragged with at least one token a row."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for name in names:
        if "mask" in name:
            lengths = rng.integers(1, length + 1, batch) if ragged else np.full(batch, length)
            feeds[name] = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
        elif "type" in name:
            feeds[name] = np.zeros((batch, length), np.int64)
        else:
            feeds[name] = rng.integers(1000, 20000, (batch, length)).astype(np.int64)
    return feeds


def run(sess: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs for the feeds that the model declares; the others are left out."""
    wanted = {i.name for i in sess.get_inputs()}
    return list(sess.run(None, {k: v for k, v in feeds.items() if k in wanted}))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, reference: str, seconds: float = 6.0, minimum: int = 15
) -> dict[str, tuple[float, float]]:
    """Name -> (median milliseconds, median ratio to the reference), timed in turn for about ``seconds``."""
    for call in calls.values():
        for _ in range(3):
            call()
    order, times = list(calls), collections.defaultdict[str, list[float]](list)
    rng, end = random.Random(0), time.perf_counter() + seconds
    gc.disable()
    while time.perf_counter() < end or len(times[reference]) < minimum:
        rng.shuffle(order)
        for name in order:
            start = time.thread_time()
            calls[name]()
            times[name].append(time.thread_time() - start)
    gc.enable()
    base = np.array(times[reference])
    return {n: (float(np.median(t)) * 1e3, float(np.median(np.array(t) / base))) for n, t in times.items()}


def latency_table(
    models: Mapping[str, str | os.PathLike[str] | bytes],
    *,
    reference: str,
    seconds: float = 6.0,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> dict[str, list[float]]:
    """Print and return name -> ratio at each shape; the reference's milliseconds stand in its row."""
    sessions = {name: session(model) for name, model in models.items()}
    ratios: dict[str, list[float]] = {name: [] for name in models}
    base: list[float] = []
    for batch, length in shapes:
        calls: dict[str, Callable[[], object]] = {}
        for name, sess in sessions.items():
            feeds = token_feeds([i.name for i in sess.get_inputs()], batch, length)
            calls[name] = lambda s=sess, f=feeds: s.run(None, f)  # type: ignore[misc]
        for name, (millis, ratio) in interleaved(calls, reference=reference, seconds=seconds).items():
            ratios[name].append(ratio)
            if name == reference:
                base.append(millis)
    width = max(map(len, models))
    print(f"{'form':{width}}  " + "  ".join(f"{f'{b}x{s}':>8}" for b, s in shapes))
    for name in models:
        print(f"{name:{width}}  " + "  ".join(f"{r:8.3f}" for r in ratios[name]))
    print(f"{'reference, ms':{width}}  " + "  ".join(f"{m:8.2f}" for m in base))
    return ratios


def profile(
    model: str | os.PathLike[str] | bytes, batch: int, length: int, *, runs: int = 50
) -> dict[str, tuple[float, int]]:
    """Operator type -> (milliseconds a run, nodes), as ONNX Runtime's profiler sees it."""
    sess = session(model, profile=True)
    feeds = token_feeds([i.name for i in sess.get_inputs()], batch, length)
    for _ in range(runs):
        sess.run(None, feeds)
    path = Path(sess.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    spent, nodes = collections.Counter[str](), collections.defaultdict[str, set[str]](set)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] += event["dur"]
            nodes[kind].add(event["name"])
    return {kind: (total / runs / 1e3, len(nodes[kind])) for kind, total in spent.most_common()}


def print_profile(name: str, table: Mapping[str, tuple[float, int]], top: int = 14) -> None:
    """One line an operator type, the slowest first."""
    print(f"-- {name}: {sum(t for t, _ in table.values()):.2f} ms in kernels")
    for kind, (millis, count) in list(table.items())[:top]:
        print(f"   {kind:32} {millis:8.3f} ms  x{count}")


class SentencePairs:
    """STS-B style quality of a sentence embedder: Spearman x100, and cosine to a reference embedding.

    ``pairs`` is a csv of sentence1, sentence2, score without a header. A model that gives [B, L, D] is mean-pooled
    over its mask and normalised here; one that gives [B, D] is normalised.
    """

    def __init__(self, pairs: Path, tokenizer: Path, *, limit: int | None = None, batch: int = 32) -> None:
        from tokenizers import Tokenizer

        with pairs.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))[:limit]
        self.scores = np.array([float(r[2]) for r in rows])
        self.texts = [r[0] for r in rows] + [r[1] for r in rows]
        self.tokenizer = Tokenizer.from_file(os.fspath(tokenizer))
        self.tokenizer.enable_truncation(128)
        self.tokenizer.enable_padding()
        self.batch = batch

    def feeds(self, texts: Sequence[str]) -> Feeds:
        """One padded batch."""
        encoded = self.tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encoded], np.int64)
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def embed(self, model: str | os.PathLike[str] | bytes | Any) -> np.ndarray:
        """[2 * pairs, D], unit length; batches of texts of like length, as a server would make them."""
        sess = model if isinstance(model, ort.InferenceSession) else session(model)
        order = np.argsort([len(t) for t in self.texts], kind="stable")
        out: list[np.ndarray | None] = [None] * len(self.texts)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            feeds = self.feeds([self.texts[r] for r in rows])
            hidden = run(sess, feeds)[0]
            if hidden.ndim == 3:
                mask = feeds["attention_mask"][..., None].astype(np.float32)
                hidden = (hidden * mask).sum(1) / mask.sum(1)
            hidden = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
            for row, vector in zip(rows, hidden, strict=True):
                out[row] = vector
        return np.stack([v for v in out if v is not None])

    def spearman(self, embedding: np.ndarray) -> float:
        """Rank correlation x100 of the cosines with the gold scores."""
        from scipy.stats import spearmanr

        half = len(self.scores)
        cosine = (embedding[:half] * embedding[half:]).sum(-1)
        return float(spearmanr(cosine, self.scores).statistic) * 100
