"""A wrong class, module or argument in a configuration is named, with the nearest that exists."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from branchprune import PruneError
from branchprune.experiments.run.config import parse

BASE = {
    "output": "out",
    "model": {"class_path": "small_training.TinyVGG"},
    "data": {"class_path": "small_training.Tiny"},
    "task": {"class_path": "branchprune.lightning.ClassificationTask"},
    "prune": {"cut": {}},
}
MODULES = {
    "own_net": """
from torch import nn
MyNetwork = 3
def make():
    return None
class MyNet(nn.Module):
    pass
class Around(nn.Module):
    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
""",
    "divides": "1 / 0",
    "torn": "def f(:",
    "imports": "import nowhere",
}
NOTHING = {
    "own_net.MyNett": "module own_net has no MyNett; the nearest is MyNet",
    "own_nett.MyNet": "No module named 'own_nett'",
    "imports.MyNet": "No module named 'nowhere'",
    "divides.MyNet": "divides fails while it is imported: ZeroDivisionError: division by zero",
    "torn.MyNet": "torn fails while it is imported: SyntaxError: invalid syntax (torn.py, line 1)",
    "MyNett": "is no import path, such as module.name",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        Path(f"{name}.py").write_text(text)


def refused(*options, **changed):
    Path("own.yaml").write_text(yaml.safe_dump(BASE | changed))
    with pytest.raises(PruneError) as error:
        parse(["own.yaml", *options])
    return str(error.value)


@pytest.mark.parametrize("path", NOTHING)
def test_a_model_that_does_not_exist(path):
    said = {
        refused(model={"class_path": path}),
        refused(model={"class_path": path, "init_args": {"count": 1}}),
        refused(model=path),
        refused("--model", path),
        refused("--model.class_path", path),
    }
    (text,) = said
    assert text.startswith(f"model.class_path (='{path}')") and text.endswith(NOTHING[path])
    assert "\n" not in text


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("data", "small_training.Tinny", "module small_training has no Tinny; the nearest is Tiny"),
        (
            "task",
            "branchprune.lightning.ClasificationTask",
            "module branchprune.lightning has no ClasificationTask; "
            "the nearest is ClassificationTask",
        ),
        ("task", "nowhere.Task", "No module named 'nowhere'"),
    ],
)
def test_data_and_tasks_that_do_not_exist(key, path, message):
    assert refused(**{key: {"class_path": path}}) == f"{key}.class_path (='{path}'): {message}"


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("model", "own_net.MyNetwork", "is no subclass of Module"),
        ("data", "own_net.MyNet", "is no subclass of LightningDataModule"),
        ("task", "torch.nn.Linear", "is no subclass of LightningModule"),
    ],
)
def test_something_else_than_such_a_class(key, path, message):
    assert refused(f"--{key}={path}") == f"{key}.class_path (='{path}') {message}"


def test_arguments_that_a_class_does_not_take():
    model = {
        "class_path": "own_net.Around",
        "init_args": {"inner": {"class_path": "own_net.MyNet"}},
    }
    assert refused("--model.init_args.stagess=1") == (
        "model: 'small_training.TinyVGG': Option 'stagess' is not accepted"
    )
    assert refused("--task.init_args.rate=1") == "task: Option 'rate' is not accepted"
    assert refused(model=model).endswith("the following arguments are required: count")
    model["init_args"] |= {"count": "x"}
    assert refused(model=model) == "model.count (='x') must be a whole number"
    model["init_args"] |= {"count": 1, "inner": {"class_path": "own_net.MyNett"}}
    assert refused(model=model).startswith("model.inner: Problem with given class_path")


def test_alternatives_of_a_value_are_all_named():
    must = "must be a number or a mapping of names to numbers"
    assert refused("--prune.widths.keep=x") == f"prune.widths.keep (='x') {must}"
    said = refused("--prune.widths", '{"keep": {"": "half"}}')
    assert said == f"prune.widths.keep (={{'': 'half'}}) {must}"


def test_sections_name_what_is_in_them():
    must = "prune.blend.hold (='x') must be a whole number or a mapping of max_epochs, patience"
    assert refused("--prune.cut=null", "--prune.blend.hold=x").startswith(must)
    said = refused("--prune.cut=null", "--prune.blend", '{"hold": {"max_epoch": 3}}')
    assert said.startswith("prune.blend.hold: Option 'max_epoch' is not accepted: there are max_ep")


@pytest.mark.parametrize(
    ("key", "base"),
    [("model", "Module"), ("data", "LightningDataModule"), ("task", "LightningModule")],
)
def test_a_function_that_does_not_say_what_it_makes(key, base):
    assert refused(f"--{key}=own_net.make") == (
        f"{key}.class_path (='own_net.make') is a function that does not say what it returns: give "
        f"a subclass of {base}, or write `def make(…) -> {base}:`"
    )


def test_a_data_module_of_the_other_package_of_lightning_is_told(monkeypatch):
    module = ModuleType("of_lightning")
    module.Data = type("Data", (type("LightningDataModule", (), {}),), {})
    module.Data.__mro__[1].__module__ = "lightning.pytorch.core.datamodule"
    monkeypatch.setitem(sys.modules, "of_lightning", module)
    said = refused(data={"class_path": "of_lightning.Data"})
    assert "data.class_path (='of_lightning.Data') is of the package `lightning`" in said
    assert said.endswith("pytorch_lightning.LightningDataModule, import pytorch_lightning")
