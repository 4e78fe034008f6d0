"""Exit codes, one-line errors, and what lands on which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from graphopt.cli import run
from tests import bad_models


@pytest.fixture
def call(capsys):
    """Run a command line; returns (exit code, stdout, stderr)."""

    def calling(*arguments: object) -> tuple[int, str, str]:
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return calling


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "site" not in p.parts)


# -- success ----------------------------------------------------------------------------------------------------------
def test_optimize_writes_prints_a_table_and_ends_with_passed(call, mlp, tmp_path):
    code, out, err = call("optimize", mlp, "--passes", "cleanup", "-o", tmp_path / "out.onnx")
    assert code == 0
    assert out.strip().splitlines()[-1].startswith("PASSED")
    assert "SYNTHETIC INPUTS" in out
    assert "cleanup: planning" in err
    assert all(len(line) <= 100 for line in out.splitlines()[:-1])
    assert (tmp_path / "out.onnx").stat().st_size > 0


def test_the_default_output_stands_beside_the_model(call, mlp, tmp_path):
    assert call("optimize", mlp, "--passes", "cleanup", "-q")[0] == 0
    assert listing(tmp_path) == ["mlp.onnx", "mlp.opt.onnx"]


def test_json_is_the_result_and_a_report_replays(call, mlp, tmp_path):
    report = tmp_path / "report.json"
    code, out, err = call(
        "optimize", mlp, "-p", "cleanup", "-o", tmp_path / "a.onnx", "--json", "-q", "--report", report
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["status"] == "PASSED"
    assert json.loads(report.read_text())["passes"][0]["name"] == "cleanup"
    assert call("optimize", mlp, "--recipe", report, "-o", tmp_path / "b.onnx", "-q")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_an_existing_output_is_replaced(call, mlp, tmp_path):
    (tmp_path / "out.onnx").write_text("old")
    assert call("optimize", mlp, "-p", "cleanup", "-o", tmp_path / "out.onnx")[0] == 0
    assert (tmp_path / "out.onnx").read_bytes() != b"old"


def test_quiet_says_nothing_on_stderr(call, mlp, tmp_path):
    assert call("optimize", mlp, "-p", "cleanup", "-o", tmp_path / "o.onnx", "-q")[2] == ""


def test_dry_run_writes_nothing(call, mlp, tmp_path):
    code, out, _ = call("optimize", mlp, "-p", "cleanup", "--dry-run")
    assert code == 0
    assert "dry run" in out
    assert listing(tmp_path) == ["mlp.onnx"]


def test_no_validate_runs_nothing_and_says_so(call, mlp, tmp_path):
    code, out, _ = call("optimize", mlp, "-p", "cleanup", "--no-validate", "-o", tmp_path / "o.onnx")
    assert code == 0
    assert "not validated" in out


def test_inspect_counts_work_at_the_sizes_asked_for(call, mlp):
    facts = json.loads(call("inspect", mlp, "--json")[1])
    (dim,) = facts["macs_at"]
    larger = json.loads(call("inspect", mlp, "--size", f"{dim}=100", "--json")[1])
    assert larger["macs_at"] == {dim: 100}
    per_row = sum(r["macs"] for r in facts["roles"]) / facts["macs_at"][dim]
    assert sum(r["macs"] for r in larger["roles"]) == 100 * per_row > 0
    assert call("inspect", mlp, "--size", "nobody=3")[0] == 2
    assert call("inspect", mlp, "--size", dim)[0] == 2


def test_inspect_compare_bench_passes_schema(call, mlp, tmp_path):
    call("optimize", mlp, "-p", "cleanup", "-o", tmp_path / "o.onnx", "-q")
    code, out, _ = call("inspect", mlp)
    assert code == 0
    assert "neurons" in out
    assert json.loads(call("inspect", mlp, "--json")[1])["prunable"][0]["size"] == 64
    code, out, _ = call("compare", mlp, tmp_path / "o.onnx")
    assert (code, out.strip().splitlines()[-1].startswith("PASSED")) == (0, True)
    code, out, _ = call("bench", mlp, tmp_path / "o.onnx", "--rounds", 3)
    assert code == 0
    assert "ratio" in out
    assert len(json.loads(call("bench", mlp, "--rounds", 3, "--json")[1])["rows"]) == 2
    assert "cleanup" in call("passes")[1]
    assert "fold_limit" in call("passes", "cleanup")[1]
    assert json.loads(call("passes", "cleanup", "--json")[1])["fidelity"] == "exact"
    assert "passes" in json.loads(call("schema")[1])["properties"]


def test_data_is_used_and_named(call, mlp, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32))
    code, out, _ = call("optimize", mlp, "-p", "cleanup", "--data", tmp_path / "in.npz", "-o", tmp_path / "o.onnx")
    assert code == 0
    assert "SYNTHETIC" not in out
    assert "in.npz" in out


# -- 1: a guard, target or comparison failed --------------------------------------------------------------------------
def test_a_failed_pass_exits_1_and_writes_only_with_keep_best(call, plugin, mlp, tmp_path):
    line = ("optimize", mlp, "-p", "crash", "-o", tmp_path / "o.onnx", "-q")
    code, out, _ = call(*line)
    assert code == 1
    assert out.strip().splitlines()[-1].startswith("FAILED crash was rolled back")
    assert not (tmp_path / "o.onnx").exists()
    assert call(*line, "--keep-best")[0] == 1
    assert (tmp_path / "o.onnx").exists()


def test_compare_beyond_tolerance_exits_1(call, plugin, mlp, tmp_path):
    call("optimize", mlp, "-p", "noise(amount=0.3)", "-o", tmp_path / "o.onnx", "-q", "--min-cosine", 0.1)
    code, out, _ = call("compare", mlp, tmp_path / "o.onnx", "--no-latency")
    assert code == 1
    assert out.strip().splitlines()[-1].startswith("FAILED")
    assert call("compare", mlp, tmp_path / "o.onnx", "--no-latency", "--min-cosine", 0.1)[0] == 0


def test_debug_prints_the_traceback_of_a_pass(call, plugin, mlp, tmp_path):
    assert "ZeroDivisionError" not in call("optimize", mlp, "-p", "crash", "-o", tmp_path / "o.onnx")[2]
    assert "Traceback" in call("optimize", mlp, "-p", "crash", "-o", tmp_path / "o.onnx", "--debug")[2]


# -- 2: usage ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["optimize", "MODEL", "--passes", "clean-up"], "did you mean 'cleanup'?"),
        (["optimize", "MODEL", "--passes", "cleanup(fold_limt=3)"], "did you mean 'fold_limit'?"),
        (["optimize", "MODEL", "--passes", "cleanup(fold_limit=-3)"], "fold_limit=-3"),
        (["optimize", "MODEL", "--passes", "cleanup("], "missing ')'"),
        (["optimize", "MODEL", "--recipe", "nowhere"], "presets:"),
        (["optimize", "MODEL", "--passes", "cleanup", "--data", "nowhere.npz"], "nowhere.npz"),
        (["optimize", "MODEL", "--passes", "cleanup", "--metric", "nonsense"], "module:function"),
        (["optimize", "MODEL", "--passes", "cleanup", "--metric", "no.such.module:f"], "does not import"),
        (["optimize", "MODEL", "--passes", "cleanup", "--min-cosine", "3"], "min_cosine=3"),
        (["optimize", "MODEL", "--passes", "cleanup", "--provider", "abacus"], "unknown provider 'abacus'"),
        (["optimize", "MODEL", "-p", "cleanup", "-o", "MODEL"], "never overwritten"),
        (["optimize", "MODEL", "-p", "cleanup", "-o", "no/such/folder/o.onnx"], "does not exist"),
        (["optimize", "MODEL", "-p", "cleanup", "-o", "."], "is a folder"),
        (["optimize", "MODEL", "-p", "cleanup", "--report", "MODEL"], "is one of the models"),
        (["optimize", "MODEL", "-p", "cleanup", "--threads", "0"], "threads"),
        (["optimize", "MODEL", "--no-such-option"], "--no-such-option"),
        (["optimize"], "MODEL"),
        (["no-such-command"], "no-such-command"),
        (["passes", "no-such-pass"], "known passes"),
        (["bench", "MODEL", "MODEL"], "named twice"),
        (["optimize", "MODEL", "-p", "cleanup", "--data", ""], "the specification is empty"),
        (["optimize", "MODEL", "-p", "prune(ratio=1.5)"], "ratio=1.5: input should be less than 1, or"),
        (["optimize", "MODEL", "-p", "cleanup", "--seed", str(10**20)], "seed=1"),
        (["optimize", "MODEL", "-p", "cleanup", "--threads", "100000"], "--threads"),
    ],
)
def test_usage_errors_exit_2_in_one_line(call, mlp, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    before = mlp.read_bytes()
    code, out, err = call(*[mlp if a == "MODEL" else a for a in arguments])
    assert code == 2
    assert out == ""
    assert word in err
    assert err.startswith("graphopt: ") or "\ngraphopt: " in err
    assert sum(line.startswith("graphopt: ") for line in err.splitlines()) == 1
    assert "Traceback" not in err
    assert listing(tmp_path) == ["mlp.onnx"]
    assert mlp.read_bytes() == before


# -- 3: the model -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["external-absolute", "element-type", "cycle"])
def test_the_second_of_two_models_is_checked_too(call, mlp, tmp_path, name):
    bad = bad_models.write(name, tmp_path)
    for command in ("bench", "compare"):
        code, out, err = call(command, mlp, bad.path)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert err.startswith(f"graphopt: {bad.path}: ")


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_a_pipe_or_device_is_never_replaced(call, mlp, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")
    code, _, err = call("optimize", mlp, "-p", "cleanup", option, tmp_path / "pipe")
    assert code == 2
    assert "not a plain file" in err
    assert (tmp_path / "pipe").is_fifo()
    assert listing(tmp_path) == ["mlp.onnx", "pipe"]


@pytest.mark.parametrize("command", ["optimize", "inspect"])
@pytest.mark.parametrize("name", bad_models.IDS)
def test_bad_models_exit_3_in_one_line_and_leave_nothing(call, tmp_path, name, command):
    bad = bad_models.write(name, tmp_path)
    before = listing(tmp_path)
    code, out, err = call(command, bad.path, *(["-p", "cleanup"] if command == "optimize" else []))
    assert code == 3
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"graphopt: {bad.path}")
    assert bad.word in err
    assert listing(tmp_path) == before


def test_a_missing_file_exits_3(call, tmp_path):
    code, _, err = call("optimize", tmp_path / "nowhere.onnx", "-p", "cleanup")
    assert code == 3
    assert "nowhere.onnx" in err


def test_an_unwritable_folder_exits_3_before_any_work(call, mlp, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # root may write anywhere
    code, _, err = call("optimize", mlp, "-p", "cleanup", "-o", tmp_path / "o.onnx")
    assert code == 3
    assert "not writable" in err


def test_a_full_disk_exits_3_and_leaves_nothing(call, mlp, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = call("optimize", mlp, "-p", "cleanup", "-o", tmp_path / "o.onnx", "-q")
    assert code == 3
    assert err.startswith(f"graphopt: {tmp_path / 'o.onnx'}: cannot be written (No space left")
    assert listing(tmp_path) == ["mlp.onnx"]


# -- 4: not installed -------------------------------------------------------------------------------------------------
def test_a_missing_provider_exits_4_naming_the_package(call, mlp, tmp_path):
    for command in (["optimize", mlp, "-p", "cleanup"], ["inspect", mlp], ["bench", mlp], ["compare", mlp, mlp]):
        code, _, err = call(*command, "--provider", "cann")
        assert code == 4, command
        assert "onnxruntime-cann" in err
    assert listing(tmp_path) == ["mlp.onnx"]


# -- the process ------------------------------------------------------------------------------------------------------
def graphopt(*arguments: object, **options: object) -> subprocess.Popen[str]:
    code = "import sys; from graphopt.cli import main; main()"
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def test_a_reader_that_goes_away_is_no_failure():
    process = graphopt("schema")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path, plugin, mlp, number):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), str(Path.cwd())])}
    process = graphopt("optimize", mlp, "-p", "sleepy", "-o", tmp_path / "o.onnx", env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "sleepy" in line:
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert listing(tmp_path) == ["mlp.onnx"]


HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "torch", "pydantic", "networkx")


@pytest.mark.parametrize("what", ["import graphopt", "from graphopt.cli.app import app"])
def test_importing_brings_in_nothing_heavy(what):
    """What keeps the start under half a second; a timed assertion would depend on the machine."""
    code = f"import sys; {what}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["optimize"],
        ["inspect"],
        ["compare"],
        ["bench"],
        ["passes"],
        ["schema"],
        *(["export", kind] for kind in ("torch", "hf", "minilm")),
    ],
)
def test_help_fits_a_screen_and_ends_with_an_example(call, command):
    code, out, _ = call(*command, "--help")
    assert code == 0
    lines = [line for line in out.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert any(line.strip().startswith("Example: graphopt") for line in lines[-3:])


_FUNCTIONS = """
import sys
import numpy as np
def raises(): raise RuntimeError("boom")
def raises_later():
    yield {"x": np.ones((1, 32), np.float32)}
    raise RuntimeError("boom")
