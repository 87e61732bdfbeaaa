"""The tree of modules, against the collapsed model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, counted_macs, resnet, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.planning.module_tree import ModuleRow, module_tree, tree_lines

IMAGE = (2, 3, 8, 8)


def collapsed(model: nn.Module, plan: bp.Plan) -> nn.Module:
    blended = bp.attach(model, plan)
    blended.alpha = 0
    return bp.collapse(blended)


def rows_of(model: nn.Module, **options: Any) -> tuple[bp.Plan, dict[str, ModuleRow]]:
    plan = bp.plan(model, torch.randn(IMAGE), **options)
    return plan, {row.name: row for row in module_tree(model, plan)}


@pytest.mark.parametrize("make", [vgg, resnet])
def test_numbers_are_those_of_the_models(make: Any) -> None:
    model, x = make().eval(), torch.randn(IMAGE)
    plan, rows = rows_of(model, keep=0.4)
    small = collapsed(model, plan).eval()
    assert [*rows] == [name for name, _ in model.named_modules()]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    model(x)
    for name, row in rows.items():
        parts = [net.get_submodule(name) for net in (model, small)]
        assert row.params == tuple(sum(p.numel() for p in part.parameters()) for part in parts)
        assert row.kind == type(parts[0]).__name__ and row.shape == shapes[name]
        if isinstance(parts[0], nn.Conv2d):
            assert row.width == tuple(part.out_channels for part in parts)
    assert rows[""].params == (plan.before.params, plan.after.params)
    assert rows[""].macs == tuple(counted_macs(net, x[:1]) for net in (model, small))
    children = [row for row in rows.values() if row.depth == 1]
    assert rows[""].macs == tuple(sum(row.macs[i] for row in children) for i in (0, 1))


def test_a_part_of_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)))
    plan, rows = rows_of(model, inside="1")
    assert [(row.name, row.depth) for row in rows.values()] == [("1", 0), ("1.0", 1), ("1.1", 1)]
    assert rows["1"].params == (plan.before.params, plan.after.params) == (82, 43)
    assert rows["1.0"].shape == (2, 6, 8, 8) and rows["1.0"].width == (6, 3)


def test_depthwise_layers_norms_and_what_is_not_called() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.c(m.norm(m.deep(m.a(x))).relu())  # type: ignore[no-any-return]

    layers = {"a": nn.Conv2d(3, 8, 1), "deep": nn.Conv2d(8, 16, 3, groups=8, padding=1)}
    layers |= {"norm": nn.BatchNorm2d(16), "c": nn.Conv2d(16, 3, 1), "spare": nn.Linear(2, 3)}
    _, rows = rows_of(Net(run, **layers))
    assert rows["deep"].width == rows["norm"].width == (16, 8)
    assert rows["spare"].shape is None and rows["spare"].params == (9, 9)


def test_as_lines() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1200, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(1200, 3, 1)))
    _, rows = rows_of(model)
    lines = tree_lines([*rows.values()], 1)
    assert lines[0].split() == ["module", "output", "shape", "width", "params", "MACs"]
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in lines[2:]] == [
        "Sequential",
        "0 (Conv2d)",
        "1 (ReLU)",
        "2 (Sequential)",
    ]
    assert "2×1200×8×8" in lines[3] and "1,200 → 600" in lines[3] and "4,800 → 2,400" in lines[3]
    assert lines[3].endswith("230,400 → 115,200")
    assert len(tree_lines([*rows.values()], 2)) == len(lines) + 1
    assert len(tree_lines([*rows.values()], 0)) == 3


class Product(nn.Module):
    """A product of two tensors, in a module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        return (y @ y.transpose(1, 2)).flatten(1)


def test_products_count_where_they_are_computed_and_shapes_at_the_first_call() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        small = m.pool(m.act(m.b(m.a(m.act(x)))))
        return m.fc(m.product(small))  # type: ignore[no-any-return]

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 1), "fc": nn.Linear(36, 2)}
    model = Net(run, **layers, act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(2), product=Product())
    plan, rows = rows_of(model)
    assert rows["product"].macs == (6 * 4 * 6, 6 * 4 * 6)
    assert rows[""].macs == (plan.before.macs, plan.after.macs)
    assert rows["act"].shape == IMAGE
