"""A few attacks of each kind, so that CI notices what the whole torture would find."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))  # for child processes, too

import torture  # noqa: E402
import torture_files  # noqa: E402
from torture_table import table  # noqa: E402
from torture_trial import Trial, is_clear  # noqa: E402

from branchprune.experiments.files import read_lines  # noqa: E402

SURVIVED, WRONG = Trial("survived"), Trial("wrong", "x")


def test_nothing_is_wrong(tmp_path):
    """In a process of its own: what makes writes fail is loaded before any other library."""
    few = "--kills 1 --writes 1 --races 1 --flips 80 --configs 2 --networks 4 --record".split()
    (tmp_path / "scripts" / "results").mkdir(parents=True)
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), *few]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0 and "WRONG" not in found.stderr, found.stderr
    lines = read_lines(tmp_path / "scripts" / "results" / "torture.jsonl")
    assert found.stdout == f"{table(lines)}\n"
    assert [line["tried"] for line in lines] == [4, 1, 1, 1, 2, *4 * [20], *6 * [1]]
    assert all(line["tried"] == line["survived"] + line["refused"] for line in lines)
    assert not any(line["wrong"] for line in lines)
    assert lines[0]["command"] == f"python scripts/torture.py {' '.join(few)}"


def test_attacks_are_picked_and_what_is_wrong_ends_in_1(tmp_path, monkeypatch, capsys):
    """A collapse that returns the dense model with its weights changed is noticed."""
    monkeypatch.setattr(torture.torture_networks.bp, "collapse", lambda blended: blended.model)
    status = torture.main(["--only", "random networks, float3*", "--networks", "8"])
    told = capsys.readouterr()
    assert status == 1 and told.out.count("random networks") == 2  # its row, and the command
    assert "| random networks, float32 | 2 | 0 | 0 | 2 |" in told.out
    assert told.err.count("WRONG: ") == 2 and "from float64, training=False" in told.err


def test_what_is_read_wrong_is_counted(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1234567")
    found = Counter(t.how for t in torture_files.attack(path, Path.read_bytes, bytes.__eq__, 20))
    assert found["wrong"] == 40 and path.read_text() == "1234567"


def test_the_table_counts_the_last_line_of_an_attack():
    found = [Counter([t.how for t in trials]) for trials in ([], [SURVIVED, WRONG], [SURVIVED])]
    lines = [torture.line(name, c, 1.0, []) for name, c in zip("aba", found, strict=True)]
    rows = [row.split(" | ")[:5] for row in table(lines).splitlines()[2:]]
    assert rows == [["| a", "1", "1", "0", "0"], ["| b", "2", "1", "0", "1"]]


def test_a_traceback_is_not_clear():
    assert is_clear("branchprune: error: the disk is full")
    assert not is_clear("Traceback (most recent call last):\n  error")
    assert not is_clear("branchprune: error: one\nline more")