def exits(*_): sys.exit(0)
def ragged(): return [{"x": [[1, 2], [3]]}]
number = 5
"""


@pytest.mark.parametrize(
    ("option", "name", "word"),
    [
        ("--data", "raises", "failed: RuntimeError: boom"),
        ("--data", "raises_later", "failed: RuntimeError: boom"),
        ("--data", "exits", "failed: SystemExit"),
        ("--data", "ragged", "item 0 holds no arrays"),
        ("--data", "number", "returned int"),
        ("--metric", "exits", "failed: SystemExit"),
    ],
)
def test_a_users_function_that_fails_exits_2(call, mlp, tmp_path, option, name, word):
    (tmp_path / "mine.py").write_text(_FUNCTIONS)
    code, out, err = call("optimize", mlp, "-p", "cleanup", "-q", option, f"{tmp_path / 'mine.py'}:{name}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert word in err
    assert "mlp.opt.onnx" not in listing(tmp_path)


# -- inspect ----------------------------------------------------------------------------------------------------------
def test_inspect_draws_and_tells_where_time_goes(call, mlp, tmp_path):
    code, out, _ = call("inspect", mlp, "--plot", tmp_path / "m.svg", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["timing"]["shapes"] == ["batch 1", "batch 8"]
    assert {"stages", "kinds", "cover", "roles", "prunable", "frozen"} <= set(facts)
    assert facts["frozen"][0]["held_by"][0]["axis"] == 1
    assert (tmp_path / "m.svg").read_text().startswith("<svg ")
    assert "ms a run" not in call("inspect", mlp, "--no-time")[1]
    assert "time: " in call("inspect", mlp, "--size", "batch=3")[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("m.png", "ends in .svg"), ("folder.svg", "give a file name"), ("nowhere/m.svg", "existing folder")],
)
def test_a_picture_that_cannot_be_written_is_a_usage_error(call, mlp, tmp_path, name, expected):
    (tmp_path / "folder.svg").mkdir()
    code, out, err = call("inspect", mlp, "--plot", tmp_path / name)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "--plot" in err and expected in err
