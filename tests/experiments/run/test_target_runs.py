"""Runs whose widths are chosen for a target: what is reached, resumed, and refused."""

import json

import pytest
import torch
from clocked_runtime import Clocked, stopped_clock
from models import scramble, vgg
from observed_runs import CONFIG
from safetensors.torch import load_file
from small_training import TinyVGG, loader
from torch import Tensor, nn

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.configuration_digest import digest
from branchprune.experiments.run.folder import check_folder
from branchprune.experiments.run.pipeline import Pruning
from branchprune.experiments.run.target import TargetConfig
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.runtimes.named import RUNTIMES

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

TARGET = (
    "widths: {target: {params: 0.5}}, criterion: {name: reconstruction, calibration: 2, fit: 2}"
)


@pytest.fixture
def go(tmp_path):
    def run(text, *options, status=0):
        (tmp_path / "config.yaml").write_text(CONFIG + f"prune: {{{text}}}\n")
        arguments = [str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
        assert main(["run", *arguments, *options]) == status
        if not status:
            check_folder(tmp_path / "run", overwrite=True)  # nothing in it is foreign to runs
        return tmp_path / "run"

    return run


def kept(folder):
    result = json.loads((folder / "result.json").read_text())
    pairs = [("dense", "params"), ("dense", "macs"), ("small", "params"), ("small", "macs")]
    cost = {f"{which} {what}": result["cost"][which][what] for which, what in pairs}
    return {group["name"]: group["kept"] for group in result["plan"]["groups"]}, cost


@pytest.mark.parametrize(
    "how",
    [
        "cut: {}",
        "blend: {levels: [0.5, 0.0]}",
        "cut: {}, finetune: {epochs: 1}, rounds: {gradual: true, count: 2, max_drop: null}",
    ],
)
def test_the_target_is_reached_however_channels_go(how, go, capsys):
    folder = go(f"{TARGET}, {how}")
    widths, cost = kept(folder)
    assert 0.8 * cost["dense params"] < 2 * cost["small params"] <= cost["dense params"]
    weights = load_file(folder / "small.safetensors")
    assert len(weights["features.0.weight"]) == widths["features.0"]
    model = bp.load(TinyVGG(), folder / "dense.safetensors")
    batches = [x for x, _ in loader()][:2]
    expected = bp.plan(model, batches[0][:1], target={"params": 0.5}, batches=batches)
    assert widths == {group.name: group.kept for group in expected.groups}
    plan = json.loads((folder / "result.json").read_text())["plan"]
    assert plan["errors"] == [*expected.errors] and plan["reached"][0]["what"] == "params"
    said = " ".join(capsys.readouterr().out.split())
    assert "one share of all channels: nothing was measured yet" in said
    assert "widths for the target: group layers width" in said and str(expected.reached[0]) in said
    assert widths["features.0"] != widths["features.3"]  # not one share


def test_few_images_choose_widths_by_themselves(go):
    how = "few_images: {images: 10, steps: 2, batch_size: 8}"
    folder = go(f"widths: {{target: {{macs: 0.4}}}}, criterion: {{name: l1, fit: 1}}, {how}")
    widths, cost = kept(folder)
    assert cost["small macs"] <= 0.4 * cost["dense macs"]
    model = bp.load(TinyVGG(), folder / "dense.safetensors")
    images = torch.cat([x for x, _ in loader()])[:10]
    expected = bp.plan(model, images[:1], target={"macs": 0.4}, batches=[images], criterion="l1")
    assert widths == {group.name: group.kept for group in expected.groups}


def test_widths_are_measured_with_the_channels_that_the_gradients_choose(go):
    folder = go(f"{TARGET.replace('reconstruction', 'taylor')}, cut: {{}}")
    widths, cost = kept(folder)
    assert cost["small params"] <= 0.5 * cost["dense params"]
    model = bp.load(TinyVGG(), folder / "dense.safetensors")
    batches = [x for x, _ in loader()][:2]
    for x, y in [*loader()][:2]:
        nn.functional.cross_entropy(model.eval()(x), y).backward()
    asked = {"target": {"params": 0.5}, "batches": batches}
    expected = bp.plan(model, batches[0][:1], **asked, criterion="taylor")
    assert widths == {group.name: group.kept for group in expected.groups}


def test_a_run_that_goes_on_has_the_same_widths(go, monkeypatch):
    folder = go(f"{TARGET}, cut: {{}}, finetune: {{epochs: 1}}")
    weights, line = load_file(folder / "small.safetensors"), kept(folder)
    (folder / "result.json").unlink()
    (folder / "small.safetensors").unlink()
    (folder / "finetune" / "finished.json").unlink()
    monkeypatch.setattr(Pruning, "_measured", lambda *_: pytest.fail("it is measured again"))
    go(f"{TARGET}, cut: {{}}, finetune: {{epochs: 1}}", "--resume")
    before = json.loads((folder / "widths" / "finished.json").read_text())["outcome"]
    again = load_file(folder / "small.safetensors")
    assert kept(folder) == line
    plan = json.loads((folder / "result.json").read_text())["plan"]
    assert {key: plan[key] for key in before} == before and before["trade_off"]
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_latency_is_reached_in_the_runtime_that_is_named(monkeypatch):
    clock = Clocked(stopped_clock(monkeypatch), block=8)
    monkeypatch.setitem(RUNTIMES, "pytorch", lambda threads: clock)
    torch.manual_seed(0)
    model, x = scramble(vgg((32, 48, 64))).eval(), torch.randn(16, 3, 8, 8)
    target = TargetConfig(latency=0.6, runtime="pytorch", threads=1)
    widths = WidthsConfig(target=target, multiple_of="auto")
    planned = widths.plan(model, x[:1], [x])
    blended = bp.attach(model, planned)
    blended.alpha = 0.0
    taken = clock.seconds(bp.collapse(blended)) / clock.seconds(model)
    assert 0.4 < taken <= 0.6 and all(g.kept % 8 == 0 for g in planned.groups if g.pruned)
    again = widths.settled(planned)
    assert again.multiple_of == 1
    kept = [group.kept for group in again.plan(model, x[:1]).groups]
    assert kept == [group.kept for group in planned.groups]
    shares = widths.plan(model, x[:1])  # before training: one share of all, by what is predicted
    assert [g.kept for g in shares.groups if g.pruned] != kept and shares.after != shares.before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "widths: {target: {params: 0.5}}, cut: {}",
            "needs criterion.calibration (=0) batches",
        ),
        (
            f"{TARGET.replace('params', 'weights')}, cut: {{}}",
            "widths.target: Option 'weights' is not accepted: there are macs, params, memory",
        ),
        (f"{TARGET.replace('params: 0.5', 'floor: 0.2')}, cut: {{}}", "say what to reach: one of"),
        (
            f"{TARGET.replace('0.5', '0.5, allocation: even')}, cut: {{}}",
            "allocation (='even') must be one of selected, additive, one_share",
        ),
        (
            f"{TARGET.replace('params', 'latency')}, cut: {{}}",
            "latency is measured in a runtime: give one",
        ),
        (
            f"{TARGET.replace('0.5', '0.5, runtime: pytorch')}, cut: {{}}",
            "runtime (=PyTorch) belongs to a target of latency",
        ),
        (
            f"{TARGET.replace('0.5', '0.5, threads: 2')}, cut: {{}}",
            "threads (=2) are those of a runtime",
        ),
        (f"{TARGET.replace('target', 'keep: 0.5, target')}, cut: {{}}", "keep (=0.5) and target"),
        (f"{TARGET.replace('0.5', '0.01')}, cut: {{}}", "params (=0.01) cannot be reached"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_trained(text, said, go, tmp_path, capsys):
    go(text, status=2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_digests_of_results_without_a_target_stay():
    before = "prune: {widths: {keep: 0.5}}"
    assert digest(before) == digest("prune: {widths: {keep: 0.5, target: null}}")
    assert digest(before) != digest("prune: {widths: {keep: null, target: null}}")
    assert digest(before) != digest("prune: {widths: {keep: 0.5, target: {macs: 0.5}}}")
    alone, other = (
        digest(f"prune: {{widths: {{target: {{macs: 0.5, params: null, {more}}}}}}}")
        for more in ("floor: 0.1, allocation: selected, runtime: null", "allocation: random")
    )
    assert alone == digest("prune: {widths: {target: {macs: 0.5}}}") != other


class Split(nn.Module):
    """One convolution whose channels are read in two parts, each a group of its own."""

    part = 24

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(24, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for images x of shape (N, 3, H, W)."""
        both = self.a(x).relu()
        parts = self.b(both[:, : self.part]).relu(), self.c(both[:, self.part :]).relu()
        outputs: Tensor = self.head(torch.cat(parts, 1).mean((2, 3)))
        return outputs


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_what_a_target_came_to_is_planned_again_without_it(share: float) -> None:
    torch.manual_seed(0)
    model, x = Split().eval(), torch.randn(16, 3, 8, 8)
    widths = WidthsConfig(target=TargetConfig(macs=share))
    planned = widths.plan(model, x[:1], [x])
    again = widths.settled(planned).plan(model, x[:1])
    assert {"a", "a#2"} <= {group.name for group in planned.groups}
    assert [(g.kept, g.pruned) for g in again.groups] == [
        (g.kept, g.pruned) for g in planned.groups
    ]
