"""Keys of a configuration that do not exist, and how files and options are put together."""

import itertools
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import branchprune as bp
from branchprune.experiments.run.blend import BlendConfig
from branchprune.experiments.run.budget import CostConfig
from branchprune.experiments.run.config import make_listing, parse
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.cut import CutConfig
from branchprune.experiments.run.finetune import FinetuneConfig
from branchprune.experiments.run.prune_config import PruneConfig, prune_sections
from branchprune.experiments.run.rounds import RoundsConfig
from branchprune.experiments.run.torch_pruning import TorchPruningConfig
from branchprune.experiments.run.widths import WidthsConfig

BASE = {
    "output": "out",
    "model": {"class_path": "small_training.TinyVGG"},
    "data": {"class_path": "small_training.Tiny"},
    "task": {"class_path": "branchprune.lightning.ClassificationTask"},
}
BLEND = {"blend": {"levels": {"steps": 0.5}, "hold": {"max_epochs": 9, "patience": 2}}}
OLD = {
    "keep": "widths.keep",
    "exclude": "widths.exclude",
    "multiple_of": "widths.multiple_of",
    "inside": "widths.inside",
    "opaque": "widths.opaque",
    "init": "criterion.name",
    "calibration": "criterion.calibration",
    "fit": "criterion.fit",
    "pruner": "torch_pruning.pruner",
    "levels": "blend.levels",
    "hold": "blend.hold",
    "final_hold": "blend.final_hold",
    "order": "blend.order",
    "monitor": "blend.monitor",
    "monitor_mode": "blend.monitor_mode",
    "restarts": "blend.restarts",
    "learning_rate": "blend.learning_rate",
    "restore_best": "blend.restore_best",
    "thaw_at": "blend.thaw_at",
    "mixing": "blend.mixing",
    "matching": "blend.matching",
    "average": "blend.average",
    "budget": "cost",
    "recalibrate": "blend.recalibrate",
}
"""Every field of the one class that there was, but for those that stayed, and where it is now."""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parsed(*parts):
    """Return the pruning of files, each given as its `prune` section, and options after them."""
    names = (f"{i}.yaml" for i in itertools.count())
    args = []
    for part in parts:
        if isinstance(part, dict):
            args.append(next(names))
            Path(args[-1]).write_text(yaml.safe_dump({**BASE, "prune": part}))
        else:
            args.append(part)
    return parse(args)


def refused(*parts):
    with pytest.raises(bp.PruneError) as error:
        parsed(*parts)
    return str(error.value)


@pytest.mark.parametrize("old", OLD)
def test_an_old_key_is_told_its_new_name(old):
    assert f"0.yaml: prune.{old} is now prune.{OLD[old]}" in refused({**BLEND, old: None})
    new = f"--prune.{old} is now prune.{OLD[old]}"
    assert new in refused(BLEND, f"--prune.{old}", "1")
    assert new in refused(BLEND, f"--prune.{old}=1")
    assert new in refused(BLEND, "--prune", f"{{{old}: 1}}")


@pytest.mark.parametrize("new", OLD.values())
def test_the_new_names_exist(new):
    section, _, name = new.partition(".")
    known = {each.name for each in fields(prune_sections()[section])}
    assert not name or name in known


