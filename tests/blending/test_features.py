"""Learning the teacher's features through the branches' own ends, against plain torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import relative, resnet, scramble, vgg
from observed_runs import command
from small_training import TinyVGG, loader, network, trainer
from torch import Tensor, nn
from two_paths import X, blended_of, both_paths, chain, gradients

import branchprune as bp
from branchprune.cli import main
from branchprune.lightning import BranchPruning, ClassificationTask, ReconstructionTask
from branchprune.training.distillation import Teacher, learn_from

pytestmark = pytest.mark.usefixtures("without_charts")

EXAMPLE = torch.randn(2, 1, 8, 8)


def read_by(teacher: nn.Sequential) -> list[Tensor]:
    """Return what the layers 4 and 7 of a `chain` in evaluation mode read."""
    teacher = copy.deepcopy(teacher).eval()
    with torch.no_grad():
        return [teacher[:4](X), teacher[:6](X)]


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (0.25, 0.5), (0.5, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_distance_and_its_gradient_are_those_of_the_formula(
    alphas: tuple[float, float],
) -> None:
    teacher = scramble(chain().double(), seed=9)
    blended = blended_of(chain())
    blended.alpha = {"0": alphas[0], "4": alphas[1]}
    output, paths = both_paths(blended, alphas)
    ends = zip(paths, read_by(teacher), alphas, strict=True)
    terms = [(b - u).square().sum() / u.square().sum() for (b, _), u, alpha in ends if alpha < 1]
    expected = sum(terms, torch.zeros(())) / max(len(terms), 1)
    found, told, distance = learn_from(Teacher(teacher), blended, X, features=True)
    assert relative(output, found) < 1e-12
    with torch.no_grad():
        assert torch.equal(told, copy.deepcopy(teacher).eval()(X))
    assert float(distance.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    if not terms:
        return assert_no_gradient(distance)
    wanted, given = gradients(expected, blended), gradients(distance, blended)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    assert largest > 0
    for a, b in zip(wanted, given, strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * largest


def assert_no_gradient(distance: Tensor) -> None:
    assert not distance.requires_grad and float(distance) == 0


@pytest.mark.parametrize("make", [vgg, resnet])
def test_selected_channels_of_the_teacher_are_kept_exactly(make: Any) -> None:
    """A branch that starts from selected channels lacks at first what it left out, no more."""
    model = scramble(make().double()).eval()
    blended = bp.attach(model, bp.plan(model, X)).eval()
    blended.alpha = 0.5
    with blended.branch_features() as narrow:
        blended(X)
    teacher = Teacher(model)
    _, wide = teacher(X, narrow)
    assert wide.keys() == {
        name for name, end in blended.expand.named_modules() if end in ends(blended)
    }
    first = next(iter(narrow))
    end = blended.expand.get_submodule(first)
    kept = end.weights[0].sum(1).bool()
    assert relative(wide[first][:, kept], end(narrow[first])[:, kept]) < 1e-12
    assert not end(narrow[first])[:, ~kept].any()


def ends(blended: bp.Blended) -> list[nn.Module]:
    return [module for module in blended.expand.modules() if hasattr(module, "pieces")]


def test_outside_the_block_nothing_is_collected() -> None:
    blended = blended_of(chain())
    blended.alpha = 0.5
    with blended.branch_features() as narrow:
        inside = blended(X)
        assert [*narrow] == ["4", "7"]
        narrow.clear()
    assert torch.equal(inside, blended(X)) and not narrow
    copy.deepcopy(blended)(X)
    assert not narrow


def test_channels_whose_turn_has_not_come_are_not_taught() -> None:
    """One tensor joins channels of both groups; those at α = 1 count nothing."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(14, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(torch.cat([self.a(x), self.b(x)], 1))
            return y

    model = scramble(Joined().double())
    blended = scramble(bp.attach(model, bp.plan(model, X)), seed=6).train()
    blended.alpha = {"a": 0.5}
    _, _, distance = learn_from(Teacher(model), blended, X, features=True)
    narrow = torch.einsum("kc,nchw->nkhw", blended.reduce.a.weights[0], blended.model.a(X))
    branch = torch.einsum("ck,nkhw->nchw", blended.expand.c.weights[0], narrow)
    wide = model.a(X)
    expected = (branch - wide).square().sum() / wide.square().sum()
    assert float(distance.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)


