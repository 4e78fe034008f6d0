"""What people read: numbers, tables at 100 columns, and a verdict as the last line."""

import io
import json

import pytest
from rich.console import Console

import graphopt
from graphopt.pipeline.inspect import inspect_model
from graphopt.pipeline.registry import discover
from graphopt.pipeline.result import Result
from graphopt.report import units
from graphopt.report.overview import print_overview
from graphopt.report.passes import describe_json
from graphopt.report.terminal import passes_table, print_result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.megabytes(90_804_217), "90.80 MB"),
        (units.megabytes(1_300_000_000), "1300.0 MB"),
        (units.megabytes(12_800), "12.8 kB"),
        (units.megabytes(40), "40 B"),
        (units.megabytes(None), "-"),
        (units.amount(22_565_376), "22.57 M"),
        (units.amount(3136), "3136"),
        (units.amount(295_700), "295.7 k"),
        (units.ratio(0.314), "0.31x"),
        (units.seconds(0.0123), "12 ms"),
        (units.seconds(76.7), "76.7 s"),
        (units.seconds(109.2), "109 s"),
        (units.small(0), "0"),
        (units.small(1.5e-6), "1.5e-06"),
        (units.cosine(0.9999999999), "1.0000"),
        (units.cosine(0.99999), "1-1e-05"),
        (units.cosine(0.9521), "0.9521"),
        (units.share(1, 3), "33.3 %"),
        (units.share(1, 0), "-"),
    ],
)
def test_units(text, expected):
    assert text == expected


def rendered(result, verbose=0):
    out = io.StringIO()
    print_result(result, Console(file=out, width=100), verbose=verbose)
    return out.getvalue()


def test_a_failed_run_says_why_and_ends_with_failed(plugin, mlp):
    result = graphopt.optimize(mlp, "crash,wrong-numbers,dangling,nothing-to-do")
    text = rendered(result)
    last = text.strip().splitlines()[-1]
    assert last.startswith("FAILED crash was rolled back: ZeroDivisionError")
    assert "and 1 more failure" in last
    assert "left alone graph: nothing of interest" in text
    assert "rolled-back" in text
    tables = [line for line in text.splitlines() if "─" in line or "rolled-back" in line]
    assert all(len(line) <= 100 for line in tables)


def test_verbose_shows_sites_and_the_recipe(plugin, mlp):
    result = graphopt.optimize(mlp, "keeps-its-word", keep_slower=True)
    text = rendered(result, verbose=1)
    assert "as it was -> as it should not be" in text
    assert "keep_slower: true" in text


def test_markup_in_names_is_text(plugin, mlp):
    result = graphopt.optimize(mlp, "nothing-to-do")
    result.passes[-1].notes = ["[bold]not markup[/] [oops"]
    assert "[bold]not markup[/] [oops" in rendered(result)


def test_json_round_trips(plugin, mlp):
    result = graphopt.optimize(mlp, "nothing-to-do,crash")
    again = Result.model_validate_json(result.to_json())
    assert again.to_json() == result.to_json()
    assert json.loads(result.to_json())["status"] == "FAILED"


def test_overview(mlp):
    overview = inspect_model(mlp)
    assert [(group.role, group.size) for group in overview.prunable] == [("neurons", 64)]
    assert {touch.split("[")[0] for touch in overview.prunable[0].touches} == {"w1", "b1", "w2"}
    assert overview.frozen
    assert all(group.reasons for group in overview.frozen)
    out = io.StringIO()
    print_overview(overview, Console(file=out, width=100))
    assert "1 x 64 neurons can be pruned" in out.getvalue()
    assert all(len(line) <= 100 for line in out.getvalue().splitlines() if "─" in line)


def test_the_table_of_passes_fits_80_columns(plugin, mlp):
    result = graphopt.optimize(mlp, "prune-neurons(ratio=0.25,criterion=magnitude,round_to=8),crash")
    out = io.StringIO()
    Console(file=out, width=80).print(passes_table(result))
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    for name in ("cleanup ", "prune-neurons(", "crash ", "rolled-back"):
        assert any(name in line for line in lines)


def test_reasons_are_shortened_unless_verbose(mlp):
    overview = inspect_model(mlp)
    overview.frozen[0].reasons = ["the first", "the second", "the third"]
    for verbose, expected in ((0, "the first (+2 more)"), (1, "the first; the second; the third")):
        out = io.StringIO()
        print_overview(overview, Console(file=out, width=100), verbose=verbose)
        assert expected in out.getvalue()


def test_parameters_are_described_as_users_write_them():
    facts = {item["name"]: item for item in json.loads(describe_json(discover().load("prune")))["parameters"]}
    assert facts["ratio"]["type"] == "float (>= 0, < 1) | 'auto'"
    assert facts["round_to"]["type"] == "int | None"
    assert facts["round_to"]["description"].endswith("(>= 1)")
    assert facts["exclude"]["type"] == "list of str"
