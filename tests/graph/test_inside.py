"""A part of a model that cannot be traced as a whole: planned, blended and collapsed in place."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from models import Residual, counted_macs, relative, scramble, spelled_out
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.lightning import BranchPruning


class Backbone(nn.Module):
    """Two levels of features; the input may be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = Residual(8, 12, 2)
        self.out = nn.Conv2d(12, 6, 1)
        self.low = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor, scale: float = 1.0, shift: Tensor | None = None) -> Any:
        if shift is not None:
            x = x + shift
        low = self.stem(x * scale)
        return {"low": self.low(low), "high": self.out(F.dropout(self.block(low), 0.1, False))}


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


class Detector(nn.Module):
    """Pads a list of images to one size; returns as many boxes as pass a threshold."""

    def __init__(self, backbone: nn.Module | None = None, by_name: bool = False) -> None:
        super().__init__()
        self.backbone = backbone or Backbone()
        self.head = nn.Conv2d(6, 5, 1)
        self.unused = nn.Conv2d(3, 3, 1)
        self.by_name = by_name

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        size = max(max(image.shape[1:]) for image in images)
        padded = [F.pad(i, (0, size - i.shape[2], 0, size - i.shape[1])) for i in images]
        batch = torch.stack(padded)
        features = (
            self.backbone(x=batch, scale=0.5, shift=batch.mean((2, 3), True))
            if self.by_name
            else self.backbone(batch)
        )
        results = []
        for level in features.values():
            for scores in self.head(level).flatten(2):
                best = scores[:, scores[0] > 0]
                results.append({"scores": best, "count": torch.tensor(best.shape[1])})
        return results


def images(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(3, 8, 6), (3, 5, 8), (3, 7, 7)]
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


def detector(**options: Any) -> nn.Module:
    return scramble(Detector(**options).double().eval())


def scores(model: nn.Module, seed: int = 1) -> list[Tensor]:
    return [result["scores"] for result in model(images(seed))]


def attached(model: nn.Module, inside: str = "backbone", **options: Any) -> bp.Blended:
    return bp.attach(model, bp.plan(model, (images(),), inside=inside, **options))


def check_same(expected: list[Tensor], found: list[Tensor]) -> None:
    assert [e.shape for e in expected] == [f.shape for f in found]
    assert sum(e.numel() for e in expected) > 10
    for e, f in zip(expected, found, strict=True):
        assert e.numel() == 0 or relative(e, f) < 1e-10


def differ(before: list[Tensor], after: list[Tensor]) -> bool:
    pairs = list(zip(before, after, strict=True))
    return any(a.shape != b.shape or not torch.allclose(a, b, 1e-3, 1e-3) for a, b in pairs)


def check_exact(blended: bp.Blended) -> nn.Module:
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        expected = scores(spelled_out(blended))
        check_same(expected, scores(small))
        check_same(expected, scores(blended))
        before = scores(blended.model)
    assert differ(before, expected)
    assert type(small) is type(blended.model)
    return small


def test_the_whole_is_traced_for_images_of_the_same_sizes() -> None:
    model = detector()
    blended = bp.attach(model, bp.plan(model, (images(),)))
    check_same(scores(model), scores(blended))
    check_exact(blended)
    with pytest.raises(bp.PruneError, match="another branch than for the plan's example at `size"):
        blended([image[:, :4] for image in images()])
    with pytest.raises(bp.PruneError, match="2 tensors, which were 3"):
        blended(images()[:2])


@pytest.mark.parametrize("training", [False, True])
def test_alpha_1_is_the_model(training: bool) -> None:
    model = detector().train(training)
    blended = attached(model)
    other = copy.deepcopy(model)
    for found, expected in zip(scores(blended), scores(other), strict=True):
        assert torch.equal(found, expected)
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, blended.model.get_buffer(name))


def test_plan_names_and_costs_are_those_of_the_part() -> None:
    model = detector()
    plan = bp.plan(model, (images(),), inside="backbone")
    pruned = {g.name: g.layers for g in plan.groups if g.pruned}
    assert pruned == {
        "backbone.stem.0": ("backbone.stem.0",),
        "backbone.block.down": ("backbone.block.down", "backbone.block.conv2"),
        "backbone.block.conv1": ("backbone.block.conv1",),
    }
    frozen = {g.name: g.reason for g in plan.groups if not g.pruned}
    output = "it is an output of the model"
    assert frozen == {"backbone.low": output, "backbone.out": output}
    assert isinstance(plan.example, tuple) and plan.example[0].shape == (3, 3, 8, 8)
    small = check_exact(bp.attach(model, plan))
    part = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    for cost, net in ((plan.before, model.backbone), (plan.after, small.backbone)):
        assert cost.params == sum(p.numel() for p in net.parameters())
        assert cost.macs == counted_macs(net, part)


def test_collapse_gives_the_class_with_a_narrow_part() -> None:
    model = detector()
    small = check_exact(attached(model))
    assert list(small.state_dict()) == list(model.state_dict())
    assert small.backbone.stem[0].out_channels == 4
    assert small.head.weight.shape == model.head.weight.shape
    assert "forward" not in vars(small.backbone)
    assert not any(isinstance(m, bp.Blended) for m in small.modules())


