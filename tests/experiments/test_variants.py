"""Files with a base and variants: what they stand for, and what is wrong with them."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from branchprune.errors import PruneError
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.variants import read_file

BASE = {
    "a": 1,
    "section": {"b": 1, "c": {"x": 1}},
    "variants": {
        "small": {"a": 2, "section": {"b": 2}},
        "odd": {"section": {"c": {"y": 3}}},
        "odd + small": {"section": {"b": 9}},
    },
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, settings):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(settings, sort_keys=False))

    write("base.yaml", BASE)
    return write


def read(*args):
    """Return what jsonargparse makes of a command line."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--a", type=float)
    parser.add_argument("--section.b", type=int)
    parser.add_argument("--section.c", type=dict)
    found = parser.parse_args(files_as_options(args)).as_dict()
    return found["a"], found["section"]["b"], found["section"]["c"]


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ([], (1, 1, {"x": 1})),
        (["--variant", "small"], (2, 2, {"x": 1})),
        (["--variant=odd"], (1, 1, {"y": 3})),
        (["--variant", "small", "--variant", "odd"], (2, 9, {"y": 3})),
        (["--variant", "odd", "--variant", "small"], (2, 9, {"y": 3})),
        (["--variant", "small", "--a", "7"], (7, 2, {"x": 1})),
        (["--a", "7", "--variant", "small"], (7, 2, {"x": 1})),
    ],
)
def test_variants_come_behind_their_file_and_before_options(write, args, found):
    assert read("base.yaml", *args) == found


def test_the_variants_of_one_section_are_in_the_order_of_the_command_line(write):
    write("a.yaml", BASE | {"variants": {"one": {"a": 1}, "two": {"a": 2}}})
    assert read("a.yaml", "--variant", "one", "--variant", "two")[0] == 2
    assert read("a.yaml", "--variant", "two", "--variant", "one")[0] == 1


def test_a_later_file_overrides_the_variants_of_an_earlier_one(write):
    write("last.yaml", {"section": {"b": 5}})
    assert read("base.yaml", "last.yaml", "--variant", "small") == (2, 5, {"x": 1})
    assert read("base.yaml", "--config", "last.yaml", "--variant", "small")[1] == 5
    assert read("last.yaml", "base.yaml", "--variant", "small")[1] == 2
    write("also.yaml", {"a": 4, "variants": {"small": {"section": {"b": 6}}}})
    assert read("base.yaml", "also.yaml", "--variant", "small") == (4, 6, {"x": 1})


def test_a_base_comes_first_with_the_rows_that_are_taken(write):
    other = {"base": "../base.yaml", "section": {"b": 4}}
    write("in/child.yaml", other | {"variants": {"small": {"a": 6}, "odd + small": {"a": 8}}})
    assert read("in/child.yaml") == (1, 4, {"x": 1})
    assert read("in/child.yaml", "--variant", "small") == (6, 2, {"x": 1})
    assert read("in/child.yaml", "--variant", "odd", "--variant", "small") == (8, 9, {"y": 3})
    write("in/child.yaml", {**other, "rows": ["small"]})
    assert read("in/child.yaml") == (2, 4, {"x": 1})
    assert read("in/child.yaml", "--variant", "odd") == (2, 9, {"y": 3})
    write("in/child.yaml", {"base": ["../base.yaml"], "rows": ["small", "odd"], "a": 3})
    assert read("in/child.yaml") == (3, 9, {"y": 3})
    write("in/child.yaml", {**other, "rows": ["small", "odd"]})
    assert read("in/child.yaml") == (2, 4, {"y": 3})  # "odd + small" is of the base, taken once
    write("more.yaml", {"a": 0.5, "variants": {"fast": {"section": {"b": 0}}}})
    write("two.yaml", {"base": ["base.yaml", "more.yaml"], "rows": ["small", "fast"]})
    assert read("two.yaml") == (0.5, 0, {"x": 1})


def test_a_file_without_variants_is_handed_on_as_it_is(write):
    write("plain.yaml", {"a": 1})
    assert files_as_options(["plain.yaml", "none.yaml", "--a", "1"]) == [
        *("--config", "plain.yaml", "--config", "none.yaml", "--a", "1")
    ]
    assert files_as_options(["--a", "1", "--config=plain.yaml"])[2:] == ["--config", "plain.yaml"]
    Path("null.yaml").write_text("a:\n")  # which the parser would take for text
    assert files_as_options(["null.yaml"]) == ["--config", '{"a": null}']
    text = json.dumps({"a": [1.0] * 2000})  # too long for the name of a file
    assert files_as_options(["--config", text]) == ["--config", text]
    Path("broken.yaml").write_text("a: [")
    write("more.yaml", {"base": "broken.yaml"})
    for file in ("broken.yaml", "more.yaml"):
        with pytest.raises(PruneError, match=r"broken\.yaml: no YAML"):
            files_as_options([file])


def test_numbers_are_those_that_the_parser_reads(write):
    Path("numbers.yaml").write_text("variants: {}\nsection: {c: {rate: 1e-3, day: 2026-01-02}}\n")
    assert read("numbers.yaml")[2] == {"rate": 0.001, "day": "2026-01-02"}


