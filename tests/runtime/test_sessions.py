from __future__ import annotations

import gc
import weakref
from pathlib import Path

from graphopt.model import model_bytes, save_model
from graphopt.runtime.sessions import Sessions, weight_bytes
from tests.runtime.models import mlp


class Owner:
    pass


def test_the_least_recently_used_session_goes_first() -> None:
    model = mlp()
    sessions = Sessions(limit=2 * model_bytes(model))
    first, second, third = Owner(), Owner(), Owner()
    kept = sessions.get(first, model)
    assert sessions.get(first, model) is kept
    dropped = weakref.ref(sessions.get(second, model))
    sessions.get(first, model)
    sessions.get(third, model)
    gc.collect()
    assert dropped() is None and sessions.get(first, model) is kept
    assert sessions.used_providers == ["CPUExecutionProvider"]


def test_a_model_above_the_limit_is_opened_alone() -> None:
    model = mlp()
    sessions = Sessions(limit=1)
    owners = [Owner(), Owner()]
    dropped = weakref.ref(sessions.get(owners[0], model))
    assert sessions.get(owners[1], model) is sessions.get(owners[1], model)
    gc.collect()
    assert dropped() is None and not sessions.fit([model])


def test_an_owner_takes_its_session_along() -> None:
    sessions, owner = Sessions(), Owner()
    session = weakref.ref(sessions.get(owner, mlp()))
    del owner
    gc.collect()
    assert session() is None


def test_weight_bytes_of_a_file_counts_its_data_file(tmp_path: Path) -> None:
    files = save_model(mlp(), tmp_path / "m.onnx")
    assert weight_bytes(tmp_path / "m.onnx") == sum(Path(f).stat().st_size for f in files) >= model_bytes(mlp())
