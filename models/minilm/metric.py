"""STS-B: Spearman correlation (x100) between human similarity scores and the cosine of sentence embeddings.

The data set is not part of this repository. Its folder comes as an argument or from the environment variable
GRAPHOPT_STSB, and holds ``stsb-en-dev.csv`` (``sentence1,sentence2,score``, no header, score 0 to 5).
As a task metric: ``graphopt optimize ... --metric models.minilm.metric:stsb``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import MissingDependencyError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[dict[str, Array]], Sequence[Array]]  #: graph inputs by name -> outputs in graph order

FOLDER_VARIABLE = "GRAPHOPT_STSB"
MAX_TOKENS = 256  #: what the model was trained to read
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sentence pairs with the similarity people gave them, 0 (unrelated) to 5 (same meaning)."""

    left: list[str]
    right: list[str]
    scores: Array  #: float64 [N]


def stsb(run: Run, folder: str | os.PathLike[str] | None = None, split: str = "dev", limit: int | None = None) -> float:
    """Return the Spearman correlation x100 over the split's pairs (higher is better; float32 MiniLM: 86.72 on dev).

    ``run`` takes ``input_ids``, ``attention_mask``, ``token_type_ids``, int64 ``[B, S]``; its first output is either
    hidden states ``[B, S, D]``, which are averaged over unmasked tokens, or embeddings ``[B, D]``. ``limit`` keeps the
    first pairs. A model that answers with anything not finite scores 0.

    Raises: UsageError without a data folder, for a missing or malformed file, or for an output of another rank;
    MissingDependencyError without ``tokenizers`` or the reference model's tokenizer.
    """
    pairs = read_pairs(_csv_file(folder, split), limit)
    vectors = embed(run, [*pairs.left, *pairs.right])
    half = len(pairs.left)
    if not np.isfinite(vectors).all():
        return 0.0
    return 100.0 * spearman(cosine(vectors[:half], vectors[half:]), pairs.scores)


def read_pairs(file: Path, limit: int | None = None) -> Pairs:
    """Read ``sentence1,sentence2,score`` rows. Raises UsageError, naming the line that is wrong."""
    left, right, scores = [], [], []
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                first, second, score = row
                left.append(first)
                right.append(second)
                scores.append(float(score))
                if limit is not None and len(scores) >= limit:
                    break
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} row {len(scores) + 1} is not sentence1,sentence2,score: {error}") from error
    if len(scores) < 2:
        raise UsageError(f"{file} has {len(scores)} rows; a rank correlation needs at least 2")
    return Pairs(left, right, np.asarray(scores))


def embed(run: Run, sentences: Sequence[str], tokenizer_file: Path | None = None) -> Array:
    """Return embeddings ``[N, D]`` in the order of ``sentences``; equal sentences are run once."""
    unique = list(dict.fromkeys(sentences))
    vectors: dict[str, Array] = {}
    for indices, feed in batches(unique, tokenizer_file):
        rows = pool(np.asarray(run(feed)[0]), feed["attention_mask"])
        vectors.update(zip((unique[index] for index in indices), rows, strict=True))
    return np.stack([vectors[sentence] for sentence in sentences])


def batches(
    sentences: Sequence[str], tokenizer_file: Path | None = None
) -> Iterator[tuple[list[int], dict[str, Array]]]:
    """Yield indices into ``sentences`` with their inputs, shortest first, at most 32 rows of similar length."""
    encoded = tokenize(sentences, tokenizer_file)
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    for start in range(0, len(order), _BATCH):
        indices = order[start : start + _BATCH]
        length = max(len(encoded[index]) for index in indices)
        ids = np.zeros((len(indices), length), np.int64)
        mask = np.zeros_like(ids)
        for row, index in enumerate(indices):
            ids[row, : len(encoded[index])] = encoded[index]
            mask[row, : len(encoded[index])] = 1
        yield indices, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def tokenize(sentences: Iterable[str], tokenizer_file: Path | None = None) -> list[list[int]]:
    """Return token ids with [CLS] and [SEP], cut at 256, unpadded; the default is the reference model's tokenizer."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError("scoring text needs tokenizers: pip install graphopt[text]") from error
    if tokenizer_file is None:
        from graphopt.exporters.minilm import tokenizer_path

        tokenizer_file = tokenizer_path()
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]


def pool(output: Array, mask: Array) -> Array:
    """Return ``[B, D]``: ``output`` itself, or ``[B, S, D]`` averaged over the positions where ``mask [B, S]`` is 1."""
    if output.ndim == 2:
        return output
    if output.ndim != 3:
        raise UsageError(
            f"the first output has shape {list(output.shape)}; expected hidden [B, S, D] or embeddings [B, D]"
        )
    keep = mask[:, :, None].astype(np.float64)
    mean: Array = (output * keep).sum(axis=1) / np.maximum(keep.sum(axis=1), 1e-9)
    return mean


def cosine(a: Array, b: Array) -> Array:
    """Return the cosine of each row of ``a [N, D]`` with the same row of ``b``; 0 where a row is all zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: Array = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return result


def spearman(a: Array, b: Array) -> float:
    """Return the rank correlation of two vectors, ties sharing their mean rank; 0 when either is constant."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def ranks(values: Array) -> Array:
    """Return the rank of each value, counting from 1; equal values get the mean of the ranks they cover.

    >>> ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist()
    [3.5, 1.0, 3.5, 2.0]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return mean


def _csv_file(folder: str | os.PathLike[str] | None, split: str) -> Path:
    place = folder if folder is not None else _environment(os.environ)
    file = Path(place) / f"stsb-en-{split}.csv"
    if not file.is_file():
        raise UsageError(f"{file} does not exist; point {FOLDER_VARIABLE} at the folder that holds it")
    return file


def _environment(variables: Mapping[str, str]) -> str:
    place = variables.get(FOLDER_VARIABLE)
    if not place:
        raise UsageError(f"STS-B is not part of graphopt: set {FOLDER_VARIABLE} to the folder with stsb-en-dev.csv")
    return place