def test_what_is_of_a_comparison_alone_is_left_out(write):
    write("c.yaml", {"a": 3, "seeds": [0], "budgets": {"b": {}}, "methods": {"m": {}}})
    assert json.loads(files_as_options(["c.yaml"])[1]) == {"a": 3}
    write("c.yaml", {"a": 3, "seeds": [0]})
    assert files_as_options(["c.yaml"]) == ["--config", "c.yaml"]  # an unknown key of a run


WRONG = {
    "no variant": (BASE, "smal", "--variant (='smal') is no variant, perhaps 'small'; known are"),
    "none at all": ({"a": 1}, "x", "--variant (='x') is no variant; the file has none"),
    "joint": (BASE, "odd + small", "--variant (='odd + small') is no variant"),
    "no mapping": ({"variants": ["a"]}, "", "w.yaml: variants (=['a']) must be a mapping by name"),
    "no settings": ({"variants": {"a": 1}}, "", "variants.a (=1) must be a partial configuration"),
    "number": ({"variants": {1: {}}}, "", "variants.1 (={}) must be a partial configuration"),
    "part": ({"variants": {"a": {}, "a + b": {}}}, "", "variants (='b') is no variant"),
    "no base": ({"base": "none.yaml"}, "", "base (='none.yaml') does not exist in"),
    "base of a base": ({"base": "child.yaml"}, "", "base (='child.yaml') has a base of its own"),
    "kind of base": ({"base": 1}, "", "base (=1) must be a file or a list of files"),
    "rows": ({"base": "base.yaml", "rows": "small"}, "", "rows (='small') must be a list"),
    "own row": (BASE | {"rows": ["small"]}, "", "rows (='small') is no variant"),
    "row": ({"base": "base.yaml", "rows": ["odds"]}, "", "rows (='odds') is no variant, perhaps"),
    "twice": (
        {"base": ["base.yaml", "also.yaml"]},
        "",
        "base has two files with the variant 'small': rename one",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(write, case):
    settings, variant, message = WRONG[case]
    write("child.yaml", {"base": "base.yaml"})
    write("also.yaml", {"variants": {"small": {}}})
    write("w.yaml", settings)
    args = ["w.yaml", *(["--variant", variant] if variant else [])]
    with pytest.raises(PruneError, match=re.escape(message)):
        files_as_options(args)


def test_a_variant_without_a_name_is_refused(write):
    with pytest.raises(PruneError, match="--variant needs a value"):
        files_as_options(["base.yaml", "--variant"])


def test_the_names_that_can_be_chosen(write):
    write("child.yaml", {"base": "base.yaml", "variants": {"own": {}, "small": {}}})
    assert read_file(Path("child.yaml")).names == ["small", "odd", "own"]


def test_the_stored_configuration_of_a_run_has_everything_written_out(tmp_path, capsys):
    from branchprune.cli import main
    from branchprune.experiments.run.config import make_parser

    file = tmp_path / "own.yaml"
    digits = Path(__file__).parents[2] / "configs" / "digits.yaml"
    quick = {"dense": {"epochs": 1}, "model": {"init_args": {"stages": [[8], [8]]}}}
    cut = {"prune": {"blend": None, "cut": {}, "widths": {"keep": 0.25}}}
    file.write_text(yaml.safe_dump({"base": str(digits), "variants": {"quick": quick, "cut": cut}}))
    args = [str(file), "--variant", "quick", "--variant", "cut", "--fast", "true"]
    assert main(["run", *args, "--output", str(tmp_path / "run")]) == 0
    stored = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(stored.read_text())
    assert not {"variants", "base", "rows", "config"} & {*settings}
    assert settings["prune"]["widths"]["keep"] == 0.25 and settings["prune"]["cut"] == {
        "rewind": None
    }
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "--variant quick --variant cut" in result["command"]
    again = make_parser().parse_args(["--config", str(stored), "--output", "again"])
    assert (again.prune.cut.as_dict(), again.prune.blend) == ({"rewind": None}, None)
    assert main(["run", str(file), "--variant", "quik", "--output", str(tmp_path / "no")]) == 2
    assert "perhaps 'quick'" in " ".join(capsys.readouterr().err.split())


def test_old_and_unknown_keys_of_variants_are_named_with_their_place(tmp_path, capsys):
    from branchprune.cli import main

    file = tmp_path / "own.yaml"
    file.write_text("variants: {a: {prune: {keep: 0.5}}}")
    assert main(["run", str(file)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "own.yaml: variants.a: prune.keep is now prune.widths.keep" in shown


def test_the_dense_command_takes_variants(tmp_path):
    from branchprune.cli import main

    digits = Path(__file__).parents[2] / "configs" / "digits.yaml"
    file = tmp_path / "own.yaml"
    small = {"seed": 3, "fast": True, "model": {"init_args": {"stages": [[8], [8]]}}}
    file.write_text(yaml.safe_dump({"base": str(digits), "variants": {"small": small}}))
    assert main(["dense", str(file), "--variant", "small", "--output", str(tmp_path / "d")]) == 0
    assert yaml.safe_load((tmp_path / "d" / "config.yaml").read_text())["seed"] == 3
