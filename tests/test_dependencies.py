"""What is imported is declared, what is declared is used, and what is missing is named."""

import ast
import json
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_run import TINY

from branchprune import PruneError
from branchprune.errors import INSTALL, optional

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "safetensors"}
ZOO = {"timm", "segmentation_models_pytorch", "ultralytics"}
BY_NAME = {"torch_pruning", "optuna", "tensorboard"} | ZOO
"""What `optional` imports, and no import statement."""
DISTRIBUTIONS = packages_distributions() | {name: [name] for name in ZOO}


def names(requirements):
    return {canonicalize_name(Requirement(each).name) for each in requirements}


@cache
def imported(*folders):
    """Return the packages that files import, without those of Python and of this project."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    helpers = (ROOT / "tests" / "helpers").glob("*.py")
    ours = {path.stem for path in (*files, *helpers)} | {"branchprune"}
    return {module.partition(".")[0] for module in modules} - ours - sys.stdlib_module_names


def distributions(packages):
    return {canonicalize_name(DISTRIBUTIONS[package][0]) for package in packages}


def brought(extra):
    """Return the distributions of an extra, and of those of ours that it contains."""
    listed = [*map(Requirement, PROJECT["optional-dependencies"][extra])]
    ours = [each for each in listed if each.name == PROJECT["name"]]
    inner = [brought(name) for each in ours for name in each.extras]
    return names(map(str, listed)).union(*inner)


def test_an_extra_brings_what_those_in_it_bring():
    assert {"onnx", "onnxscript", "onnxruntime", "openvino"} <= brought("export")
    assert "openvino" not in brought("onnx") and "optuna" not in brought("export")


def test_dependencies_are_those_that_are_imported():
    extras = PROJECT["optional-dependencies"]
    by_name = [each for extra in ("compare", "search", "zoo") for each in extras[extra]]
    declared = names([*PROJECT["dependencies"], *by_name])
    assert distributions(imported("branchprune") | BY_NAME) == declared
    allowed = declared | names(extras["yolo"])
    assert distributions(imported("scripts")) <= allowed | {"hypothesis"}  # of torture_networks
    assert distributions(imported("tests", "scripts")) <= allowed | brought("dev")


def test_every_package_but_those_of_the_core_can_be_named_when_it_is_missing():
    with_lightning = {"lightning_fabric"}  # in one distribution with pytorch_lightning
    assert {*INSTALL} == (imported("branchprune") | BY_NAME) - CORE - with_lightning
    extras = PROJECT["optional-dependencies"]
    for package, told in INSTALL.items():
        (brought,) = [extras[name] for name in Requirement(told).extras] or [
            PROJECT["dependencies"]
        ]
        assert distributions({package}) <= names(brought)


@pytest.mark.parametrize("content", [None, "raise ImportError('broken')"])
def test_what_cannot_be_imported_names_who_needs_it_and_the_extra(content, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch_pruning", raising=False)
    if content is None:
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
    else:
        (tmp_path / "torch_pruning.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PruneError) as caught:
        optional("torch_pruning", "pruner (='magnitude')")
    assert str(caught.value).startswith("pruner (='magnitude') needs torch_pruning (")
    assert str(caught.value).endswith('): pip install "branchprune[compare]"')


def test_a_command_without_a_package_ends_in_one_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    child = ROOT / "tests" / "helpers" / "commands_without.py"
    packages = ["jinja2", "pytorch_msssim", "rich", "tensorboard"]  # each found at another place
    command = [sys.executable, child, json.dumps(packages), "run", "tiny.yaml", "--output", "out"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    said = json.loads(found.stdout)
    assert [*said] == packages
    for package, (status, error) in said.items():
        assert status == 2, error
        assert error.startswith("branchprune: error: ") and error.count("\n") == 1
        assert f" needs {package} (" in error and error.endswith(': pip install "branchprune"\n')
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