def test_what_is_within_an_old_key_is_within_the_new_one():
    assert "is now prune.cost.epochs" in refused(BLEND, "--prune.budget.epochs", "3")
    assert "is now prune.blend.hold.patience" in refused(BLEND, "--prune.hold.patience", "3")
    assert "`cut: {}`" in refused({"levels": None})
    assert "prune.finetune.average" in refused({"average": 0.5})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"blend": {"levls": [0.0]}},
            "0.yaml: prune.blend.levls is no key; the nearest is prune.b",
        ),
        ({**BLEND, "finetune": {"epoch": 3}}, "the nearest is prune.finetune.epochs"),
        ({"cut": {"levels": [0.0]}}, "prune.cut.levels is no key"),
        ({**BLEND, "sparsfy": {}}, "prune.sparsfy is no key; the nearest is prune.sparsify"),
        ("--prune.blend.levls=[0]", "--prune.blend.levls is no key"),
        ("--prune.rounds.max_drops", "the nearest is prune.rounds.max_drop"),
        ("--modle", "the nearest is model"),
        ("--dense.epoch", "the nearest is dense.epochs"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_one(part, message):
    assert message in refused(*([part] if isinstance(part, dict) else [BLEND, part]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune.blend.hold", "half"], "prune.blend.hold (='half') must be a whole"),
        (
            ["--prune.finetune.epochs", "ten"],
            "prune.finetune.epochs (='ten') must be a whole number",
        ),
        (["--prune.blend.mixing", "summ"], "(='summ') must be one of sum, group, step"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(options, message):
    error = refused(BLEND, *options)
    assert message in error and "BlendConfig" not in error


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            [BLEND, {"blend": {"levels": {"linear": 3}, "hold": {"patience": 4}}}],
            {"blend": BlendConfig({"linear": 3}, bp.Plateau(9, 4))},
        ),
        (
            [BLEND, {"blend": {"hold": 3}}, "--prune.blend.levels", "[0.3, 0.0]"],
            {"blend": BlendConfig([0.3, 0.0], 3)},
        ),
        (
            [{"blend": {"thaw_at": None}, "rounds": {"max_drop": None}}],
            {"blend": BlendConfig(thaw_at=None), "rounds": RoundsConfig(None)},
        ),
        ([BLEND, {"blend": None, "cut": {}}], {"cut": CutConfig()}),
        ([BLEND, "--prune.blend", "null", "--prune.cut", "{}"], {"cut": CutConfig()}),
        ([{"cut": {}}, "--prune.blend", "{}", "--prune.cut", "null"], {"blend": BlendConfig()}),
        (
            [{"cut": {}}, "--prune.cut=null", "--prune.torch_pruning.pruner=group_norm"],
            {"torch_pruning": TorchPruningConfig("group_norm")},
        ),
        (
            [{"cut": {}, "finetune": {"epochs": 3}}, {"finetune": {"fresh": True}}],
            {"cut": CutConfig(), "finetune": FinetuneConfig(3, True)},
        ),
        (
            [{"cut": {}, "finetune": {"fresh": True}}, "--prune.finetune.epochs", "7"],
            {"cut": CutConfig(), "finetune": FinetuneConfig(7, True)},
        ),
        (
            [{"cut": {}, "finetune": {"fresh": True}}, {"finetune": None}, {"finetune": {}}],
            {"cut": CutConfig(), "finetune": FinetuneConfig()},
        ),
        (
            [{"cut": {}, "cost": {"epochs": 3}, "finetune": {}}, "--prune.cost", "{epochs: 4}"],
            {"cut": CutConfig(), "cost": CostConfig(4), "finetune": FinetuneConfig()},
        ),
        (
            [{"cut": {}, "criterion": {"fit": 2}}, "--prune.criterion.name", "l2"],
            {"cut": CutConfig(), "criterion": CriterionConfig("l2", fit=2)},
        ),
        (
            [
                {"cut": {}, "widths": {"keep": {"": 0.5, "classifier": 1.0}, "multiple_of": 2}},
                {"widths": {"exclude": ["features.0"]}},
            ],
            {
                "cut": CutConfig(),
                "widths": WidthsConfig({"": 0.5, "classifier": 1.0}, ["features.0"], 2),
            },
        ),
        (
            [{"cut": {}, "widths": {"keep": {"": 0.5}}}, "--prune.widths.keep", "0.25"],
            {"cut": CutConfig(), "widths": WidthsConfig(0.25)},
        ),
    ],
)
def test_later_files_and_options_override_key_by_key(parts, expected):
    """And the stored text reads as the same again."""
    config = parsed(*parts)
    assert config.prune == PruneConfig(**expected)
    Path("stored.yaml").write_text(config.text)
    assert parse(["stored.yaml"]).prune == config.prune


def test_hyperparameters_are_those_of_the_sections_that_are_set():
    prune = PruneConfig(cut=CutConfig(), finetune=FinetuneConfig(3), task={"learning_rate": 0.1})
    assert prune.hyperparameters() == {
        "algorithm": "cut",
        "widths": {
            **{"keep": None, "exclude": [], "multiple_of": 1, "inside": "", "opaque": []},
            "target": None,
        },
        "cut": {"rewind": None},
        "finetune": {"epochs": 3, "fresh": False, "average": 0.0},
        "task": {"learning_rate": 0.1},
    }


def test_the_listing_has_every_field_of_every_section():
    options = {each for action in make_listing()._actions for each in action.option_strings}
    for section, kind in prune_sections().items():
        for field in fields(kind):
            assert f"--prune.{section}.{field.name}" in options
    assert {f"--prune.{field.name}" for field in fields(PruneConfig)} - options == {
        "--prune.widths"
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune:\n", "prune must not be null"),
        ("prune: [1]\n", "prune (=[1]) must be a mapping of blend, "),
        ("prune: {widths: null}\n", "prune.widths must not be null"),
        (
            "prune: {widths: 0.5}\n",
            "prune.widths (=0.5) must be a mapping of exclude, inside, ",
        ),
        (
            "prune: {criterion: l1}\n",
            "(='l1') must be a mapping of calibration, fit, name, or n",
        ),
        (
            "prune: {blend: null, cut: true}\n",
            "prune.cut (=True) must be a mapping of rewind, or null",
        ),
        ("prune: {widths: {inside: null}}\n", "prune.widths.inside must not be null"),
        ("prune: {blend: {hold: null}}\n", "prune.blend.hold must not be null"),
        ("dense: 3\n", "dense (=3) must be a mapping of checkpoint, epochs"),
        ("seed: null\n", "seed must not be null"),
        ("variant: cpu\n", "variant is no key"),
        ("config: more.yaml\n", "config is no key"),
        ("- a\n", "a configuration has keys"),
        ("name: [\n", "no YAML in UTF-8"),
        ("name: tïny\n", "no YAML in UTF-8"),
    ],
)
def test_a_file_with_something_else_than_a_key_holds(text, message):
    Path("more.yaml").write_text(text, encoding="latin-1")
    found = refused(BLEND, "--config", "more.yaml")
    assert found.startswith("more.yaml: ") and message in found


@pytest.mark.parametrize("option", ["--prune.blend=3", "--dense null", "--seed null"])
def test_an_option_with_something_else_than_a_key_holds(option):
    assert re.match(r"--\S+ .*must (be a mapping|not be null)", refused(BLEND, *option.split()))


@pytest.mark.parametrize("text", ["", "# prune:\n#   cut: {}\n", "prune: {task: null}\n"])
def test_a_file_that_changes_nothing(text):
    Path("more.yaml").write_text(text)
    config = parsed(BLEND, "--config", "more.yaml", "--results", "null", "--resume")
    assert config.resume and config.prune.blend == parsed(BLEND).prune.blend
