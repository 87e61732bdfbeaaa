"""Tables and figures of the paper's experiments, against values computed by hand."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
VGG, AUTOENCODER = "vgg16_cifar10", "autoencoder_carla"
PAPER = json.loads((SCRIPTS / "results" / "paper.json").read_text())
CPU, GPU = "AMD EPYC, 2 cores", "NVIDIA H200; AMD EPYC, 16 cores"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import paper_tables

    return paper_tables


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import paper_figures

    return paper_figures


def line(method="blended", seed=0, dense=0.9, final=0.8, **other):
    curve = [
        {"epoch": 0, "alpha": 0.5, "val": 0.9, "branch": 0.1, "lr": 0.1},
        {"epoch": 1, "alpha": 0.1, "val": 0.88, "branch": 0.25, "lr": 0.1},
        {"epoch": 2, "alpha": 0.0, "val": 0.7, "branch": 0.7, "lr": 0.1},
        {"epoch": 3, "alpha": 0.0, "val": 0.8, "branch": 0.8, "lr": 0.1},
    ]
    return {
        "experiment": VGG,
        "method": method,
        "preset": "cpu",
        "seed": seed,
        "dataset": "CIFAR-10 (JPEG)",
        "hardware": CPU,
        "versions": {"torch": "2.15.0"},
        "commit": "abc1234",
        "command": f"branchprune run {method}.yaml --seed {seed}",
        "date": "2026-11-20T15:00:00+00:00",
        "epochs": {"dense": 20, "prune": 4},
        "train_macs": 3000,
        "dense_train_macs": 2000,
        "metric": "accuracy",
        "dense": dense,
        "final": final,
        "val": {"dense": 0.91, "small": 0.81},
        "channels_removed": 0.656,
        "params_removed": 0.882,
        "macs_removed": 0.881,
        "collapse_error": 3e-15,
        "curve": curve,
        "rounds": [],
    } | other


def today(line):
    return f"branchprune run today.yaml --seed {line['seed']}"


def in_decibels(method, seed=0, **other):
    decibels = {"metric": "PSNR in dB", "dense": 28.5, "final": 26.25, "dataset": "frames"}
    return line(method, seed, **{"experiment": AUTOENCODER, **decibels, **other})


def three_stage(seed=0):
    rounds = [
        {"val": 0.9, "channels": 80, "params": 500, "macs": 60},
        {"val": 0.88, "channels": 60, "params": 250, "macs": 40},
        {"val": 0.8, "channels": 50, "params": 125, "macs": 20},
    ]
    fields = {"rounds": rounds, "curve": [], "params_removed": 0.75}
    fields |= {"val": {"dense": 0.91, "small": 0.88}, "dense_train_macs": 0}
    epochs = {"dense": 0, "round_01": 4, "round_02": 4, "round_03": 4}
    return line("three-stage", seed, epochs=epochs, **fields)


def rows(text):
    """Return the cells of all rows, by method."""
    found = [row.strip("|").split(" | ") for row in text.splitlines() if row.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in found}


def test_row_of_several_seeds(tables):
    lines = [line(seed=0), line(seed=1, dense=0.92, final=0.81), line(seed=2, final=0.83)]
    lines[1]["train_macs"], lines[2]["epochs"] = 5000, {"dense": 20, "prune": 10}
    row = rows(tables.paper_table(lines, PAPER, today))["blended (the paper's)"]
    # 90, 92, 90: deviations −2/3, 4/3, −2/3; sample variance (4 + 16 + 4) / 9 / 2 = 4/3
    assert row[:3] == ["3", "90.67 ± 1.15", "81.33 ± 1.53"]
    # changes −10, −11, −7: mean −28/3, sample variance (4 + 25 + 49) / 9 / 2 = 13/3
    assert row[3] == "−9.33 ± 2.08"
    assert row[4] == "65.6 / 88.2 / 88.1"
    assert row[5] == "6 ± 3"  # 4, 4, 10
    assert row[6] == "1.83 ± 0.58"  # 1.5, 2.5, 1.5
    assert row[7] == "25.0 ± 0.0 → 70.0 ± 0.0"
    assert row[8] == "92.0 → 88.5 (– / 88.2 / 88.1)"


def test_spread_needs_two_values(tables):
    row = rows(tables.paper_table([line()], PAPER, today))["blended (the paper's)"]
    assert row[:4] == ["1", "90.00", "80.00", "−10.00"]
    assert row[6:8] == ["1.50", "25.0 → 70.0"]
    assert tables.spread([1, None, 3], 1) == "2.0 ± 1.4"
    assert tables.spread([None], 1) == "–"


def test_compute_is_relative_to_the_dense_training_of_the_same_seed(tables):
    lines = [line(seed=0), line(seed=1, dense_train_macs=4000), three_stage(1), three_stage(2)]
    found = tables.newest(lines)["three-stage"]
    assert [tables.relative_compute(run, lines) for run in found] == [0.75, None]
    row = rows(tables.paper_table(lines, PAPER, today))["three-stage L1 pruning"]
    assert row[5:] == ["12 ± 0", "0.75", "–", "92.0 → ≈ 90 (– / ≈ 65 / –)"]


def test_newest_line_of_a_seed_counts(tables):
    old = line(final=0.5, date="2026-11-19T15:00:00+00:00", dense_train_macs=6000)
    older = old | {"date": "2026-11-18T15:00:00+00:00", "dense_train_macs": 1000}
    lines = [line(final=0.7, dense_train_macs=0), old, older]
    row = rows(tables.paper_table(lines, PAPER, today))["blended (the paper's)"]
    assert row[0] == "1" and row[2] == "70.00"
    assert row[6] == "0.50"  # 3000 / 6000: the newest run that trained the dense model


def test_presets_hardware_and_data_stay_apart(tables):
    lines = [
        line(),
        line(preset="paper", hardware=GPU, final=0.7),
        line(preset="paper", hardware="Xeon", final=0.6),
        line(dataset="CIFAR-10", final=0.5),
        in_decibels("at once"),
    ]
    text = tables.paper_table(lines, PAPER, today)
    titles = [part for part in text.splitlines() if part.startswith("**")]
    assert titles == [
        "**VGG-16, CIFAR-10 (JPEG), preset `paper`, on a CPU**",
        "**VGG-16, CIFAR-10 (JPEG), preset `paper`, on one NVIDIA H200**",
        "**VGG-16, CIFAR-10, preset `cpu`, on a CPU**",
        "**VGG-16, CIFAR-10 (JPEG), preset `cpu`, on a CPU**",
        "**Autoencoder, frames, preset `cpu`, on a CPU**",
    ]
    assert text.count("| 1 |") == 5 and "±" not in text.split("Means ±")[0]
    assert text.count(tables.OTHER) == 3


def test_decibels_are_no_percent(tables):
    text = tables.paper_table([in_decibels("one after the other")], PAPER, today)
    assert "dense, dB | final, dB | change, dB" in text
    assert rows(text)["one after the other"][1:4] == ["28.50", "26.25", "−2.25"]
    assert "| the paper: dense → final |" in text
    assert rows(text)["one after the other"][-1] == "validation loss 1.40 → –"
    assert "the paper: dense" not in tables.paper_table([in_decibels("own")], PAPER, today)


def in_test(dense, small):
    keys = ("loss/test", "metric/test_ssim")
    return {
        "dense": dict(zip(keys, dense, strict=True)),
        "small": dict(zip(keys, small, strict=True)),
    }


def test_the_autoencoder_shows_ssim_and_the_papers_loss(tables):
    lines = [
        in_decibels("at once", 0, test=in_test((0.25, 0.9), (0.5, 0.7))),
        in_decibels("at once", 1, test=in_test((0.27, 0.8), (0.5, 0.6))),
        in_decibels("one after the other", 0, test=in_test((0.25, 0.9), (0.375, 0.85))),
        *(in_decibels("own", seed) for seed in (0, 1)),
    ]
    lines[-1]["test"] = in_test((0.25, 0.9), (0.375, 0.85))
    text = tables.paper_table(lines, PAPER, today)
    assert "| SSIM | loss (L1 + 1 − SSIM) | the paper: dense → final |" in text
    found = {method: cells[8:10] for method, cells in rows(text).items()}
    # two values: the sample standard deviation is their distance / √2
    assert found["at once"] == [
        "0.850 ± 0.071 → 0.650 ± 0.071",
        "0.260 ± 0.014 → 0.500 ± 0.000",
    ]
    assert found["one after the other"] == ["0.900 → 0.850", "0.250 → 0.375"]
    assert found["own"] == ["–", "–"]  # one of its two seeds has no such scores
    assert "SSIM" not in tables.section_table(tables.section_of(line()), [line()], PAPER, today)


def test_order_commands_and_conditions(tables):
    methods = ["own", "larger steps", "ours", "three-stage", "blended"]
    lines = [line(method, seed) for method in methods for seed in (1, 0)]
    lines[0]["commit"] = "def5678"
    text = tables.paper_table(lines, PAPER, today)
    assert list(tables.newest(lines)) == [*methods[:0:-1], "own"]
    made = "made at commit abc1234 by\n#   branchprune run ours.yaml --seed 0\n"
    assert f"# ours, seed 0; {made}branchprune run today.yaml --seed 0\n" in text
    assert "commit abc1234 and def5678" in text and f"; {CPU}; torch 2.15.0;" in text


def measured(variant, image_s, memory, faster, smaller):
    case = {"model": "vgg16", "device": "cpu", "batch": 64, "runtime": "pytorch"} | {"error": None}
    return {
        **case,
        "variant": variant,
        "image_s": image_s and [0.9 * image_s, image_s, 1.1 * image_s],
        "weights_bytes": 2**25 if image_s else None,
        "activations_bytes": None,
        "memory_bytes": memory and [memory] * 3,
        "peak_bytes": memory and [memory + 2**28, memory + 2**28, memory + 2**29],
        "smaller_peak": smaller and [0.5 * smaller] * 3,
        "faster": faster and [faster] * 3,
        "smaller": smaller and [smaller] * 3,
    }


def cost():
    from dataclasses import asdict

    from branchprune.benchmarks.cost import Options

    options = {key: value for key, value in asdict(Options()).items() if key != "output"}
    dense = measured("dense", 0.004, 2**30, 1.0, 1.0)
    broken = measured("small, multiple of 8", None, None, None, None) | {"error": "out of memory"}
    return {
        "command": "branchprune cost configs/cost.yaml --models '[\"vgg16\"]' --output cost.json",
        "hardware": CPU,
        "versions": {"torch": "2.15.0"},
        "commit": "abc1234",
        "options": options | {"models": ["vgg16"]},
        "summary": [dense, measured("small", 0.001, 2**29, 4.0, 2.0), broken],
        "rows": [],
    }


def write(folder, lines=(), costs=None):
    folder.mkdir(exist_ok=True)
    (folder / "paper.json").write_text(json.dumps(PAPER))
    for name in {each["experiment"] for each in lines}:
        found = [json.dumps(each) for each in lines if each["experiment"] == name]
        (folder / f"{name}.jsonl").write_text("\n".join(found) + "\n")
    if costs:
        (folder / "cost.json").write_text(json.dumps(costs))


def test_pages_get_the_tables_that_have_results(tables, monkeypatch, tmp_path):
    import readme_tables

    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(readme_tables, "todays_command", today)
    some = {
        "paper": readme_tables.PAGES["scripts/results/paper.md"]["paper"],
        "cost": readme_tables.PAGES["scripts/results/cost.md"]["cost"],
    }
    text = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in some)
    assert readme_tables.filled(text, some) == text
    write(tmp_path, [in_decibels("at once")])
    filled = readme_tables.filled(text, some)
    assert "26.25" in filled and filled.count("old") == 1
    assert readme_tables.filled(filled, some) == filled
    write(tmp_path, costs=cost())
    filled = readme_tables.filled(text, some)
    assert "old" not in filled and f"`{cost()['command']}`" in filled
    changed = filled.replace("26.25", "26.26").replace("4.00×", "4.01×")
    assert readme_tables.filled(changed, some) == filled != changed


def test_a_page_of_a_comparison_is_made_of_its_lines(tables, tmp_path):
    import readme_tables

    line = {
        **{"experiment": "compare/vgg7_16px", "method": "L1 + fine-tuning", "seed": 0},
        **{"preset": "equal epochs", "dataset": "CIFAR-10 (JPEG)", "hardware": CPU},
        **{"versions": {"torch": "2.15.0"}, "commit": "abc1234", "command": "branchprune run it"},
        **{"date": "2026-01-01T00:00:00+00:00", "metric": "accuracy", "collapse_error": 1e-15},
        **{"dense": 0.75, "final": 0.7423, "train_macs": 10**12},
        **{"params_removed": 0.881, "macs_removed": 0.88},
    }
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "vgg7_16px.jsonl").write_text(json.dumps(line) + "\n")
    found = readme_tables.comparison_table("vgg7_16px", tmp_path)
    assert "74.23 (1)" in found and "75.00" in found and "branchprune run it" in found


def test_cost_beside_the_paper(tables):
    import measurement_tables

    text = measurement_tables.cost_table(cost(), PAPER)
    ours = "batch 64: 4.00× (4.00–4.00)"
    assert f"| vgg16 | cpu | 0.0193 → 0.0060 s (3.22×) | {ours} | 3.99 → 3.78 GB (1.06×)" in text
    peak, growth = "batch 64: peak 1.00× (1.00–1.00)", "batch 64: growth 2.00× (2.00–2.00)"
    assert f"| 3.99 → 3.78 GB (1.06×) | {peak}<br>{growth} |" in text
    assert "| vgg16 | cuda | 0.0420 → 0.0416 s (1.01×) | – | 2.00 → 1.00 GB (2.00×) | – |" in text
    times, memory = "1.00 (0.900–1.10) | 4.00× (4.00–4.00)", "32.0 | – | 768.0 (768.0–1024.0)"
    row = f"| small | cpu | 64 | pytorch | {times} | {memory} | 512.0 (512.0–512.0) | 2.00×"
    assert row in text
    assert "| 64 | pytorch | out of memory | – | – | – | – | – | – |" in text
    assert "Command: `branchprune cost configs/cost.yaml --models" in text


def test_earlier_results_call_a_runtime_a_mode(tables):
    import measurement_tables

    today, earlier = cost(), cost()
    for line in earlier["summary"]:
        assert line.pop("runtime") == "pytorch"
        line["mode"] = "eager"
    tables_of_both = [measurement_tables.cost_table(each, PAPER) for each in (today, earlier)]
    assert tables_of_both[0] == tables_of_both[1]
    earlier["summary"][0]["mode"] = "compile"
    assert "| 64 | torch-compile |" in measurement_tables.cost_table(earlier, PAPER)


def test_cost_on_a_gpu_shows_weights_activations_and_the_allocators_peak(tables):
    import measurement_tables

    found = cost()
    found["summary"] = [each | {"device": "cuda"} for each in found["summary"][:2]]
    for each in found["summary"]:
        each |= {"activations_bytes": [2**20, 2**21, 2**22], "peak_bytes": None}
        each["smaller_peak"] = None
    text = measurement_tables.cost_table(found, PAPER)
    assert "| 32.0 | 2.0 (1.0–4.0) | 512.0 (512.0–512.0) | – | 2.00× (2.00–2.00) |" in text
    assert "| 2.00 → 1.00 GB (2.00×) | batch 64: 2.00× (2.00–2.00) |" in text


def make_run(folder, method, frames):
    import branchprune as bp
    from branchprune.models import Autoencoder

    widths = {"encoder": [[4], [4], [4]], "decoder": [[4], [4], [4]]}
    model = Autoencoder(**widths)
    data = {"root": "elsewhere", "crop_size": 16, "batch_size": 2}
    configuration = {"model": {"init_args": widths}, "data": {"init_args": data}}
    folder.mkdir(parents=True)
    bp.save(model, folder / "dense.safetensors")
    blended = bp.attach(model, bp.plan(model, torch.rand(1, 3, 16, 16)))
    blended.alpha = 0
    bp.save(bp.collapse(blended), folder / "small.safetensors")
    result = {"method": method, "preset": "cpu", "seed": 0}
    text = json.dumps(result | {"configuration": yaml.safe_dump(configuration)})
    (folder / "result.json").write_text(text)
    for split in ("train", "test"):
        (frames / split).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            image = torch.randint(0, 256, (16, 20, 3), dtype=torch.uint8)
            Image.fromarray(image.numpy()).save(frames / split / f"{i}.png")


def run(figures, tmp_path, preset="cpu"):
    folders = ("results", "runs", "frames", "output")
    options = [text for name in folders for text in (f"--{name}", str(tmp_path / name))]
    figures.main(["--preset", preset, *options])
    return {path.name: path.stat().st_size for path in (tmp_path / "output").iterdir()}


def test_figures_are_written(figures, tmp_path, capsys):
    vgg = [line(seed=0), line(seed=1), three_stage(0), line("ours"), line("noise", final=0.82)]
    methods = ("one after the other", "at once")
    write(tmp_path / "results", [*vgg, *map(in_decibels, methods)], cost())
    for i, method in enumerate(methods):
        folder = tmp_path / "runs" / "cpu" / AUTOENCODER / f"run-{i}"
        make_run(folder, method, tmp_path / "frames")
    written = run(figures, tmp_path)
    names = {name if name == "fig5_cost" else f"{name}_cpu" for name in figures.FIGURES}
    assert {Path(name).stem for name in written} == names and min(written.values()) > 5000
    assert "skipped" not in capsys.readouterr().out


def test_figures_without_data_are_skipped(figures, tmp_path, capsys):
    write(tmp_path / "results", [line()])
    assert {*run(figures, tmp_path)} == {"fig4b_blended_cpu.png"}
    printed = capsys.readouterr().out
    missing = f"no results of {VGG}, 'three-stage', preset 'cpu'"
    assert f"fig4a_three_stage_cpu.png skipped: {missing}\n" in printed
    assert "fig5_cost.png skipped: no cost.json\n" in printed
    assert f"fig6_autoencoder_cpu.png skipped: no results of {AUTOENCODER}" in printed
    assert "fig7_reconstructions_cpu.png skipped: no runs 'one after the other' and" in printed
    assert f"fig8_final_cpu.png skipped: no results of a variant of {VGG}" in printed
    assert {*run(figures, tmp_path, "paper")} == {"fig4b_blended_cpu.png"}


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("number", [2, 3])
def test_three_stage_figure_shows_the_rounds_that_were_kept(number, marked, figures, tmp_path):
    """By what the line says, not by which score is near; a line that does not say lost the last."""
    run = three_stage()
    run["rounds"][2]["val"] = run["rounds"][1]["val"] = run["val"]["small"]
    run["params_removed"] = 0.75 if number == 2 or not marked else 0.875
    for i, each in enumerate(run["rounds"] if marked else ()):
        each["kept"] = i < number
    write(tmp_path / "results", [run])
    data = figures.read(tmp_path / "results", "cpu", tmp_path, tmp_path)
    kept, *rest = figures.three_stage(data).axes[0].get_lines()
    all_kept = marked and number == 3
    assert [*kept.get_xdata()] == [1, 0.5, 0.25, 0.125][: 4 if all_kept else 3]
    assert len(rest) == (1 if all_kept else 2)


def test_three_stage_figure_starts_at_the_dense_model(figures, tmp_path):
    write(tmp_path / "results", [three_stage()])
    data = figures.read(tmp_path / "results", "cpu", tmp_path, tmp_path)
    kept, lost, dense = figures.three_stage(data).axes[0].get_lines()
    assert [*kept.get_xdata()] == [1, 0.5, 0.25] and [*kept.get_ydata()] == [0.91, 0.9, 0.88]
    assert [*lost.get_xdata()] == [0.125] and [*lost.get_ydata()] == [0.8]
    assert [*dense.get_ydata()] == [0.91, 0.91]


def labels(axes):
    return [text.get_text() for text in axes.texts]


def test_the_papers_values_stand_beside_ours(figures, tmp_path):
    write(tmp_path / "results", [line(), three_stage()])
    data = figures.read(tmp_path / "results", "cpu", tmp_path, tmp_path)
    axes = figures.blended(data).axes[0]
    theirs = {f"the paper, full size, test: {text} %" for text in ("dense 92.0", "final 88.5")}
    assert {*labels(axes)} == theirs
    heights = [[*found.get_ydata()] for found in axes.get_lines()]
    assert [0.92, 0.92] in heights and [0.885, 0.885] in heights
    axes = figures.three_stage(data).axes[0]
    [stars] = axes.collections
    assert stars.get_label() == "the paper, full size, test"
    expected = torch.tensor([[1, 0.92], [0.35, 0.9], [0.118, 0.885]], dtype=torch.float64)
    assert torch.allclose(torch.from_numpy(stars.get_offsets().data), expected)
    assert labels(axes) == ["dense 92.0 %", "three-stage ≈ 90 %", "blended 88.5 %"]


def test_figures_of_the_variants_say_which_of_the_papers_they_are(figures, tmp_path):
    write(tmp_path / "results", [line(), line("noise", final=0.82)])
    data = figures.read(tmp_path / "results", "cpu", tmp_path, tmp_path)
    base = "blended: both paths\ntrained from the start"
    courses, final = figures.variants(data), figures.final(data)
    assert [axes.get_title() for axes in courses.axes if axes.get_title()] == [base, "noise"]
    assert [text.get_text() for text in final.axes[0].get_yticklabels()] == ["noise", base]
    for figure in (courses, final):
        assert figure.legends[0].get_title().get_text().startswith("the paper's figures 8 to 10: ")


def test_the_figure_of_cost_shows_whole_processes_hollow(figures, tmp_path):
    write(tmp_path / "results", costs=cost())
    figure = figures.cost(figures.read(tmp_path / "results", "cpu", tmp_path, tmp_path))
    _, memory = figure.axes
    drawn = {
        found.get_label(): found.get_xdata()[0]
        for found in memory.get_lines()
        if not found.get_label().startswith("_")
    }
    whole = {"dense: whole process": 1280, "small: whole process": 768}
    assert drawn == {"dense": 1024, "small": 512} | whole
