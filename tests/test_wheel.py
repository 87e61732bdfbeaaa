"""What `python -m build` makes, installed in an environment of its own and used elsewhere."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_run import TINY

import branchprune

ROOT = Path(__file__).parents[1]
SOURCES = ("branchprune", "tests", "pyproject.toml", "MANIFEST.in")
DOCUMENTS = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")


def run(command, **options):
    """Run a command as in a shell that knows nothing of this checkout."""
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), check=True, text=True, capture_output=True, env=keep, **options
    ).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build in a copy, since a build folder left in the checkout would bring its files along."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, *DOCUMENTS):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder])
    return folder / "dist"


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """Return the programs of a new environment with the wheel, beside what is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    paths = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "installed_here.pth").write_text("\n".join({*paths.values()}))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel])
    return folder / "bin"


def test_only_the_package_and_its_licence_are_inside(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = {*zipfile.ZipFile(wheel).namelist()}
    metadata = f"branchprune-{branchprune.__version__}.dist-info"
    assert {name.split("/")[0] for name in inside} == {"branchprune", metadata}
    assert f"{metadata}/licenses/LICENSE" in inside
    tracked = [path for path in (ROOT / "branchprune").rglob("*") if path.is_file()]
    code = {str(path.relative_to(ROOT)) for path in tracked if path.suffix not in (".pyc", ".md")}
    assert {name for name in inside if name.startswith("branchprune/")} == code
    with tarfile.open(source) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert {*DOCUMENTS, "pyproject.toml"} <= shipped
    assert not any(name.startswith("tests") for name in shipped)


def test_ten_lines_of_the_readme_run(environment, tmp_path):
    lines = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)[0]
    code = f"{lines}\nassert small.conv1.out_channels == 32\nprint(bp.__file__)"
    found = run([environment / "python", "-I", "-c", code], cwd=tmp_path).splitlines()[-1]
    assert Path(found).is_relative_to(environment.parent)


def test_version(environment, tmp_path):
    said = run([environment / "branchprune", "--version"], cwd=tmp_path)
    python = platform.python_version()
    expected = f"branchprune {branchprune.__version__} (torch {torch.__version__}, Python {python})"
    assert said == f"{expected}\n"


def test_a_run_finds_modules_of_the_current_folder_and_writes_its_report(environment, tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "tests" / "helpers" / "tiny_run.py").read_text())
    (tmp_path / "mine.yaml").write_text(TINY.replace("tiny_run", "mine"))
    command = [environment / "branchprune", "run", "mine.yaml", "--output", "out", "--fast", "true"]
    run(command, cwd=tmp_path)
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    versions = json.loads((tmp_path / "out" / "result.json").read_text())["versions"]
    assert versions["branchprune"] == branchprune.__version__
