"""What dense and small models cost: rows against other computations, and all that can go wrong."""

import dataclasses
import io
import json
import re
import shlex
import statistics
import sys
import weakref
from pathlib import Path

import pytest
import torch
from rich.console import Console

import branchprune as bp
from branchprune.benchmarks import cost, cost_child, cost_models, cost_table
from branchprune.benchmarks.cost_child import Row
from branchprune.models import VGG, Autoencoder

STAGES, SHAPE = [[32, 32], [64]], (3, 8, 8)
KEPT = {"dense": [32, 32, 64], "small": [11, 11, 22], "small, multiple of 8": [8, 8, 24]}


def small_settings(**changed):
    settings = dict(
        model="vgg16",
        variant="dense",
        device="cpu",
        batch=2,
        runtime="pytorch",
        repeat=0,
        threads=1,
        seconds=0.01,
        hardware="a machine",
        torch=torch.__version__,
        cls="VGG",
        arguments={"stages": STAGES},
        shape=[*SHAPE],
    )
    return Row(**settings | changed)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cost_models.MODELS, "vgg16", ("VGG", {"stages": STAGES}, SHAPE))


@pytest.fixture
def run(tiny, tmp_path):
    """Run the command with small settings; return its result and what it printed."""

    def command(*args):
        output, shown = tmp_path / "out" / "cost.json", io.StringIO()
        settings = "--models [vgg16] --devices [cpu] --cpu_batches [2] --runtime pytorch".split()
        settings += "--repeats 1 --seconds 0.01 --threads 1".split()
        cost.main([*settings, "--output", str(output), *args], Console(file=shown, width=250))
        return json.loads(output.read_text()), shown.getvalue()

    return command


@pytest.fixture
def no_process(monkeypatch):
    """Count what would be measured, and make up what it finds."""
    asked = []

    def make_up(row, file, timeout):
        assert file.exists()
        asked.append(row)
        return dataclasses.replace(row, median_s=0.5, growth_bytes=8)

    monkeypatch.setattr(cost, "run_apart", make_up)
    return asked


def widths(model):
    return [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]


def bytes_by_hand(kept):
    """Parameters, and bytes with those of the buffers, of a VGG with one linear layer for 10."""
    ins = [3, *kept[:-1]]
    params = sum(9 * i * o + o + 2 * o for i, o in zip(ins, kept, strict=True))
    params += 10 * kept[-1] + 10
    return params, 4 * params + sum(8 * o + 8 for o in kept)


def test_rows_from_processes_of_their_own(run, monkeypatch):
    monkeypatch.delitem(cost_models.VARIANTS, "small, multiple of 8")  # a process takes seconds
    result, shown = run()
    assert [row["variant"] for row in result["rows"]] == ["dense", "small"]
    for row in result["rows"]:
        kept = KEPT[row["variant"]]
        assert row["error"] is None and row["arguments"] == {"stages": [kept[:2], kept[2:]]}
        assert (row["params"], row["weights_bytes"]) == bytes_by_hand(kept)
        assert row["input_bytes"] == 2 * 3 * 8 * 8 * 4
        assert row["median_s"] > 0 and row["iqr_s"] >= 0 and row["threads"] == 1
        assert row["baseline_bytes"] > 0 and row["memory_method"] in ("VmHWM", "ru_maxrss")
        assert row["growth_bytes"] == row["peak_bytes"] - row["baseline_bytes"]
        assert row["allocated_bytes"] is row["reserved_bytes"] is row["activations_bytes"] is None
        assert row["hardware"] == result["hardware"] and row["versions"] == result["versions"]
    dense, small = result["rows"]
    for line, row in zip(result["summary"], (dense, small), strict=True):
        assert line["faster"] == 3 * [dense["median_s"] / row["median_s"]]
        assert line["image_s"] == 3 * [row["median_s"] / 2]
    assert "2 to do" in shown and result["hardware"].split(",")[0] in shown


def test_every_variant_is_written_at_its_widths(tiny, tmp_path):
    arguments = cost_models.prepare("vgg16", 22 / 64, tmp_path)
    assert arguments == {name: {"stages": [kept[:2], kept[2:]]} for name, kept in KEPT.items()}
    for name, kept in KEPT.items():
        assert widths(bp.load(VGG(STAGES), tmp_path / f"vgg16 {name}")) == kept


