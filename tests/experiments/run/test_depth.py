"""Runs that leave residual blocks out before channels go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from observed_runs import CONFIG
from small_training import loader
from torch import nn

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.depth import DepthConfig
from branchprune.experiments.run.folder import check_folder
from branchprune.graph.shortcut import shortcuts
from branchprune.planning.profiling import count_macs, count_params

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

EXAMPLE = torch.randn(1, 1, 8, 8)
NET = "{class_path: test_depth.TinyResNet}"


def convolution(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (x + y).relu()


class TinyResNet(nn.Sequential):
    def __init__(self) -> None:
        stem = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        blocks = Block(8), Block(8), Block(8)
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Uneven(nn.Sequential):
    """The first of its two blocks costs four times the other, and hardly adds anything."""

    def __init__(self) -> None:
        stem = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        super().__init__(*stem, Block(8), nn.MaxPool2d(2), Block(8), *end)
        with torch.no_grad():
            self[3].bn2.weight.fill_(1e-4)


def go(folder: Path, prune: str, *options: str, net: str = NET) -> int:
    text = CONFIG.replace("{class_path: small_training.TinyVGG}", net)
    (folder / "config.yaml").write_text(f"{text}prune: {{{prune}}}\n")
    return main(["run", str(folder / "config.yaml"), "--output", str(folder / "run"), *options])


def made(folder: Path) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    run = folder / "run"
    check_folder(run, overwrite=True)  # nothing in it is foreign to runs
    dense = bp.load(TinyResNet(), run / "dense.safetensors").eval()
    small = bp.load(TinyResNet(), run / "small.safetensors").eval()
    return dense, small, json.loads((run / "result.json").read_text())


def test_named_blocks_fade_out_and_channels_go_then(tmp_path: Path) -> None:
    depth = "depth: {blocks: ['3', '5'], levels: [0.5, 0.0], hold: 2}"
    assert go(tmp_path, f"{depth}, cut: {{}}, finetune: {{epochs: 1}}") == 0
    dense, small, result = made(tmp_path)
    assert shortcuts(small) == {"3": "ReLU", "5": "ReLU"} and result["left_out"] == ["3", "5"]
    stages = {name: stage["epochs"] for name, stage in result["stages"].items()}
    assert stages == {"dense": 2, "depth": 3, "finetune": 1}
    assert result["cost"]["dense"]["params"] == count_params(dense)
    assert result["cost"]["dense"]["macs"] == count_macs(dense, EXAMPLE)
    assert result["cost"]["small"]["params"] == count_params(small)
    rows = (tmp_path / "run" / "depth" / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("alpha/depth")
    logged = [row.split(",")[place] for row in rows[1:]]
    assert [float(cell) for cell in logged if cell] == [0.5, 0.5, 0.0]


def test_at_once_and_without_training_is_the_model_without_the_blocks(tmp_path: Path) -> None:
    depth = "depth: {blocks: ['4'], levels: [0.0], final_hold: 0}, criterion: {name: l1}"
    assert go(tmp_path, f"{depth}, cut: {{}}") == 0
    dense, small, _ = made(tmp_path)
    shallow = bp.without(dense, ["4"], EXAMPLE)
    blended = bp.attach(shallow, bp.plan(shallow, EXAMPLE, 0.5), "l1")
    blended.alpha = 0.0
    expected = bp.collapse(blended).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in small.state_dict().items())


def test_a_number_leaves_those_out_that_change_the_output_least(tmp_path: Path) -> None:
    assert go(tmp_path, "depth: {blocks: 1, levels: [0.0], calibration: 2}, cut: {}") == 0
    dense, small, _ = made(tmp_path)
    x = torch.cat([batch for batch, _ in loader()][:2])
    batches = [batch for batch, _ in loader()][:2]

    def by_batches(model: nn.Module) -> torch.Tensor:
        model.train()  # norms by each batch, as where changes are measured
        with torch.no_grad():
            found = torch.cat([model(batch) for batch in batches])
        model.eval()
        return found.log_softmax(1)

    whole = by_batches(dense)
    changes = {}
    for name in ("3", "4", "5"):
        other = by_batches(bp.without(dense, [name], EXAMPLE))
        changes[name] = float((whole.exp() * (whole - other)).sum() / len(x))
    assert [*shortcuts(small)] == [min(changes, key=changes.__getitem__)]


def trained(folder: Path, model: nn.Module) -> list[str]:
    """Return options by which a run starts from a model."""
    bp.save(model, folder / "trained.safetensors")
    return ["--dense.epochs", "0", "--dense.checkpoint", str(folder / "trained.safetensors")]


def test_the_cost_is_that_of_the_blocks_that_are_chosen(tmp_path: Path) -> None:
    """The last one, which stands in for it before, would leave more to train, in fewer epochs."""
    macs = {name: count_macs(bp.without(Uneven(), [name], EXAMPLE), EXAMPLE) for name in "35"}
    assert macs["5"] > 1.5 * macs["3"]
    budget = 3 * len(loader().dataset) * 3 * macs["3"]
    text = "depth: {blocks: 1, levels: [0.0], final_hold: 1}, cut: {}, finetune: {}"
    options = trained(tmp_path, Uneven())
    net = "{class_path: test_depth.Uneven}"
    assert go(tmp_path, f"{text}, cost: {{train_macs: {budget}}}", *options, net=net) == 0
    assert [*shortcuts(bp.load(Uneven(), tmp_path / "run" / "small.safetensors"))] == ["3"]
    stages = json.loads((tmp_path / "run" / "result.json").read_text())["stages"]
    before, after = stages["depth"]["train_macs"], stages["finetune"]["train_macs"]
    an_epoch = after / stages["finetune"]["epochs"]
    assert before > 0 and after > 3 * an_epoch and 0 <= budget - before - after < an_epoch


def test_as_many_blocks_go_as_serve_the_target_best(tmp_path: Path) -> None:
    model = TinyResNet()
    with torch.no_grad():
        model[4].bn2.weight.fill_(1e-4)
    options = trained(tmp_path, model)
    depth = "depth: {blocks: auto, levels: [0.0], final_hold: 0, calibration: 2}"
    widths = "widths: {target: {macs: 0.6}}, criterion: {name: l1, calibration: 2}"
    assert go(tmp_path, f"{depth}, {widths}, cut: {{}}", *options) == 0
    _, small, result = made(tmp_path)
    assert [*shortcuts(small)] == ["4"]
    assert result["cost"]["small"]["macs"] <= 0.6 * count_macs(model, EXAMPLE)


def test_blocks_stay_in_which_the_widths_name_a_layer(tmp_path: Path) -> None:
    model = TinyResNet()
    with torch.no_grad():
        model[4].bn2.weight.fill_(1e-4)
    depth = "depth: {blocks: 1, levels: [0.0], final_hold: 0}"
    named = "widths: {exclude: [4.conv1, 5.conv1]}, cut: {}"
    assert go(tmp_path, f"{depth}, {named}", *trained(tmp_path, model)) == 0
    assert shortcuts(made(tmp_path)[1]) == {"3": "ReLU"}


def test_without_a_block_the_others_start_from_early_weights(tmp_path: Path) -> None:
    depth = "depth: {blocks: ['4'], levels: [0.0], final_hold: 0}"
    assert go(tmp_path, f"{depth}, criterion: {{name: l1}}, cut: {{rewind: early}}") == 0
    dense, small, _ = made(tmp_path)
    early = bp.load(TinyResNet(), tmp_path / "run" / "early.safetensors").eval()
    shallow, before = (bp.without(each, ["4"], EXAMPLE) for each in (dense, early))
    plan = bp.plan(shallow, EXAMPLE, 0.5)
    scores: dict[str, torch.Tensor] = {}

    def noted(group: bp.GroupWeights) -> torch.Tensor:
        scores[group.name] = sum(w.abs().sum(1) for w in group.producers)  # type: ignore[assignment]
        return scores[group.name]

    bp.attach(shallow, plan, noted)
    blended = bp.attach(before, plan, lambda group: scores[group.name])
    blended.alpha = 0.0
    expected = bp.collapse(blended).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in small.state_dict().items())


def test_no_block_goes_where_each_is_needed_more_than_channels(tmp_path: Path) -> None:
    model = TinyResNet()
    with torch.no_grad():
        for name in "345":
            model.get_submodule(name).bn2.weight.fill_(5.0)
            for bias in (model.get_submodule(name).bn1.bias, model.get_submodule(name).bn2.bias):
                bias.copy_(torch.randn(8))
    depth = "depth: {blocks: auto, levels: {steps: 0.5}, calibration: 2}"
    widths = "widths: {target: {params: 0.95}}, criterion: {name: l1, calibration: 2}"
    options = trained(tmp_path, model)
    assert go(tmp_path, f"{depth}, {widths}, cut: {{}}", *options) == 0
    _, small, result = made(tmp_path)
    assert shortcuts(small) == {} and "depth" not in result["stages"]


def test_a_target_is_a_share_of_the_dense_model(tmp_path: Path, capsys: Any) -> None:
    target = "widths: {target: {macs: 0.4}}, criterion: {name: l1, calibration: 2}"
    assert go(tmp_path, f"depth: {{blocks: ['3']}}, {target}, cut: {{}}") == 0
    dense, small, result = made(tmp_path)
    share = count_macs(small, EXAMPLE) / count_macs(dense, EXAMPLE)
    assert 0.3 < share <= 0.4
    assert result["cost"]["small"]["macs"] == count_macs(small, EXAMPLE)
    [reached] = result["plan"]["reached"]
    assert (reached["before"], reached["after"]) == (
        count_macs(dense, EXAMPLE),
        count_macs(small, EXAMPLE),
    )
    told = " ".join(capsys.readouterr().out.split())
    assert f"{share:.1%} of the dense model's" in told
    shallow = bp.without(dense, ["3"], EXAMPLE)
    part = count_macs(shallow, EXAMPLE) / count_macs(dense, EXAMPLE)
    shares = [part * group.macs_share for group in bp.plan(shallow, EXAMPLE).groups]
    assert [group["macs_share"] for group in result["plan"]["groups"]] == pytest.approx(shares)


def test_what_is_left_of_a_budget_is_fine_tuning(tmp_path: Path) -> None:
    depth = "depth: {blocks: ['3'], levels: [0.5, 0.0]}, cut: {}, finetune: {}, cost: {epochs: 4}"
    assert go(tmp_path, depth) == 0
    *_, result = made(tmp_path)
    epochs = {name: stage["epochs"] for name, stage in result["stages"].items()}
    assert epochs == {"dense": 2, "depth": 2, "finetune": 2}


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ("depth: {blocks: ['2']}, cut: {}", "names: '2' is no residual block; those are 3, 4, 5"),
        ("depth: {blocks: 4}, cut: {}", "depth.blocks (=4): the model has 3 residual blocks"),
        (
            "depth: {blocks: 3}, widths: {keep: {'': 0.5, 4.conv1: 1.0}}, cut: {}",
            "the model has 2 residual blocks that can be left out, in which widths name none of",
        ),
        (
            "depth: {blocks: auto}, widths: {exclude: [3.bn1, 4.bn1, 5.bn1], target: {macs: 0.5}}, "
            "criterion: {calibration: 2}, cut: {}",
            "depth.blocks (='auto'): the model has 0 residual blocks that can be left out",
        ),
        ("depth: {blocks: 0}, cut: {}", "depth.blocks (=0) must be a whole number"),
        ("depth: {blocks: all}, cut: {}", "depth.blocks"),
        ("depth: {blocks: auto}, cut: {}", "depth.blocks (='auto') are chosen for a target"),
        ("depth: {}, cut: {}, rounds: {}", "depth and rounds exclude each other"),
        ("depth: {levels: {stairs: 2}}, cut: {}", "levels (={'stairs': 2"),
        (
            "depth: {}, widths: {target: {memory: 0.5}}, criterion: {calibration: 1}, cut: {}",
            "target memory (=0.5) is a share, and where blocks are left out the dense model's",
        ),
    ],
)
def test_what_is_wrong_is_told_before_training(
    tmp_path: Path, capsys: Any, prune: str, message: str
) -> None:
    assert go(tmp_path, prune) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_alpha_by_epoch() -> None:
    config = DepthConfig(levels={"steps": 0.25}, hold=2, final_hold=3)
    assert config.alphas == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0]
    assert DepthConfig(levels=[0.0], final_hold=0).alphas == []
