"""The command line, as a user runs it, and everything that can be wrong."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule
from rich.console import Console
from tiny_run import TINY, Data, Net
from torch import nn

import branchprune as bp
from branchprune.cli import main
from branchprune.cli.commands import COMMANDS, show_summary
from branchprune.lightning import ClassificationTask
from branchprune.reports.before_after import Row


class Unprunable(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 3))


class Untested(LightningDataModule):
    """Training and validation data alone."""

    train_dataloader, val_dataloader = Data.train_dataloader, Data.val_dataloader
    _batches = Data._batches


class Breaks(ClassificationTask):
    """A task whose loss becomes NaN after some steps of each training."""

    def __init__(self, model: nn.Module, at: int = 4, learning_rate: float = 0.05) -> None:
        super().__init__(model, learning_rate=learning_rate)
        self.at = at

    def step(self, batch, stage):
        loss = super().step(batch, stage)
        return loss * float("nan") if stage == "train" and self.global_step == self.at else loss


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    return lambda *args: main(["run", "tiny.yaml", "--output", "out", *args])


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    (folder / "tiny.yaml").write_text(TINY)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        assert main(["run", "tiny.yaml", "--output", "out"]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def ran(run_once, tiny):
    """The current folder has a copy of a run that is done; this is what it printed."""
    folder, printed = run_once
    for name in ("out", "results"):
        shutil.copytree(folder / name, name)
    return printed


def scalars(path):
    return json.loads(Path(path).read_text())


def test_result_agrees_with_the_files(ran):
    shown = ran.splitlines()
    result = scalars("out/result.json")
    dense = bp.load(Net(), "out/dense.safetensors")
    small = bp.load(Net(), "out/small.safetensors")
    for name, model in (("dense", dense), ("small", small)):
        assert result["cost"][name]["params"] == sum(p.numel() for p in model.parameters())
        assert result["cost"][name]["file_bytes"] == Path(f"out/{name}.safetensors").stat().st_size
        model.eval()
        for split, batches in (
            ("val", Data().val_dataloader()),
            ("test", Data().test_dataloader()),
        ):
            found = [(model(x).log_softmax(1), y) for x, y in batches]
            hits = torch.cat([(logits.argmax(1) == y).float() for logits, y in found])
            assert result["scores"][name][split] == pytest.approx(hits.mean().item())
        loss = torch.cat([-logits[range(len(y)), y] for logits, y in found])
        logged = {"loss/test": loss.mean().item(), "metric/test_acc": hits.mean().item()}
        assert result["test"][name] == pytest.approx(logged, rel=1e-5)
    sizes = [result["cost"][name]["params"] for name in ("dense", "small")]
    row = next(line for line in shown if "Parameters" in line)
    assert re.findall(r"[\d,]+", row)[:2] == [f"{size:,}" for size in sizes]
    assert small[0].out_channels == 4
    assert result["scores"]["blended_at_zero"]["val"] == result["scores"]["small"]["val"]


def test_configuration_of_a_run_runs_again_with_the_same_result(ran):
    assert main(["run", "out/config.yaml", "--output", "again"]) == 0
    assert scalars("out/result.json")["scores"] == scalars("again/result.json")["scores"]
    a, b = (bp.load(Net(), f"{f}/small.safetensors").state_dict() for f in ("out", "again"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_report_is_written_again(ran, capsys):
    before = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    assert main(["report", "out"]) == 0
    assert Path("out/report.html").read_text() == before


@pytest.mark.parametrize("kind", ["safetensors", "pt", "ckpt"])
def test_users_checkpoint_is_taken(tiny, kind):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = Net()
    path = Path(f"weights.{kind}")
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    elif kind == "pt":
        torch.save(model.state_dict(), path)
    else:
        torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, path)
    assert tiny("--dense.checkpoint", str(path), "--dense.epochs", "0") == 0
    dense = bp.load(Net(), "out/dense.safetensors")
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in dense.state_dict().items())
    assert "from a checkpoint" in Path("out/report.html").read_text()


def test_loss_that_becomes_nan_names_step_alpha_and_checkpoint(tiny, capsys):
    task = ["--task", "test_cli.Breaks", "--task.init_args.at", "99"]
    assert tiny(*task, "--prune.task", '{"at": 4}') == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "prune stage: the loss is nan at step 4 (epoch 1), alpha = 0.0" in error
    assert "the last good checkpoint is out/prune/last.ckpt" in error
    checkpoint = torch.load("out/prune/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values())
    assert not Path("out/result.json").exists()


def write(name, content):
    path = Path(name)
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return name


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


BAD = {
    "wrong key": (["--prune.widths.kep", "0.5"], "the nearest is prune.widths.keep"),
    "wrong type": (["--prune.widths.keep", "half"], "prune.widths.keep"),
    "wrong model argument": (["--model.init_args.widht", "8"], "widht"),
    "model that is not there": (["--model", "nowhere.Net"], "nowhere"),
    "wrong task argument": (["--prune.task", '{"learning_rat": 1}'], "learning_rat"),
    "keep of 0": (["--prune.widths.keep", "0"], "keep (=0.0)"),
    "keep above 1": (["--prune.widths.keep", "1.5"], "keep (=1.5)"),
    "unknown layer": (["--prune.widths.exclude", '["conv9"]'], "conv9"),
    "levels": (["--prune.blend.levels", '{"sinus": 3}'], "sinus"),
    "levels that rise": (["--prune.blend.levels", "[0.1, 0.5, 0]"], "fall"),
    "hold": (["--prune.blend.hold", "0"], "hold (=0)"),
    "plateau": (["--prune.blend.hold", '{"max_epochs": 0}'], "max_epochs (=0)"),
    "init": (["--prune.criterion.name", "nowhere.scores"], "nowhere.scores"),
    "nothing to prune": (["--model", "test_cli.Unprunable"], "nothing in the model can be pruned"),
    "no epochs, no checkpoint": (["--dense.epochs", "0"], "dense.epochs (=0)"),
    "checkpoint that is missing": (["--dense.checkpoint", "none.pt"], "none.pt does not exist"),
    "checkpoint with code": (["--dense.checkpoint", "code.pt"], "refused"),
    "checkpoint that is truncated": (["--dense.checkpoint", "short.pt"], "not complete"),
    "checkpoint of another model": (["--dense.checkpoint", "other.pt"], "another model"),
    "checkpoint that is no checkpoint": (["--dense.checkpoint", "text.pt"], "no checkpoint"),
    "metric": (["--metric.val", "accuracy"], "metric (='accuracy') is not logged"),
    "monitor": (["--prune.blend.monitor", "accuracy"], "monitor (='accuracy') is not logged"),
    "no test data": (["--data", "test_cli.Untested"], "test_dataloader"),
    "accelerator": (["--accelerator", "tpu"], "accelerator"),
    "precision": (["--precision", "half"], "precision"),
    "order": (["--prune.blend.order", '["encoder"]'], "encoder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_anything_is_written(case, tiny, capsys):
    write("code.pt", Exploit())
    write("other.pt", {"weight": torch.zeros(3)})
    write("whole.pt", Net().state_dict())
    write("short.pt", Path("whole.pt").read_bytes()[:-200])
    write("text.pt", b"hello")
    before = sorted(Path().iterdir())
    args, message = BAD[case]
    assert tiny(*args) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert "epoch" not in captured.out, "training has begun"
    assert sorted(Path().iterdir()) == before, "something was written"


@pytest.mark.parametrize(
    "options",
    [
        ["--prune.blend", "null", "--prune.torch_pruning", "{}"],
        ["--prune.sparsify.penalty", "group_norm"],
    ],
)
def test_a_missing_pruner_is_named_before_anything_is_written(options, tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert tiny(*options) == 2
    assert capsys.readouterr().err.endswith('): pip install "branchprune[compare]"\n')
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_output_folder_that_exists_is_kept_unless_overwritten(tiny, capsys):
    Path("out").mkdir()
    Path("out/precious.txt").write_text("keep me")
    assert tiny() == 2
    assert "out exists" in capsys.readouterr().err
    assert Path("out/precious.txt").read_text() == "keep me"


@pytest.mark.usefixtures("without_charts", "without_rehearsal")
def test_overwrite_keeps_the_earlier_run_beside_the_new_one(tiny):
    every_stage = ["--prune.sparsify.epochs", "1", "--prune.finetune.epochs", "1"]
    every_stage += ["--dense.epochs", "1", "--prune.blend.levels", "[0.0]"]
    every_stage += ["--prune.blend.final_hold", "1"]
    for _ in range(3):
        assert tiny("--overwrite", "true", *every_stage) == 0
    assert {path.name for path in Path().iterdir()} == {
        "tiny.yaml",
        "out",
        "out.previous",
        "results",
    }
    assert Path("out.previous/report.html").exists()


@pytest.mark.parametrize("file", ["thesis.tex", "net.py", "dense/notes.txt", "round_table.txt"])
def test_overwrite_never_touches_what_is_not_a_run(ran, tiny, capsys, file):
    Path("out", file).write_text("years of work")
    assert tiny("--overwrite", "true") == 2
    assert f"it holds {file}" in capsys.readouterr().err
    assert Path("out", file).read_text() == "years of work"


def test_overwrite_refuses_the_folder_it_runs_in(tiny, capsys, monkeypatch):
    Path("here").mkdir()
    Path("tiny.yaml").rename("here/config.yaml")
    monkeypatch.chdir("here")
    assert main(["run", "config.yaml", "--output", ".", "--overwrite", "true"]) == 2
    assert "where the command runs" in capsys.readouterr().err
    assert Path("config.yaml").exists()


def test_stored_configuration_replaces_nothing(tiny, capsys):
    options = ["--fast", "true", "--overwrite", "true"]
    assert tiny(*options) == 0
    assert main(["run", "out/config.yaml", "--output", "out"]) == 2
    assert "out exists" in capsys.readouterr().err


def test_plateau_follows_the_direction_of_the_metric():
    from branchprune.experiments.run.blend import BlendConfig

    config = BlendConfig(hold=bp.Plateau(max_epochs=3), final_hold=bp.Plateau(max_epochs=4))
    schedule = config.schedule("min")
    assert schedule.hold == bp.Plateau(max_epochs=3, mode="min")
    assert schedule.final_hold == bp.Plateau(max_epochs=4, mode="min")


def test_output_folder_that_cannot_be_written(tiny, capsys):
    Path("file").write_text("")
    assert tiny("--output", "file/out") == 2
    assert "file/out cannot be written" in capsys.readouterr().err


def test_missing_and_malformed_yaml(tiny, capsys):
    assert main(["run", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err
    Path("bad.yaml").write_text("model: [unclosed")
    assert main(["run", "bad.yaml"]) == 2
    assert main(["frobnicate"]) == 2
    assert "frobnicate" in capsys.readouterr().err


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    assert "branchprune run" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--prune.widths.keep" in text and "fraction of the channels" in text.lower()
    assert max(map(len, text.splitlines())) <= 80
    sections = re.findall(r"^prune\.(\w+): ", text, re.MULTILINE)
    assert sections[:5] == ["widths", "criterion", "blend", "cut", "torch_pruning"]
    assert sections[5:] == ["few_images", "sparsify", "finetune", "rounds", "cost"]
    blend = text.partition("\nprune.blend: ")[2].partition("\nprune.")[0]
    assert "--prune.blend.thaw_at" in blend and "--prune.torch_pruning.pruner" not in blend
    assert text.count("one of blend, cut, torch_pruning, few_images must be set in prune") == 4
    assert not re.search(r"known\s+subclasses", text)
    assert "Path to a configuration file" not in text  # sections are mappings
    assert main(["dense", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: branchprune dense")
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert len(options) <= 80 and len(text.splitlines()) < 4 * len(options)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("others", [[], ["a", "--b"]], ids=["alone", "beside others"])
def test_every_command_says_in_a_sentence_what_it_does_and_takes(
    command, others, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    try:
        status = main([command, "--help", *others])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    usage, about, *rest = captured.out.split("\n\n")
    assert usage.startswith(f"usage: branchprune {command} ") and rest
    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*\.( [A-Z].*)?", about, re.DOTALL), about


def test_a_command_without_arguments_says_what_it_takes(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: branchprune run")
    assert main(["dense"]) == 0
    assert capsys.readouterr().out.startswith("usage: branchprune dense")
    assert main(["report", "a", "b"]) == 2
    assert "report takes one folder, not ['a', 'b']" in capsys.readouterr().err


def test_an_error_stands_on_one_line_as_it_is(capsys):
    folder = f"[red]{'x' * 90}/{'x' * 90} [b"
    assert main(["report", folder]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"branchprune: error: {folder}/result.json: there is no such file"


def test_paths_and_names_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    report = tmp_path / f"{'x' * 90}[red]" / "[/b] report.html"
    monkeypatch.setattr("branchprune.reports.report.write_report", lambda folder: report)
    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out == f"{report}\n"


def test_the_table_of_a_run_shows_names_as_they_are(monkeypatch):
    row = Row("PSNR in [dB], test", "", "20", "19", "−1")
    monkeypatch.setattr("branchprune.reports.before_after.compare", lambda result: [row])
    console = Console(file=io.StringIO(), width=100)
    collapse = {"relative_error": 1e-15}
    show_summary({"experiment": "a[/b]", "seed": 3, "collapse": collapse}, console)
    assert "a[/b], seed 3" in console.file.getvalue()
    assert re.search(r"PSNR in \[dB\], test +│ +20 │ +19 │ +−1", console.file.getvalue())
    assert "dry run" not in console.file.getvalue()
    show_summary({"experiment": "a", "seed": 3, "collapse": collapse, "fast": True}, console)
    assert "a, seed 3, a dry run" in " ".join(console.file.getvalue().split())


@pytest.mark.parametrize("command", ["run", "dense"])
def test_modules_beside_the_configuration_are_found(command, tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path(f"beside_{command}.py").write_text("from test_cli import Unprunable\n")
    args = ["--output", "out", "--model", f"beside_{command}.Unprunable"]
    assert main([command, "tiny.yaml", *args]) == 2
    assert "nothing in the model can be pruned" in capsys.readouterr().err


def test_a_module_that_no_extra_installs_is_no_error_of_the_users(monkeypatch):
    def broken(args, console):
        raise ModuleNotFoundError("No module named 'own'", name="own")

    monkeypatch.setitem(COMMANDS, "bench", broken)
    with pytest.raises(ModuleNotFoundError, match="own"):
        main(["bench"])


@contextmanager
def closed_output():
    """Give what is printed to nobody, as behind `| head`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output, redirect_stdout(output):
        yield


@pytest.mark.parametrize("args", ["--help", "--version", "run --help", "zoo --help"])
def test_nobody_reads_the_help(args, capsys):
    with closed_output():
        assert main(args.split()) == 141
    assert capsys.readouterr().err == ""


def test_nobody_reads_what_a_run_says(tiny, capsys):
    with closed_output():
        assert tiny() == 141
    said, kept, how = capsys.readouterr().err.splitlines()
    assert said == "branchprune: interrupted by a closed output (SIGPIPE)"
    assert (kept, how) == (
        "nothing was saved",
        "to start again: branchprune run tiny.yaml --output out",
    )


def test_the_package_is_run_as_the_command_is():
    found = subprocess.run(
        [sys.executable, "-m", "branchprune", "nonsense"], capture_output=True, text=True
    )
    assert found.returncode == 2 and "unknown command 'nonsense'" in found.stderr
