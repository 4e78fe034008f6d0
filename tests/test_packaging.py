"""What users install is what the repository says: wheel and sdist contents, package list, import arrows."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"graphopt": ROOT / "graphopt", "graphopt.passes": ROOT / "passes", "graphopt.exporters": ROOT / "exporters"}


def packages_in_tree() -> set[str]:
    """Every folder with an __init__.py below the three mapped folders; the symlinks stand for two of them."""
    found = set()
    for name, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            relative = init.parent.relative_to(folder)
            if name == "graphopt" and relative.parts[:1] in (("passes",), ("exporters",)):
                continue
            found.add(".".join([name, *relative.parts]))
    return found


def test_listed_packages_are_those_in_the_tree() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_in_tree()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built from a copy of the tracked and untracked files without network."""
    source, out = tmp_path_factory.mktemp("source") / "graphopt", tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in listed.stdout.splitlines():
        origin, copy = ROOT / line, source / line
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            copy.symlink_to(origin.readlink())
        elif origin.is_file():
            copy.write_bytes(origin.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return out


def test_wheel_holds_every_module_once_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {n for n in names if ".dist-info/" not in n}
    expected = set()
    for package in packages_in_tree():
        root = next(
            name
            for name in ("graphopt.passes", "graphopt.exporters", "graphopt")
            if f"{package}.".startswith(f"{name}.")
        )
        folder = FOLDERS[root].joinpath(*package.split(".")[len(root.split(".")) :])
        expected |= {f"{package.replace('.', '/')}/{file.name}" for file in folder.glob("*.py")}
    data = {n for n in modules if not n.endswith(".py")}
    assert modules - data == expected
    assert "graphopt/py.typed" in data
    assert "graphopt/report/templates/structure.svg.jinja" in data
    folders = ("graphopt/pipeline/presets/", "graphopt/report/templates/")
    assert all(n == "graphopt/py.typed" or n.startswith(folders) for n in data)
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_wheel_declares_every_pass(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    text = archive.read(entry_points).decode()
    for name, target in PROJECT["project"]["entry-points"]["graphopt.passes"].items():
        assert f"{name} = {target}" in text


def test_sdist_holds_sources_and_licence(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {"/".join(n.split("/")[1:]) for n in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "passes/cleanup.py", "exporters/minilm.py"} <= names


def test_imports_point_one_way() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_importing_graphopt_loads_nothing_heavy() -> None:
    heavy = ("onnx", "onnxruntime", "torch", "networkx", "rich")
    code = f"import sys, graphopt; print(sorted(m for m in {heavy} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
