from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graphopt.errors import MissingDependencyError, UsageError
from graphopt.runtime.data import load_dataset, probe_feeds, split_dataset, synthesize
from graphopt.runtime.dataset import Dataset, Feed
from tests.runtime.models import encoder, mlp

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def rows(count: int, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)


def stacked(dataset: Dataset, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in dataset])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_streams_in_batches(tmp_path: Path, save: object) -> None:
    save(tmp_path / "d.npz", x=rows(70).astype(np.float64), other=np.zeros(3))  # type: ignore[operator]
    data = load_dataset(tmp_path / "d.npz", mlp())
    assert data.samples == data.count() == 70 and not data.synthetic and data.name == "d.npz"
    assert [len(f["x"]) for f in data] == [32, 32, 6] and next(iter(data))["x"].dtype == np.float32
    np.testing.assert_array_equal(stacked(data), rows(70))
    np.testing.assert_array_equal(stacked(data), rows(70))  # a second reading
    limited = load_dataset(tmp_path / "d.npz", mlp(), limit=40)
    assert limited.samples == 40 and [len(f["x"]) for f in limited] == [32, 8]


def test_npz_in_fortran_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(rows(40)))
    np.testing.assert_array_equal(stacked(load_dataset(tmp_path / "d.npz", mlp())), rows(40))


def test_npz_per_sample(tmp_path: Path) -> None:
    arrays = {f"{n}_{i}": np.ones((1, 3 + i), np.int32) for n in NAMES for i in range(3)}
    np.savez(tmp_path / "d.npz", **arrays)
    data = load_dataset(tmp_path / "d.npz", encoder())
    assert [f["input_ids"].shape for f in data] == [(1, 3), (1, 4), (1, 5)]
    np.savez(tmp_path / "e.npz", x_0=rows(1)[0], x_1=rows(1)[0])
    assert [f["x"].shape for f in load_dataset(tmp_path / "e.npz", mlp())] == [(1, 64), (1, 64)]
    del arrays["attention_mask_2"]
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UsageError, match="sample 2"):
        load_dataset(tmp_path / "f.npz", encoder())


def test_npz_for_a_fixed_batch(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 18]> g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }'
    )
    np.savez(tmp_path / "d.npz", x=rows(6, 4))
    data = load_dataset(tmp_path / "d.npz", model)
    assert [f["x"].shape for f in data] == [(2, 4)] * 3 and data.samples == 3
    np.savez(tmp_path / "e.npz", x=rows(6, 4).reshape(3, 2, 4))
    assert [f["x"].shape for f in load_dataset(tmp_path / "e.npz", model)] == [(2, 4)] * 3
    np.savez(tmp_path / "f.npz", x=rows(5, 4))
    with pytest.raises(UsageError, match="5 rows do not divide"):
        load_dataset(tmp_path / "f.npz", model)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros(3)}, r"no array for input 'x' \(float \[batch, 64\]\); found z"),
        ({"x": np.zeros((5, 63), np.float32)}, r"must have shape \[batch, 64\], found \[5, 63\]"),
        ({"x": np.float32(1)}, r"must have shape \[batch, 64\], found \[\]"),
        ({"x": np.zeros((5, 64), np.int64)}, "must be float, found int64"),
        ({"x": np.array([{}, {}], dtype=object)}, "holds Python objects"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said) as caught:
        list(load_dataset(tmp_path / "d.npz", mlp()))
    assert "d.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_npz_whose_inputs_disagree(tmp_path: Path) -> None:
    ones = np.ones((4, 5), np.int64)
    np.savez(tmp_path / "d.npz", input_ids=ones, attention_mask=ones[:3], token_type_ids=ones)
    with pytest.raises(UsageError, match="different numbers of samples"):
        load_dataset(tmp_path / "d.npz", encoder())
    np.savez(tmp_path / "e.npz", input_ids=ones, attention_mask=ones[:, :4], token_type_ids=ones)
    with pytest.raises(UsageError, match="dim 'seq' is 5 in input 'input_ids' and 4 in input 'attention_mask'"):
        list(load_dataset(tmp_path / "e.npz", encoder()))


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK not a zip")
    (tmp_path / "d.csv").write_text("1,2")
    for spec, said in (("d.npz", "not a readable .npz"), ("d.csv", "unknown kind"), ("none.npz", "no such file")):
        with pytest.raises(UsageError, match=said):
            load_dataset(tmp_path / spec, mlp())
    with pytest.raises(UsageError, match="at least 1"):
        load_dataset(tmp_path / "d.npz", mlp(), limit=0)


