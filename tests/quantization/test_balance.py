"""Gains for loud channels, and the portions in which values are observed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.quantization import statistics
from graphopt.quantization.balance import choose_gain
from graphopt.quantization.finding import find_sites
from graphopt.quantization.sites import Linear
from graphopt.quantization.statistics import ChannelStatistics, observe

K, N = 40, 32


def site(text: str = "h = Relu(x) y = MatMul(h, w)", W: np.ndarray | None = None) -> Linear:
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[b, {K}] x) => (float[b, {N}] y)'
        f" <float[{K}, {N}] w = {{{', '.join(['0'] * K * N)}}}, float[{K}] g = {{{', '.join(['1'] * K)}}}>"
        f" {{ {text} }}"
    )
    W = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32) if W is None else W
    model.graph.initializers["w"].const_value = ir.tensor(W, name="w")
    (found,) = find_sites(model)[0]
    assert isinstance(found, Linear)
    return found


def seen(x: np.ndarray) -> ChannelStatistics:
    found = ChannelStatistics(K)
    found.add(x)
    return found


def rows(loud: float) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((500, K)).astype(np.float32)
    x[:, 3] *= loud
    return x


def test_a_loud_channel_is_turned_down() -> None:
    gain = choose_gain(seen(rows(50)), [site()], 0.5)
    assert gain is not None and gain.dtype == np.float32
    assert gain[3] < 0.5 and gain.max() == 1.0
    assert np.sort(gain)[4] == 1.0, "at most a tenth of the channels gets one"
    np.testing.assert_array_equal(gain, gain.astype(np.float16).astype(np.float32))


def test_even_channels_need_none() -> None:
    assert choose_gain(seen(rows(1)), [site()], 0.5) is None
    assert choose_gain(seen(np.zeros((5, K), np.float32)), [site()], 0.5) is None


def test_nothing_is_worth_a_gain_of_zero_benefit() -> None:
    assert choose_gain(seen(rows(50)), [site()], 0.0) is None


def test_a_loud_row_of_the_weight_keeps_the_gain_small() -> None:
    W = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
    W[3] *= 40  # the columns' scales already belong to this row: more of it costs all others
    with_loud_row = choose_gain(seen(rows(50)), [site(W=W)], 1.0)
    without = choose_gain(seen(rows(50)), [site()], 1.0)
    assert without is not None and (with_loud_row is None or with_loud_row[3] > without[3])


def test_wide_values_are_observed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Context:
        def observe(self, model: object, names: list[str], **options: object) -> list[dict[str, int]]:
            asked.append(list(names))
            return [dict.fromkeys(names, batch) for batch in range(2)]

    monkeypatch.setattr(statistics, "_WIDEST", 100)
    found = list(observe(None, Context(), {"a": 60, "b": 40, "c": 70, "d": 400}))  # type: ignore[arg-type]
    assert asked == [["a", "b"], ["c"], ["d"]]
    assert len(found) == 8
