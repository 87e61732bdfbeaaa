"""The core runs where torch and safetensors are all that is installed, NumPy not even."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CHILD = Path(__file__).parent / "helpers" / "core_alone.py"


def key(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name, found):
    """Add a distribution and what it requires, without extras, to a set of names."""
    if key(name) in found:
        return found
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return found
    found.add(key(name))
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, found)
    return found


def others():
    """Return every package of the environment that neither torch nor safetensors requires."""
    allowed = closure("torch", closure("safetensors", {"branchprune"}))
    packages = metadata.packages_distributions().items()
    return sorted(name for name, owners in packages if not allowed & {*map(key, owners)})


def run(child, directory):
    command = [sys.executable, str(child), json.dumps(others()), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_core_needs_torch_and_safetensors_alone(tmp_path):
    assert {"numpy", "rich", "pytorch_lightning", "torchvision", "yaml"} <= {*others()}
    assert {"onnx", "onnxscript", "onnxruntime", "openvino"} <= {*others()}
    result = run(CHILD, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["numpy"]  # only to put its generator back


@pytest.mark.parametrize("guarded", [True, False])
def test_an_import_in_the_core_is_noticed(tmp_path, guarded):
    """Even one that would be done without: it would make `import branchprune` slow."""
    package = tmp_path / "branchprune"
    package.mkdir()
    lines = "try:\n import rich\nexcept ImportError:\n pass" if guarded else "import rich"
    (package / "__init__.py").write_text(lines)
    child = tmp_path / "core_alone.py"
    text = CHILD.read_text().replace("    import torch\n    from torch import nn\n", "")
    child.write_text(text.replace("    class Shift(nn.Module)", "    return\n    class Shift"))
    result = run(child, tmp_path)
    if guarded:
        assert json.loads(result.stdout) == ["rich"]
    else:
        assert "No module named 'rich'" in result.stderr