def test_alpha_moves_and_everything_trains() -> None:
    model = detector().train()
    blended = attached(model)
    first = blended.part(torch.stack([torch.ones(3, 8, 8).double()] * 2))["high"]
    blended.alpha = {"backbone.stem": 0.5}
    assert blended.alpha["backbone.stem.0"] == 0.5 and blended.alpha["backbone.block.down"] == 1
    blended.alpha = 0.5
    assert not torch.allclose(
        first, blended.part(torch.stack([torch.ones(3, 8, 8).double()] * 2))["high"]
    )
    optimizer = torch.optim.SGD(blended.parameters(), lr=0.1)
    before = copy.deepcopy(blended.state_dict())
    for alpha in (0.5, 0.0):
        blended.alpha = alpha
        optimizer.zero_grad()
        sum(s.square().mean() for s in scores(blended) if s.numel()).backward()
        if alpha:
            for name, parameter in blended.named_parameters():
                assert (parameter.grad is not None) == ("unused" not in name), name
        optimizer.step()
    after = blended.state_dict()
    assert not torch.equal(before["model.head.weight"], after["model.head.weight"])
    assert not torch.equal(
        before["twin.backbone.stem.1.running_mean"], after["twin.backbone.stem.1.running_mean"]
    )
    small = bp.collapse(blended.eval())
    check_same(scores(spelled_out(blended)), scores(small))


def test_a_part_that_is_called_by_names() -> None:
    model = detector(by_name=True)
    blended = attached(model)
    assert set(blended.plan.example) == {"x", "scale", "shift"}
    for found, expected in zip(scores(blended), scores(model), strict=True):
        assert torch.equal(found, expected)
    check_exact(blended)


@pytest.mark.parametrize("inside", ["backbone", "backbone.backbone", "backbone.backbone.block"])
def test_a_nested_part(inside: str) -> None:
    model = detector(backbone=Body())
    small = check_exact(attached(model, inside))
    narrow = {n for n, p in small.named_parameters() if p.shape != model.get_parameter(n).shape}
    assert narrow and all(name.startswith(inside) for name in narrow)