def test_a_model_without_branches_is_refused() -> None:
    model = chain().double()
    with pytest.raises(bp.PruneError, match="Sequential has no branches"):
        learn_from(Teacher(model), model, X, features=True)


def test_a_teacher_that_works_in_place_is_read_before_it_does() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x)
            x.zero_()
            return y

    model = InPlace().double()
    _, read = Teacher(model)(X, ["b"])
    assert torch.equal(read["b"], model.a(X))


def test_branches_learn_the_features() -> None:
    """What the branches lack falls while they train."""
    task = ClassificationTask(
        network(), teacher_weight=1.0, feature_weight=1.0, learning_rate=0.005, schedule="constant"
    )
    seen: list[float] = []

    class Watch(BranchPruning):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(float(trainer.callback_metrics["loss/features"]))
            super().on_train_epoch_end(trainer, pl_module)

    pruning = Watch(bp.Schedule((0.0,), hold=12), example=EXAMPLE, init="random")
    trainer(12, pruning).fit(task, loader(), loader())
    assert len(seen) == 12 and seen[-1] < 0.8 * seen[0]
    assert pruning.collapse_error is not None and pruning.collapse_error < 1e-10


@pytest.mark.parametrize("weight", [-1.0, float("inf")])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    for kind in (ClassificationTask, ReconstructionTask):
        with pytest.raises(bp.PruneError, match=r"feature_weight"):
            kind(network(), feature_weight=weight)


def test_compiled_code_collects_the_same() -> None:
    blended = blended_of(chain())
    blended.alpha = 0.5
    with blended.branch_features() as expected:
        output = blended(X)
    blended.compile(backend="eager", fullgraph=True)
    with blended.branch_features() as found:
        assert torch.allclose(blended(X), output)
    assert found.keys() == expected.keys() == {"4", "7"}
    assert all(torch.allclose(found[name], expected[name]) for name in found)
    torch._dynamo.reset()


BLEND = {"prune.blend.levels": "[0.0]"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune.cut": "{}", "prune.finetune.epochs": "1"}, "only branches learn features"),
        ({**BLEND, "prune.finetune.epochs": "1"}, "only branches learn features"),
        ({**BLEND, "prune.sparsify.epochs": "1"}, "only branches learn features"),
        ({**BLEND, "prune.rounds.count": "2"}, "only branches learn features"),
        ({**BLEND, "task.init_args.feature_weight": "1.0", "dense.epochs": "1"}, "has no branches"),
    ],
)
def test_what_has_no_branches_is_refused_before_training(
    options: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(TinyVGG().state_dict(), tmp_path / "dense.pt")
    arguments = command(tmp_path, **{"prune__task": '{"feature_weight": 1.0}'})
    for name, value in options.items():
        arguments += [f"--{name}", value]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_learns_features_to_its_end(tmp_path: Path) -> None:
    torch.save(TinyVGG().state_dict(), tmp_path / "dense.pt")
    options = {"prune.blend.levels": "[0.5, 0.0]", "prune.blend.mixing": "group"}
    options |= {"prune.blend.average": "0.5", "prune.criterion.name": "taylor"}
    options |= {"prune.criterion.calibration": "1"}
    task = '{"feature_weight": 1.0, "teacher_weight": 0.5}'
    assert (
        main(
            command(
                tmp_path,
                prune__task=task,
                fast="false",
                task="branchprune.lightning.ClassificationTask",
                **options,
            )
        )
        == 0
    )
    rows = (tmp_path / "run" / "prune" / "metrics.csv").read_text().splitlines()
    assert "loss/features" in rows[0]