def test_what_is_measured_is_not_measured_again(run, no_process, tmp_path):
    result, _ = run("--repeats", "2", "--cpu_batches", "[1, 2]")
    assert len(no_process) == 12 == len(result["rows"])
    log = tmp_path / "out" / "cost.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-2]) + '\n{"model": "torn')
    again, shown = run("--repeats", "2", "--cpu_batches", "[1, 2]")
    assert no_process[12:] == no_process[10:12] and again == result
    assert "10 measurements are done, 2 to do" in shown
    run("--repeats", "2", "--cpu_batches", "[1, 2]")
    assert len(no_process) == 14
    for other in (["--seconds", "0.02"], ["--threads", "2"], ["--keep", "0.5"]):
        before = len(no_process)
        run(*other)
        dense_is_the_same = other[0] == "--keep"
        assert len(no_process) - before == (2 if dense_is_the_same else 3)


def test_other_hardware_is_measured_anew(run, no_process, monkeypatch):
    run()
    monkeypatch.setattr(cost.environment, "hardware", lambda: "another machine")
    result, _ = run()
    assert len(no_process) == 6 and {row["hardware"] for row in result["rows"]} == {
        "another machine"
    }


def test_dense_and_small_take_turns(run, no_process):
    run("--repeats", "3")
    assert [row.variant for row in no_process] == [*KEPT, *reversed(KEPT), *KEPT]
    assert [row.repeat for row in no_process] == [0] * 3 + [1] * 3 + [2] * 3


def test_the_gpu_has_batches_and_runtimes_of_its_own(run, no_process, monkeypatch):
    everywhere = ("pytorch", "torch-compile", "cuda-graphs", "onnxruntime")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cost.environment, "hardware", lambda: "a GPU; a CPU")
    monkeypatch.setattr(cost, "write_file", lambda row, folder: folder / f"vgg16 {row.variant}")
    run(
        "--devices", "auto", "--cuda_batches", "[1, 512]", "--runtime", f"[{', '.join(everywhere)}]"
    )
    found = {(row.device, row.batch, row.runtime) for row in no_process}
    assert found == {("cpu", 2, name) for name in (*everywhere[:2], "onnxruntime")} | {
        ("cuda", batch, name) for batch in (1, 512) for name in everywhere[:3]
    }


def measured(row, tmp_path, capsys):
    """Measure within this process."""
    torch.manual_seed(0)
    bp.save(VGG(row.arguments["stages"]), tmp_path / "model")
    cost_child.main(row, tmp_path / "model")
    return Row(**json.loads(capsys.readouterr().out))


def test_a_compiler_that_fails_is_recorded_and_tried_again(tmp_path, capsys, monkeypatch, run):
    def broken(model, **options):
        raise RuntimeError("no C++\ncompiler")

    monkeypatch.setattr(torch, "compile", broken)
    row = measured(small_settings(runtime="torch-compile"), tmp_path, capsys)
    assert row.error == "RuntimeError: no C++ compiler" and row.median_s is None
    asked = []

    def fail(row, file, timeout):
        asked.append(row)
        return dataclasses.replace(row, error="RuntimeError: no C++ compiler")

    monkeypatch.setattr(cost, "run_apart", fail)
    for times in (1, 2):
        result, shown = run("--runtime", "torch-compile")
        assert {row["error"] for row in result["rows"]} == {"RuntimeError: no C++ compiler"}
        assert shown.count("no C++ compiler") == 6 and len(asked) == 3 * times
        assert {line["image_s"] for line in result["summary"]} == {None}


def test_a_process_on_the_cpu_sees_no_gpu(tmp_path, monkeypatch):
    def run_child(arguments, timeout, variables):
        seen.append(variables)
        return [], "nothing"

    seen = []
    monkeypatch.setattr(cost, "run_child", run_child)
    for device in ("cpu", "cuda"):
        cost.run_apart(small_settings(device=device), tmp_path, 1)
    assert seen == [{"CUDA_VISIBLE_DEVICES": ""}, {}]


def test_a_process_that_hangs_is_recorded(tmp_path):
    row = cost.run_apart(small_settings(), tmp_path / "none", 0.01)
    assert row.error == "took longer than 0.01 s" and row.key == small_settings().key


def test_weights_that_are_missing_are_recorded(tmp_path, capsys):
    cost_child.main(small_settings(), tmp_path / "none")
    row = Row(**json.loads(capsys.readouterr().out))
    assert "does not exist" in row.error and row.key == small_settings().key