def test_a_part_that_is_called_more_than_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))

        def forward(self, x: Tensor) -> list[Tensor]:
            sides = [x]
            while float(x.detach().abs().sum()) > 0 and min(x.shape[2:]) > 3:
                x = self.net(x)
                sides.append(x)
            return sides

    model = scramble(Twice().double().eval())
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    blended = scramble(bp.attach(model, bp.plan(model, x, inside="net")), seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        check_same(spelled_out(blended)(x), small(x))
        check_same(spelled_out(blended)(x), blended(x))
    assert len(small(x)) == 4


def test_wrong_parts() -> None:
    with pytest.raises(bp.PruneError, match=r"inside \(='unused'\): the model does not call it"):
        bp.plan(detector(), (images(),), inside="unused")
    with pytest.raises(bp.PruneError, match="inside names the layer 'neck', which the model lack"):
        bp.plan(detector(), (images(),), inside="neck")
    with pytest.raises(bp.PruneError, match="exclude names the layer 'stem', which the model l"):
        bp.plan(detector(), (images(),), inside="backbone", exclude=["stem"])
    with pytest.raises(bp.PruneError, match="nothing in the model can be pruned"):
        bp.plan(detector(), (images(),), inside="head")


def test_a_failed_plan_leaves_the_model_alone() -> None:
    model = detector()
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    for inside in ("unused", "head", "backbone"):
        try:
            bp.plan(model, (images(),), inside=inside)
        except bp.PruneError:
            assert inside != "backbone"
        with pytest.raises(bp.PruneError, match="does not pass through Detector"):
            bp.plan(model, ([torch.randn(4, 3, 3), None],), inside=inside)
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert all("forward" not in vars(m) for m in model.modules())


def test_exclude_and_keep_by_full_path() -> None:
    model = detector()
    plan = bp.plan(
        model,
        (images(),),
        {"backbone": 0.5, "backbone.stem.0": 0.25},
        inside="backbone",
        exclude=["backbone.block.conv1"],
    )
    kept = {g.name: (g.kept, g.reason) for g in plan.groups}
    assert kept["backbone.stem.0"] == (2, None)
    assert kept["backbone.block.down"] == (6, None)
    assert kept["backbone.block.conv1"] == (12, "backbone.block.conv1 is excluded")
    check_exact(bp.attach(model, plan))


def test_saved_and_loaded(tmp_path: Path) -> None:
    small = check_exact(attached(detector()))
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(Detector(), tmp_path / "small.safetensors").eval()
    assert loaded.backbone.stem[0].out_channels == 4
    assert all(map(torch.equal, scores(loaded), scores(small)))


def test_state_dict_restores_a_blended_part() -> None:
    model = detector()
    blended, other = attached(model), attached(model)
    scramble(blended, seed=3)
    blended.alpha = {"backbone.stem": 0.25, "backbone.block": 0.0}
    other.load_state_dict(blended.state_dict())
    assert other.alpha == blended.alpha
    assert all(map(torch.equal, scores(other), scores(blended)))


@pytest.mark.parametrize("alpha", [1, 0.5, 0])
def test_copies_are_independent(alpha: float) -> None:
    blended = scramble(attached(detector()), seed=2)
    blended.alpha = alpha
    expected = scores(blended)
    for copied in (copy.deepcopy(blended), pickle.loads(pickle.dumps(blended))):
        assert all(map(torch.equal, scores(copied), expected))
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        copied.alpha = 0.25
        assert all(map(torch.equal, scores(blended), expected))
        assert "forward" not in vars(blended.model.backbone)
        assert not any(bool(s.any()) for s in scores(copied))


def test_branch_only_with_fresh_statistics() -> None:
    model = detector()
    blended = scramble(attached(model), seed=2)
    blended.alpha = 0.5
    blended_scores = scores(blended)
    state = copy.deepcopy(blended.state_dict())
    with blended.branch_only():
        branch = scores(blended)
    check_same(scores(spelled_out(blended)), branch)
    with blended.branch_only([(images(5),), (images(6),)]):
        fresh = scores(blended)
        twin = blended.twin.get_submodule("backbone.stem.1")
        conv, reduce = model.backbone.stem[0], blended.reduce.get_submodule("backbone.stem.0")
        means = []
        for seed in (5, 6):
            padded = [F.pad(i, (0, 8 - i.shape[2], 0, 8 - i.shape[1])) for i in images(seed)]
            z = reduce(blended.model.backbone.stem[0](torch.stack(padded)))
            means.append(z.mean((0, 2, 3)))
        assert conv.out_channels == 8
        assert relative(torch.stack(means).mean(0), twin.running_mean) < 1e-10
    assert differ(fresh, branch)
    assert all(torch.equal(v, state[k]) for k, v in blended.state_dict().items())
    assert all(map(torch.equal, scores(blended), blended_scores))


@pytest.mark.parametrize("alpha", [1, 0.5, 0])
def test_nothing_is_left_in_the_part(alpha: float) -> None:
    blended = attached(detector())
    blended.alpha = alpha
    scores(blended)
    assert "forward" not in vars(blended.model.backbone)
    with pytest.raises(RuntimeError):
        blended([torch.randn(4, 5, 5, dtype=torch.float64)])
    assert "forward" not in vars(blended.model.backbone)
    with pytest.raises(TypeError):
        blended(None)
    assert "forward" not in vars(blended.model.backbone)
    assert blended.model.backbone.forward.__func__ is Backbone.forward


def test_hooks_on_the_part_still_run() -> None:
    model = detector()
    seen: list[float] = []
    model.backbone.register_forward_hook(
        lambda *args: seen.append(float(args[2]["high"].detach().sum()))
    )
    blended = attached(model)
    seen.clear()
    scores(blended)
    blended.alpha = 0
    scores(blended)
    assert len(seen) == 2 and seen[0] != seen[1]


class Noisy(Backbone):
    def forward(self, x: Tensor, scale: float = 1.0, shift: Tensor | None = None) -> Any:
        return super().forward(F.dropout(x, 0.5, self.training), scale)


def test_a_part_in_evaluation_mode_while_the_rest_trains() -> None:
    blended = attached(detector(backbone=Noisy()))
    blended.alpha = 0.5
    expected = scores(blended)
    blended.training = True
    blended.model.head.train()
    state = copy.deepcopy(blended.state_dict())
    assert all(map(torch.equal, scores(blended), expected))
    assert all(torch.equal(v, state[k]) for k, v in blended.state_dict().items())
    blended.train()
    assert differ(scores(blended), scores(blended))


class Task(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Detector()

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        results = self.net(list(batch[0]))
        return torch.stack([r["scores"].square().sum() / 100 for r in results]).mean()

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Sequence[Tensor], _: int) -> None:
        self.log("loss/val", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_callback_prunes_a_part() -> None:
    module = Task()
    data = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8)), batch_size=4)
    example = (images(dtype=torch.float32),)
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), inside="backbone", example=example)
    trainer = pytorch_lightning.Trainer(
        max_epochs=2,
        callbacks=[pruning],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data, data)
    assert type(module.net) is Detector and pruning.small is module.net
    assert module.net.backbone.stem[0].out_channels == 4
    assert pruning.collapse_error is not None and pruning.collapse_error < 1e-10
    assert pruning.plan is not None
    assert pruning.plan.after.params == sum(p.numel() for p in module.net.backbone.parameters())
    assert "forward" not in vars(module.net.backbone)
    assert {"loss/val", "loss/val_branch"} <= set(trainer.callback_metrics)
    with torch.no_grad():
        losses = [module.eval().loss(batch) for batch in data]
    assert float(torch.stack(losses).mean()) == pytest.approx(
        float(trainer.callback_metrics["loss/val"]), rel=1e-4
    )
