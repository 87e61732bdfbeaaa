"""Every command on a README is known, runs, and does what the text beside it says."""

import dataclasses
import re
import sys

import pytest
import yaml
from command_checks import CHECKS, checks_of
from pages import READMES, ROOT, commands_in, text
from run_checks import SAID, World
from shipped import SMALL, draw_folders

from branchprune.benchmarks import bench, zoo
from branchprune.experiments.jobs import JobRunner
from branchprune.models import VGG

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

PAGES = [*READMES, ".github/CONTRIBUTING.md"]
COMMANDS = {page: commands_in(text(page)) for page in PAGES}
NARROW = yaml.safe_load(SMALL["vgg16"])
ALL = sorted({command for commands in COMMANDS.values() for command in commands})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    draw_folders(folder)
    (folder / "my_images").symlink_to("classes")
    return folder


@pytest.fixture
def world(checkout, monkeypatch, capsys):
    """Where commands run; what they would start beside them is kept, or made up."""
    found, side_by_side = {}, []

    def run(runner, jobs):
        found.update({job.name: job for job in jobs})
        side_by_side.append(runner.side_by_side)
        return []

    def zoo_row(row, timeout):
        return dataclasses.replace(row, exact=True, macs_share_prunable=1.0, collapse_error=1e-15)

    monkeypatch.setattr(JobRunner, "run", run)
    monkeypatch.setattr(zoo, "run_apart", zoo_row)
    monkeypatch.setattr(bench, "VGG", lambda stages=NARROW: VGG(stages))
    monkeypatch.setattr(sys, "argv", ["branchprune"])
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(checkout)
    return World(checkout, found, side_by_side, lambda: "".join(capsys.readouterr()))


@pytest.mark.parametrize("command", ALL)
def test_the_command_does_what_the_page_says(command, world):
    [check] = checks_of(command)
    check(command, world)


def test_a_command_that_nobody_knows_fails():
    for command in ("branchprune prune it.yaml", "python scripts/gone.py", "make coffee"):
        assert commands_in(f"`{command}`") == [command] and checks_of(command) == []


def test_every_check_is_of_a_command_on_a_page():
    idle = [p for p in CHECKS if not any(re.fullmatch(p, command) for command in ALL)]
    assert not idle


def test_what_is_said_of_a_command_stands_on_the_front_page():
    assert {f"branchprune {command}" for command in SAID} <= {*COMMANDS["README.md"]}
    runs = {c for c in COMMANDS["README.md"] if re.match("branchprune run configs/", c)}
    assert runs == {f"branchprune {command}" for command in SAID}