def test_the_peak_has_one_output_and_no_checks(tmp_path, capsys, monkeypatch):
    """At the moment memory is read, nothing but the model and its input is held."""
    plain, alive, held = VGG.forward, weakref.WeakSet(), []

    def forward(self, x):
        held.append(len(alive))
        output = plain(self, x)
        alive.add(output)
        return output

    def check(what, output):
        held.append(what)

    monkeypatch.setattr(cost_child, "_load_code", lambda runtime: None)
    monkeypatch.setattr(cost_child, "check_numbers", check)
    monkeypatch.setattr(cost_child, "_cpu_memory", lambda row: held.append("memory"))
    monkeypatch.setattr(VGG, "forward", forward)
    measured(small_settings(), tmp_path, capsys)
    assert held[:6] == [0, 0, 0, "memory", 0, "the output"]


def test_a_process_that_prints_nothing_is_recorded(tmp_path, monkeypatch):
    for program, said in (("true", "printed nothing"), ("false", "status 1")):
        monkeypatch.setattr(sys, "executable", f"/bin/{program}")
        assert said in cost.run_apart(small_settings(), tmp_path, 10).error


def test_the_small_process_never_builds_the_dense_model(tmp_path, capsys, monkeypatch):
    built = []

    def build(**arguments):
        built.append(arguments)
        return VGG(**arguments)

    monkeypatch.setitem(cost_child.CLASSES, "VGG", build)
    stages = [[11, 11], [22]]
    row = measured(small_settings(arguments={"stages": stages}), tmp_path, capsys)
    assert row.error is None and built == [{"stages": stages}]


def test_memory_is_that_of_the_passes(tmp_path, capsys, monkeypatch):
    """What a pass holds, and frees again, is in the peak; what was held before it is not."""
    plain, size = VGG.forward, 50_000_000

    def forward(self, x):
        torch.ones(size).sum()
        return plain(self, x)

    monkeypatch.setattr(cost_child, "_load_code", lambda runtime: torch.ones(3 * size).sum())
    monkeypatch.setattr(VGG, "forward", forward)
    row = measured(small_settings(), tmp_path, capsys)
    if row.memory_method == "VmHWM":
        assert 4 * size * 0.95 < row.growth_bytes < 4 * size * 1.5


def test_memory_of_a_gpu_is_taken_apart(monkeypatch):
    row = small_settings(device="cuda")
    row.weights_bytes, row.input_bytes = 100, 20
    for name, value in (("max_memory_allocated", 500), ("max_memory_reserved", 2048)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    cost_child._gpu_memory(row)
    assert (row.activations_bytes, row.allocated_bytes, row.reserved_bytes) == (380, 500, 2048)
    assert row.memory == 500


FILES = {"onnxruntime": (".onnx", "branchprune[onnx]"), "openvino": (".xml", "[openvino]")}


@pytest.mark.parametrize("runtime", FILES)
def test_a_runtime_opens_a_file_and_pytorch_never_has_the_weights(
    runtime, tiny, tmp_path, capsys, monkeypatch
):
    arguments = cost_models.prepare("vgg16", 22 / 64, tmp_path)["small"]
    row = small_settings(runtime=runtime, variant="small", arguments=arguments)
    file = cost_models.write_file(row, tmp_path)
    assert file == tmp_path / f"vgg16 small 2{FILES[runtime][0]}" and file.stat().st_size
    written = file.stat().st_mtime_ns
    assert cost_models.write_file(row, tmp_path).stat().st_mtime_ns == written
    devices = []

    def build(**given):
        model = VGG(**given)
        devices.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setitem(cost_child.CLASSES, "VGG", build)
    cost_child.main(row, file)
    found = Row(**json.loads(capsys.readouterr().out))
    assert found.error is None and devices == ["meta"]
    assert (found.params, found.weights_bytes) == bytes_by_hand(KEPT["small"])
    assert found.median_s > 0 and found.input_bytes == 2 * 3 * 8 * 8 * 4
    assert found.growth_bytes == found.peak_bytes - found.baseline_bytes


def test_memory_of_a_runtime_is_that_of_opening_and_running(tmp_path, capsys, monkeypatch):
    """What it takes to open the file is in the peak; what a file opened before it took is not."""
    size, opened = 50_000_000, []

    class Stub:
        threads = 1

        def opened(self, file, what):
            opened.append((file, what))
            torch.ones(3 * size if what == "tiny" else size).sum()
            return lambda example: lambda: [example.numpy()]

    kind = dataclasses.replace(cost_child.FORMATS["onnx"], runtime=lambda threads: Stub())
    monkeypatch.setattr(cost_child, "file_format", lambda runtime: kind)
    cost_child.main(small_settings(runtime="onnxruntime"), tmp_path / "a.onnx")
    row = Row(**json.loads(capsys.readouterr().out))
    assert opened == [(tmp_path / "tiny.onnx", "tiny"), (tmp_path / "a.onnx", "a.onnx")]
    assert row.error is None
    if row.memory_method == "VmHWM":
        assert 4 * size * 0.95 < row.growth_bytes < 4 * size * 1.5


def test_a_model_that_a_runtime_cannot_have_is_recorded(run, no_process, monkeypatch):
    def refuse(*args, **given):
        raise bp.PruneError("VGG cannot be exported to ONNX: its operator")

    monkeypatch.setattr(cost_models, "export", refuse)
    result, shown = run("--runtime", "[onnxruntime, pytorch]")
    said = ["VGG cannot be exported to ONNX: its operator"] * 3 + [None] * 3
    assert [row["error"] for row in result["rows"]] == said and len(no_process) == 3
    assert shown.count("cannot be exported to ONNX") > 3


def test_all_that_is_installed_is_measured_where_nothing_is_named(run, no_process, monkeypatch):
    monkeypatch.setattr(cost, "write_file", lambda row, folder: folder / f"vgg16 {row.variant}")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(cost, "RUNTIMES", {n: cost.RUNTIMES[n] for n in ("pytorch", *FILES)})
    run("--runtime", "auto")
    names = [row.runtime for row in no_process[::3]]
    assert names == ["pytorch", "torch-compile", "onnxruntime"]


@pytest.mark.parametrize("runtime", FILES)
def test_a_package_that_is_missing_names_its_extra(run, no_process, monkeypatch, runtime):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(bp.PruneError, match=re.escape(FILES[runtime][1])):
        run("--runtime", runtime)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e-40])
