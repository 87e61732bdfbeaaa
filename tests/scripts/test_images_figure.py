"""The figure of scores over numbers of images."""

import json
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp

from branchprune.errors import PruneError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "compare" / "few_images_16px.yaml"
SCORES = {"50 images": [0.6, 0.62, 0.58], "100 images": [0.7, 0.72, 0.68], "10 images": [0.5]}


def lines(method, scores):
    return [
        {"experiment": "compare/few_images_16px", "preset": budget, "seed": seed, "date": "2026"}
        | {"method": method, "dataset": "CIFAR-10", "metric": "accuracy", "final": score}
        | {"dense": 0.8}
        for budget, found in scores.items()
        for seed, score in enumerate(found)
    ]


@pytest.fixture
def figure(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import images_figure

    return images_figure


def test_means_and_intervals_over_the_numbers_of_images(figure, tmp_path):
    found = lines("ours", SCORES | {"100 images, keep 0.2": [0.1]})
    found += lines("MiR", {"100 images": [0.6], "10 images": [0.4]})
    found += lines("random weights", {"100 images": [0.2]})
    results = tmp_path / "r.jsonl"
    results.write_text("".join(json.dumps(each) + "\n" for each in found))
    output = tmp_path / "images.png"
    figure.main([str(CONFIG), "--results", str(results), "--output", str(output)])
    assert output.read_bytes().startswith(b"\x89PNG")
    from branchprune.experiments.compare import config as compare_config
    from branchprune.experiments.compare import results as compare_results

    read = compare_results.read(compare_config.read(CONFIG), results)
    [axes] = figure.images(read).axes
    first, second, dense = axes.get_lines()
    assert [*first.get_xdata()] == [10, 50, 100]
    assert first.get_ydata() == pytest.approx([0.5, 0.6, 0.7])
    assert (second.get_label(), [*second.get_xdata()]) == ("MiR", [10, 100])
    assert dense.get_ydata() == pytest.approx([0.8, 0.8])
    corners = axes.collections[0].get_paths()[0].vertices
    low, high = ttest_1samp(SCORES["50 images"], 0).confidence_interval(0.95)
    at = corners[corners[:, 0] == 50][:, 1]
    assert (min(at), max(at)) == pytest.approx((low, high))


def test_a_comparison_without_numbers_of_images_is_refused(figure, tmp_path):
    results = tmp_path / "r.jsonl"
    results.write_text(json.dumps(lines("MiR", {"100 images": [0.6]})[0]) + "\n")
    with pytest.raises(PruneError, match="few_images_16px has no method with several numbers"):
        figure.main([str(CONFIG), "--results", str(results), "--output", str(tmp_path / "c.png")])
