"""A few attacks of each kind, so that CI notices what the whole torture would find."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))  # for child processes, too

import torture  # noqa: E402
import torture_files  # noqa: E402
from torture_runs import Trial, is_clear  # noqa: E402


def test_nothing_is_wrong(tmp_path):
    """In a process of its own: what makes writes fail is loaded before any other library."""
    few = ["--kills", "2", "--writes", "2", "--races", "1", "--flips", "160"]
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), *few]
    command += ["--output", str(tmp_path / "table.md")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "WRONG" not in found.stderr, found.stderr
    assert found.stdout == (tmp_path / "table.md").read_text() + "\n"
    rows = [line.split(" | ") for line in found.stdout.splitlines()[2:] if line]
    assert [int(row[1]) for row in rows] == [*4 * [40], *3 * [2], *2 * [2], 1]
    assert all(row[-1] == "0 |" for row in rows)


def test_what_is_read_wrong_is_counted(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1234567")
    found = Counter(t.how for t in torture_files.attack(path, Path.read_bytes, bytes.__eq__, 20))
    assert found["wrong"] == 40 and path.read_text() == "1234567"


def test_the_table_counts():
    found = {"kill": Counter(t.how for t in [Trial("survived"), Trial("wrong", "x")])}
    assert torture.table(found).splitlines()[2] == "| kill | 2 | 1 | 0 | 1 |"


def test_a_traceback_is_not_clear():
    assert is_clear("branchprune: error: the disk is full")
    assert not is_clear("Traceback (most recent call last):\n  error")
    assert not is_clear("branchprune: error: one\nline more")