def test_numbers_that_are_not_ordinary_are_an_error(tiny, tmp_path, monkeypatch, bad):
    cost_models.prepare("vgg16", 0.5, tmp_path)
    plain = torch.nn.BatchNorm2d.forward
    broken = lambda self, x: plain(self, x).fill_(bad)  # noqa: E731
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", broken)
    with pytest.raises(bp.PruneError, match=r"output of features.1 \(vgg16, dense\)"):
        cost_models.prepare("vgg16", 0.5, tmp_path)


@pytest.mark.parametrize("name", cost_models.MODELS)
def test_the_widths_are_the_papers(name):
    cls, arguments, shape = cost_models.MODELS[name]
    model = cost_child.CLASSES[cls](**arguments)
    paper = {64: 22, 128: 44, 256: 88, 512: 176}
    small = {part: [[paper[w] for w in stage] for stage in s] for part, s in arguments.items()}
    with torch.device("meta"):
        plan = bp.plan(type(model)(), torch.randn(1, *shape), keep=22 / 64)
    assert {group.kept for group in plan.groups if group.pruned} <= {*paper.values()}
    built = cost_child.CLASSES[cls](**small)
    assert cost_models.narrowed(arguments, built) == small
    assert cost_models.narrowed(arguments, model).keys() == arguments.keys()
    if isinstance(model, Autoencoder):
        with torch.no_grad():
            assert built.eval().encoder(torch.rand(1, *shape)).shape == (1, 44, 16, 16)


def test_ratios_are_taken_within_a_turn():
    times = {"dense": [4.0, 6.0, 9.0], "small": [1.0, 3.0, 3.0]}
    rows = [
        small_settings(variant=variant, repeat=i)
        for variant, values in times.items()
        for i in range(len(values))
    ]
    for row in rows:
        row.median_s = times[row.variant][row.repeat]
        row.growth_bytes = 1000 if row.variant == "dense" else 100 * (row.repeat + 1)
    rows[4].error, rows[4].median_s = "killed", None
    dense, small = cost_table.summarize(rows)
    assert dense.image_s == (2.5, 3.0, 3.75) and dense.faster == (1.0, 1.0, 1.0)
    assert (small.repeats, small.error) == (2, "killed")
    ratios = [4.0 / 1.0, 9.0 / 3.0]
    assert small.faster[1] == statistics.median(ratios) and small.faster[0] == 3.25
    assert small.smaller[1] == statistics.median([1000 / 100, 1000 / 300])
    assert small.image_s[1] == (0.5 + 1.5) / 2