def test_folders(tmp_path: Path) -> None:
    for i in (0, 1, 10):
        folder = tmp_path / "onnx" / f"test_data_set_{i}"
        folder.mkdir(parents=True)
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(rows(i + 1)).SerializeToString())
    data = load_dataset(tmp_path / "onnx", mlp())
    assert [len(f["x"]) for f in data] == [1, 2, 11]
    assert [len(f["x"]) for f in load_dataset(tmp_path / "onnx" / "test_data_set_1", mlp())] == [2]
    (tmp_path / "npz").mkdir()
    for i in (2, 10):
        np.savez(tmp_path / "npz" / f"part{i}.npz", x=rows(i))
    assert [len(f["x"]) for f in load_dataset(tmp_path / "npz", mlp())] == [2, 10]
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "x.npy", rows(5))
    assert load_dataset(tmp_path / "npy", mlp()).samples == 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="in this folder"):
        load_dataset(tmp_path / "empty", mlp())


def test_broken_test_data(tmp_path: Path) -> None:
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UsageError, match=r"input_0\.pb"):
        list(load_dataset(tmp_path, mlp()))
    outside = onnx.TensorProto(data_type=1, dims=[1, 64], data_location=onnx.TensorProto.EXTERNAL)
    (tmp_path / "input_0.pb").write_bytes(outside.SerializeToString())
    with pytest.raises(UsageError, match="another file"):
        list(load_dataset(tmp_path, mlp()))


FUNCTIONS = """
import numpy as np
def good():
    for i in range(3):
        yield {"x": np.full((2, 64), i, np.float32)}
def tuples():
    return [(1, 2)]
def number():
    return 3
once = iter([])
"""


def test_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "feeds_for_test.py").write_text(FUNCTIONS)
    spec = f"{tmp_path}/feeds_for_test.py"
    data = load_dataset(f"{spec}:good", mlp())
    assert data.count() == 6 == data.count() and load_dataset(f"{spec}:good", mlp(), limit=3).count() == 3
    monkeypatch.chdir(tmp_path)
    assert load_dataset("feeds_for_test:good", mlp()).count() == 6
    sys.modules.pop("feeds_for_test")
    for name, said in (
        ("tuples", "item 0 must be a dict"),
        ("number", "iterable of dicts"),
        ("absent", "has no 'absent'"),
    ):
        with pytest.raises(UsageError, match=said):
            list(load_dataset(f"{spec}:{name}", mlp()))
    with pytest.raises(UsageError, match="read only once"):
        load_dataset(f"{spec}:once", mlp())
    with pytest.raises(UsageError, match="importing no_such_module failed"):
        load_dataset("no_such_module:f", mlp())
    with pytest.raises(UsageError, match=r"FILE\.py:function"):
        load_dataset(spec, mlp())


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, 49)}}, "[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding(length=30)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{i}" for i in rng.integers(1, 49, size=rng.integers(3, 7))) for _ in range(count)]


def test_text_batches_hold_one_length(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(sentences(200)))
    data = load_dataset(tmp_path / "t.txt", encoder(), tokenizer=tokenizer, limit=150, seed=1)
    feeds = list(data)
    assert data.samples == data.count() == 150
    assert all(set(f) == set(NAMES) and len(f["input_ids"]) <= 32 for f in feeds)
    assert all(f["attention_mask"].min() == 1 and f["token_type_ids"].max() == 0 for f in feeds)
    assert {f["input_ids"].shape[1] for f in feeds} == {3, 4, 5, 6}
    again = list(load_dataset(tmp_path / "t.txt", encoder(), tokenizer=tokenizer, limit=150, seed=1))
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(feeds, again, strict=True))
    other = load_dataset(tmp_path / "t.txt", encoder(), tokenizer=tokenizer, limit=150, seed=2)
    assert any(
        a["input_ids"].shape != b["input_ids"].shape or (a["input_ids"] != b["input_ids"]).any()
        for a, b in zip(feeds, other, strict=False)
    )


