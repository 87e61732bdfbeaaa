"""The pages are short, their links lead somewhere, and what they name is there."""

import re

import pytest
import yaml
from pages import PAGES, READMES, ROOT, commands_in, text

from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.run.config import make_parser

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page):
    """Return the anchors of the headings of a page, as GitHub makes them."""
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page, content):
    """Yield the links of a page that lead nowhere."""
    for target in LINK.findall(content):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (ROOT / page).parent / path if path else ROOT / page
        if not found.exists() or (
            anchor and anchor not in anchors(found.resolve().relative_to(ROOT).as_posix())
        ):
            yield target


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert not [*broken_links(page, text(page))]


def test_a_link_that_leads_nowhere_is_noticed():
    content = "[a](nowhere.md) [b](configs) [c](branchprune/README.md#the-words) [d](README.md#no)"
    assert [*broken_links("README.md", content)] == ["nowhere.md", "README.md#no"]


@pytest.mark.parametrize("page", READMES)
def test_no_page_is_long(page):
    lines = text(page).count("\n")
    assert lines <= (250 if page == "README.md" else 400)


@pytest.mark.parametrize("page", READMES)
def test_no_page_knows_a_machine(page):
    assert not re.search(r"(?<![\w.])/(?:work|home|root|tmp|usr)/|pypi\.|pythonhosted", text(page))


def named_functions():
    """Yield file and function of each row of the walk in the architecture page."""
    row = re.compile(r"^\|[^|]+\| `([\w/]+\.py)` \| ((?:`\w+`(?:, )?)+) \|$", re.M)
    for file, functions in row.findall(text("branchprune/README.md")):
        for function in re.findall(r"\w+", functions):
            yield file, function


def test_the_walk_names_functions_that_are_there():
    named = [*named_functions()]
    assert len(named) > 20
    for file, function in named:
        source = (ROOT / "branchprune" / file).read_text()
        assert re.search(rf"^(?:def|class) {function}\b", source, re.M), f"{file}: {function}"


def test_paths_in_the_architecture_page_are_there():
    spans = re.findall(r"`([\w./]+/|[\w./]+\.(?:py|md|yaml))`", text("branchprune/README.md"))
    assert len(spans) > 40
    inside = {path.name for room in ("branchprune", "tests") for path in (ROOT / room).rglob("*")}
    for span in spans:
        places = (ROOT / "branchprune" / span, ROOT / span)
        assert any(place.exists() for place in places) or span.rstrip("/") in inside, span


def test_every_room_is_in_the_table_of_floors():
    table = text("branchprune/README.md").split("## The words")[0]
    rooms = {path.parent.name for path in (ROOT / "branchprune").glob("*/__init__.py")}
    assert rooms == {room for room in re.findall(r"`(\w+)/`", table)} - {
        *("run", "compare", "search", "tracing", "rules")
    }


def test_commands_are_found_in_blocks_and_in_text():
    page = """`make test` and `branchprune zoo --library timm`, `blended.alpha = 0`, `make`
```sh
.venv/bin/branchprune run a.yaml \\
    --seed 1   # with a comment
$ pip install '.[dev]'
```
```python
branchprune = 1
```
"""
    expected = ["branchprune run a.yaml --seed 1", "pip install '.[dev]'", "make test"]
    assert commands_in(page) == [*expected, "branchprune zoo --library timm"]


def keys_on_the_page():
    """Return what the table of what else a run can do says to set, one configuration each."""
    section = text("configs/README.md").split("## What else a run can do")[1].split("\n## ")[0]
    return re.findall(r"`((?:prune|data|task): \{.*?\})`", section)


def says(found, wanted):
    """Return whether settings hold others, and maybe more of their sections."""
    if not isinstance(wanted, dict) or not wanted.keys() <= found.keys():
        return found == wanted
    return all(says(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("added", keys_on_the_page())
def test_keys_on_the_page_are_there(added):
    shipped = [str(ROOT / "configs" / "recipe.yaml"), "--config", added]
    config = make_parser().parse_args(files_as_options(shipped))
    assert says(config.as_dict(), yaml.safe_load(added))


def test_the_table_of_keys_is_found():
    assert len(keys_on_the_page()) > 15
