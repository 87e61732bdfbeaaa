"""The generated tables: those of the committed result files, and what becomes of their pages."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "scripts" / "results"
FRAMES = "--data.init_args.root FRAMES"
TABLES = (
    *"headlines coverage reproduction zoo paper cost bench plan_speed torture yolo".split(),
    *("reach", "latency", "additivity", "networks", "trained", "sources", "beside", "criteria"),
    *("depth_latency", "layers"),
)


@pytest.fixture
def readme_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme_tables

    return readme_tables


def marked(*names):
    return "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names)


def lines(name):
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def test_pages_are_those_of_the_result_files(readme_tables, capsys):
    status = readme_tables.main(["--check"])
    assert status == 0, f"run scripts/readme_tables.py for {capsys.readouterr().out}"


def test_check_names_the_page_that_changed(readme_tables, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    pages = {"a.md": {"bench": readme_tables.PAGES["scripts/results/cost.md"]["bench"]}}
    monkeypatch.setattr(readme_tables, "PAGES", pages)
    (tmp_path / "a.md").write_text("Before.\n" + marked("bench") + "After.\n")
    assert readme_tables.main(["--check"]) == 1 and capsys.readouterr().out == "a.md\n"
    assert readme_tables.main([]) == 0
    written = (tmp_path / "a.md").read_text()
    assert written.startswith("Before.\n<!-- bench -->\nVGG-16") and written.endswith("After.\n")
    assert readme_tables.main(["--check"]) == 0
    row = re.search(r"\| plan \+ attach \+ collapse, seconds \| ([\d.]+)", written)
    (tmp_path / "a.md").write_text(written.replace(row.group(0), row.group(0) + "9"))
    assert readme_tables.main(["--check"]) == 1


def test_a_table_without_results_stays(readme_tables, monkeypatch, tmp_path):
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    tables = readme_tables.PAGES["scripts/results/cost.md"]
    assert readme_tables.filled(marked(*tables), tables) == marked(*tables)
    (tmp_path / "bench.json").write_text((RESULTS / "bench.json").read_text())
    assert readme_tables.filled(marked(*tables), tables).count("\nold\n") == len(tables) - 1


@pytest.mark.parametrize("gone", ["<!-- {} -->", "<!-- /{} -->", "<!-- /?{} -->"])
@pytest.mark.parametrize("name", [*TABLES, "comparison"])
def test_a_marker_that_is_missing_is_named(readme_tables, name, gone):
    pages = [page for page, tables in readme_tables.PAGES.items() if name in tables]
    variants = {each for found in readme_tables.NETWORKS.values() for each in found}
    assert pages and {*TABLES, "comparison", *variants} == {
        n for t in readme_tables.PAGES.values() for n in t
    }
    for page in pages:
        tables = {name: readme_tables.PAGES[page][name]}
        text = re.sub(gone.format(name), "", (ROOT / page).read_text())
        with pytest.raises(ValueError, match=f"{page} must have <!-- {name} --> and"):
            readme_tables.filled(text, tables, page)


def test_a_marker_that_is_there_twice_is_named(readme_tables):
    tables = readme_tables.PAGES["scripts/results/README.md"]
    with pytest.raises(ValueError, match="must have <!-- zoo --> and <!-- /zoo -->, once each"):
        readme_tables.filled(2 * marked("zoo"), tables)


def test_every_comparison_with_results_has_a_page(readme_tables):
    whole = {*readme_tables.COMPARISONS, *readme_tables.NETWORKS}
    variants = {f"{name}+{v}" for name, each in readme_tables.NETWORKS.items() for v in each}
    found = {path.stem for path in RESULTS.glob("compare/*.jsonl")}
    assert found == whole | variants
    assert {path.stem for path in RESULTS.glob("compare/*.md")} == whole


def test_headlines_are_means_of_the_lines(readme_tables):
    text = (ROOT / "README.md").read_text()
    runs = [
        line["final"]
        for line in lines("compare/vgg7_16px")
        if (line["method"], line["preset"]) == ("reconstruction, recipe", "equal compute")
    ]
    mean = sum(runs) / 3
    spread = (sum((run - mean) ** 2 for run in runs) / 2) ** 0.5
    assert len(runs) == 3 and f"| {100 * mean:.2f} ± {100 * spread:.2f} (3) |" in text
    table = readme_tables.headlines(
        readme_tables.comparisons(RESULTS), json.loads((RESULTS / "bench.json").read_text())
    )
    assert table in text and "MACs left" in table


def test_coverage_counts_what_failed(readme_tables):
    rows = readme_tables.read_csv(RESULTS / "zoo.csv")
    rows[0].exact, rows[0].collapse_error = False, None
    text = readme_tables.coverage([rows, rows[:2]])
    assert text.startswith(f"{len(rows) - 1} of {len(rows)} models of torchvision, ")


def test_times_are_those_of_the_lines(readme_tables):
    minutes = [
        sum(line["seconds"].values()) / 60
        for line in lines("autoencoder_carla")
        if (line["method"], line["preset"]) == ("one after the other", "cpu")
    ]
    *_, vgg, full, small = readme_tables.reproduction().splitlines()
    assert small.endswith(f"--variant cpu {FRAMES}` | {sum(minutes) / len(minutes):.0f} min |")
    assert full.endswith(f"autoencoder_carla.yaml {FRAMES}` | not measured |")
    assert "`branchprune run configs/vgg16_cifar10.yaml --variant cpu` | " in vgg