def test_peaks_are_summed_up_apart_from_growth():
    dense, small = (
        [small_settings(variant=variant, repeat=i) for i in range(2)]
        for variant in ("dense", "small")
    )
    for i, (wide, narrow) in enumerate(zip(dense, small, strict=True)):
        wide.peak_bytes, narrow.peak_bytes = 1000 + 200 * i, 500 + 300 * i
        wide.growth_bytes, narrow.growth_bytes = 800, 100
    first, second = cost_table.summarize([*dense, *small])
    assert first.peak_bytes == (1050, 1100, 1150) and second.peak_bytes == (575, 650, 725)
    assert second.smaller_peak == pytest.approx((1.625, 1.75, 1.875))  # of 2 and 1.5
    assert second.memory_bytes == (100, 100, 100) and second.smaller == (8, 8, 8)


def shown_cells(*rows):
    """Return the cells of the lower table."""
    console = Console(file=io.StringIO(), width=300)
    console.print(cost_table.table(rows))
    text = console.file.getvalue().split("weights, MiB")[1]
    lines = [line for line in text.splitlines() if "vgg16" in line]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_the_table_takes_memory_apart():
    mib = 2**20
    host = small_settings(weights_bytes=3 * mib, peak_bytes=300 * mib, growth_bytes=20 * mib)
    gpu = small_settings(device="cuda", weights_bytes=3 * mib, allocated_bytes=50 * mib)
    gpu.activations_bytes = 46 * mib
    found = [cells[5:9] for cells in shown_cells(host, gpu)]
    assert found == [["3.0", "–", "300.0", "20.0"], ["3.0", "46.0", "50.0", "–"]]


CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_papers_setting_is_the_default():
    assert cost.parse_options([str(CONFIGS / "cost.yaml")]) == cost.Options()


def test_files_come_before_options_and_a_later_one_overrides(no_process, tmp_path):
    cpu = [str(CONFIGS / "cost.yaml"), "--variant", "cpu"]
    options = cost.parse_options([*cpu, "--repeats", "4"])
    assert (options.repeats, options.seconds, options.keep) == (4, 0.5, 22 / 64)
    assert options.devices == ["cpu"] and options.runtime == "auto"
    more = tmp_path / "more.yaml"
    more.write_text("repeats: 5")
    assert cost.parse_options([cpu[0], str(more), *cpu[1:]]).repeats == 5
    assert cost.parse_options([str(more), *cpu]).repeats == 3


def test_the_command_of_the_result_names_the_files(tiny, no_process, tmp_path):
    small, output = tmp_path / "small model.yaml", tmp_path / "cost.json"
    small.write_text("models: [vgg16]\ndevices: [cpu]\ncpu_batches: [2]\nruntime: pytorch\n")
    args = [str(CONFIGS / "cost.yaml"), str(small), "--variant", "cpu", "--output", str(output)]
    cost.main(args, Console(file=io.StringIO()))
    result = json.loads(output.read_text())
    assert shlex.split(result["command"]) == ["branchprune", "cost", *args]
    assert len(no_process) == 9 and {row.seconds for row in no_process} == {0.5}


@pytest.mark.parametrize(("text", "said"), [("modells: [vgg16]", "modells"), (None, "none.yaml")])
def test_a_wrong_file_is_named(no_process, tmp_path, text, said):
    path = tmp_path / "none.yaml"
    if text:
        path.write_text(text)
    with pytest.raises(bp.PruneError, match=said):
        cost.main([str(path), "--output", str(tmp_path / "cost.json")], Console())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--models", "[resnet]"], "models"),
        (["--models", "[]"], r"models \(=\[\]\)"),
        (["--cpu_batches", "[2, 2]"], r"cpu_batches \(=\[2, 2\]\)"),
        (["--cpu_batches", "[0]"], "cpu_batches"),
        (["--threads", "-1"], r"threads \(=-1\)"),
        (
            ["--runtime", "tflite"],
            r"runtime \(='tflite'\) must be one of pytorch, torch-compile, c",
        ),
        (["--runtime", "[pytorch, pytorch]"], "nothing twice"),
        (["--runtime", "[]"], r"runtime \(=\[\]\)"),
        (["--repeats", "0"], "repeats"),
        (["--keep", "1.5"], "keep"),
    ],
)
def test_a_wrong_option_is_named(run, no_process, args, said):
    with pytest.raises(bp.PruneError, match=said):
        run(*args)


def test_a_gpu_that_is_missing_is_an_error(run, no_process, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(bp.PruneError, match="no GPU"):
        run("--devices", "[cuda]")


def test_an_output_that_cannot_be_written(run, no_process, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(bp.PruneError, match="cannot be written"):
        run()
