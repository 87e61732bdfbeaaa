"""The figure of the cliff at α = 0."""

import json
from pathlib import Path

import pytest

from branchprune.errors import PruneError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "compare" / "cliff_vgg7_16px.yaml"


def line(method, seed, scores):
    """A line of results with two epochs a level; scores are those of the last."""
    curve = []
    for alpha, val, branch in scores:
        curve.append(
            {"epoch": len(curve), "alpha": alpha, "val": 0.01, "branch": 0.02, "least_share": 0.9}
        )
        last = {"val": val, "branch": branch, "least_share": branch / 2}
        curve.append({"epoch": len(curve), "alpha": alpha, **last})
    curve.append({"epoch": len(curve), "alpha": 0.0, "val": scores[-1][2]})
    return {
        **{"experiment": "compare/cliff_vgg7_16px", "preset": "equal epochs", "seed": seed},
        **{"method": method, "dataset": "CIFAR-10", "metric": "accuracy", "date": "2026"},
        **{"curve": curve, "val": {"dense": 0.75}},
    }


@pytest.fixture
def figure(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import cliff_figure

    return cliff_figure


def test_last_epochs_of_the_levels_and_the_span_of_the_seeds(figure, tmp_path):
    results = tmp_path / "r.jsonl"
    lines = [
        line("weighted sum", 0, [(0.5, 0.7, 0.1), (0.1, 0.6, 0.2)]),
        line("weighted sum", 1, [(0.5, 0.6, 0.3), (0.1, 0.5, 0.4)]),
        line("drawn by group", 0, [(0.5, 0.5, 0.5), (0.1, 0.5, 0.6)]),
    ]
    results.write_text("".join(json.dumps(each) + "\n" for each in lines))
    output = tmp_path / "cliff.png"
    figure.main([str(CONFIG), "--results", str(results), "--output", str(output)])
    assert output.read_bytes().startswith(b"\x89PNG")
    from branchprune.experiments.compare import config as compare_config
    from branchprune.experiments.compare import results as compare_results

    drawn = figure.cliff(compare_results.read(compare_config.read(CONFIG), results))
    means = [(0.65, 0.55, 0.3), (0.2, 0.3, 0.3), (0.1, 0.15)]
    references = [(0.75, 0.75), (0.75, 0.75), (0, 1)]
    for axes, expected, line_of in zip(drawn.axes, means, references, strict=True):
        first, second, reference = axes.get_lines()
        assert first.get_xdata() == pytest.approx([0.5, 0.1, 0.0][: len(expected)])
        assert first.get_ydata() == pytest.approx(expected)
        assert (first.get_label(), second.get_label()) == ("weighted sum", "drawn by group")
        assert reference.get_ydata() == pytest.approx(line_of)
        assert axes.xaxis_inverted()


def test_methods_are_chosen_by_pattern(figure, tmp_path, monkeypatch):
    results, drawn = tmp_path / "r.jsonl", []
    names = ("weighted sum", "weighted sum, matched", "drawn by group")
    lines = [line(name, 0, [(0.5, 0.7, 0.1)]) for name in names]
    results.write_text("".join(json.dumps(each) + "\n" for each in lines))
    cliff = figure.cliff
    monkeypatch.setattr(figure, "cliff", lambda found: drawn.append(found) or cliff(found))
    options = ["--results", str(results), "--output", str(tmp_path / "cliff.png")]
    figure.main([str(CONFIG), *options, "--methods", "*matched", "drawn by group"])
    assert [outcome.method for outcome in drawn[0].outcomes()] == [*names[1:]]
    with pytest.raises(SystemExit, match="no results of cliff_vgg7_16px"):
        figure.main([str(CONFIG), *options, "--methods", "matched"])


def test_every_method_has_a_look_of_its_own(figure):
    from branchprune.experiments.compare import config as compare_config

    methods = len(compare_config.read(CONFIG).methods)
    assert methods <= len(set(figure.LOOKS)) == len(figure.LOOKS)


def test_a_run_that_does_not_blend_is_named(figure, tmp_path):
    results = tmp_path / "r.jsonl"
    results.write_text(
        json.dumps(line("weighted sum", 0, [(0.5, 0.7, 0.1)]) | {"curve": []}) + "\n"
    )
    with pytest.raises(PruneError, match="weighted sum has no val in its curves"):
        figure.main([str(CONFIG), "--results", str(results), "--output", str(tmp_path / "c.png")])
    with pytest.raises(SystemExit, match="no results of cliff_vgg7_16px"):
        figure.main([str(CONFIG), "--results", str(tmp_path / "none.jsonl")])