def test_text_is_cut_to_the_position_table(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": 1, "text": "w1 " * 100}) + "\n" + json.dumps("w2 w3") + "\n")
    shapes = {f["input_ids"].shape for f in load_dataset(tmp_path / "t.jsonl", encoder(), tokenizer=tokenizer)}
    assert shapes == {(1, 24), (1, 2)}


def test_text_that_does_not_fit(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "t.txt").write_text("w40 w41")
    with pytest.raises(UsageError, match="--tokenizer"):
        load_dataset(tmp_path / "t.txt", encoder())
    with pytest.raises(UsageError, match=r"token id 41 .* up to 29"):
        load_dataset(tmp_path / "t.txt", encoder(rows=30), tokenizer=tokenizer)
    with pytest.raises(UsageError, match="no token id input"):
        load_dataset(tmp_path / "t.txt", mlp(), tokenizer=tokenizer)
    with pytest.raises(UsageError, match="not a tokenizer"):
        load_dataset(tmp_path / "t.txt", encoder(), tokenizer=tmp_path / "t.txt")
    with pytest.raises(UsageError, match="no such file"):
        load_dataset(tmp_path / "t.txt", encoder(), tokenizer=tmp_path / "none.json")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text("{'x': 1}\n")
    (tmp_path / "notext.jsonl").write_text("[1]\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    refused = {"empty.txt": "no text", "bad.jsonl": "line 1 is not JSON", "notext.jsonl": "line 1 has no text"}
    for name, said in (refused | {"latin.txt": "UTF-8"}).items():
        with pytest.raises(UsageError, match=said):
            load_dataset(tmp_path / name, encoder(), tokenizer=tokenizer)


def test_text_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("w1")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match="pip install tokenizers"):
        load_dataset(tmp_path / "t.txt", encoder(), tokenizer="t.json")


def feeds_of(*groups: np.ndarray) -> Dataset:
    def source() -> list[Feed]:
        return [{"x": g} for g in groups]

    return Dataset("given", source, samples=sum(map(len, groups)))


def keys_of(dataset: Dataset) -> set[bytes]:
    return {row.tobytes() for feed in dataset for row in feed["x"]}


def test_splits_are_disjoint_whole_and_repeatable() -> None:
    data = feeds_of(rows(50), rows(100)[50:], rows(20))  # the last 20 are duplicates
    splits = split_dataset(data, 3)
    parts = [splits.calibration, splits.selection, splits.guard]
    kept = [keys_of(p) for p in parts]
    assert sum(map(len, kept)) == len(set.union(*kept)) == 100 and [len(k) for k in kept] == [70, 15, 15]
    assert [p.samples for p in parts] == [p.count() for p in parts] and sum(p.count() for p in parts) == 120
    assert not splits.reused and not splits.note
    again = split_dataset(data, 3)
    assert keys_of(again.guard) == kept[2] and keys_of(split_dataset(data, 4).guard) != kept[2]
    assert max(len(f["x"]) for f in splits.calibration) == 32


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 1, 1)), (2, (1, 1, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))]
)
def test_few_samples(count: int, sizes: tuple[int, ...]) -> None:
    splits = split_dataset(feeds_of(rows(count)))
    assert (splits.calibration.count(), splits.selection.count(), splits.guard.count()) == sizes
    assert bool(splits.reused) == bool(splits.note) == (count < 3)
    assert count == 1 or not keys_of(splits.calibration) & keys_of(splits.guard)


def test_nothing_to_split() -> None:
    with pytest.raises(UsageError, match="no samples"):
        split_dataset(feeds_of())


def test_synthetic_data_has_many_shapes_and_says_so() -> None:
    data = synthesize(encoder(), samples=40, seed=1)
    feeds = list(data)
    assert data.synthetic and data.note and data.count() == sum(len(f["input_ids"]) for f in feeds) == 40
    shapes = {f["input_ids"].shape for f in feeds}
    assert (1, 1) in shapes and len(shapes) > 3 and max(s[1] for s in shapes) <= 24
    assert any(f["attention_mask"].min() == 0 for f in feeds)
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(feeds, data, strict=True))
    assert all(f["x"].shape[1] == 64 for f in synthesize(mlp(), samples=5))
    fixed = synthesize(encoder(), samples=8, sizes={"seq": 5})
    assert {f["input_ids"].shape[1] for f in fixed} == {5}


def test_probes() -> None:
    assert list(probe_feeds(encoder())) == ["1x1", "1x16", "3x7 ragged", "2x24 ragged"]
    assert list(probe_feeds(mlp())) == ["batch 1", "batch 3", "batch 2"]


def test_batches_can_be_cut(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=rows(35))
    data = load_dataset(tmp_path / "d.npz", mlp())
    assert [len(feed["x"]) for feed in data.cut(8)] == [8, 8, 8, 8, 3]
    np.testing.assert_array_equal(stacked(data.cut(8)), rows(35))
    assert [len(feed["x"]) for feed in data.cut(8).head(20)] == [8, 8, 4]
