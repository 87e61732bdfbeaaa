"""A trained model made small: what it does afterwards, and what is refused before."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from models import vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.data import Digits
from branchprune.errors import Failed
from branchprune.few_images.learning import Learning
from branchprune.few_images.pace import seconds_a_step
from branchprune.few_images.rate import RATES, best_rate
from branchprune.few_images.start import fitted_start
from branchprune.few_images.student import Student
from branchprune.models import UNet

COMPRESS, PACE = (import_module(f"branchprune.few_images.{name}") for name in ("compress", "pace"))
LAYERS = [name for name, layer in vgg().named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A net that knows the digits, training images, and test images with their classes."""
    torch.manual_seed(0)
    data = Digits(channels=3)
    data.setup()
    (x, y), (images, classes) = data.splits["train"].tensors, data.splits["test"].tensors
    net = vgg((16, 24, 32), classes=10)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(10):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval(), x, images, classes


def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == classes).float().mean())


def cut(model: nn.Module, images: Tensor, keep: float) -> nn.Module:
    """The same channels by least squares, and nothing learnt."""
    blended = bp.attach(model, bp.plan(model, images[:2], keep), "reconstruction", batches=[images])
    blended = bp.fit_expand(blended, [images])
    blended.alpha = 0.0
    return bp.collapse(blended)


def test_it_does_what_the_dense_model_does(trained: Any) -> None:
    model, x, images, classes = trained
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heard: list[tuple[int, int, float]] = []
    options = {"steps": 150, "transform": lambda images: images, "dtype": torch.float32}
    found = bp.compress(model, x[:100], 0.4, **options, progress=lambda *at: heard.append(at))
    dense, small = (accuracy(each, images, classes) for each in (model, found.model))
    start = accuracy(cut(model, x[:100], 0.4), images, classes)
    assert dense > 0.9 and small > start + 0.5 * (dense - start) and small > dense - 0.1
    assert type(found.model) is type(model) and not found.model.training
    assert found.images == 90 and found.agreement.images == 10
    assert [step for step, _, _ in heard[-150:]] == [*range(1, 151)] and heard[-1][1] == 150
    assert heard[-1][2] < heard[-150][2]
    state = model.state_dict()
    assert all(torch.equal(before[key], state[key]) for key in before)
    again = bp.compress(model, x[:100], 0.4, **options, learning_rate=found.how.learning_rate)
    torch.testing.assert_close(again.model.state_dict(), found.model.state_dict())


def test_its_lines_say_what_it_costs_and_how_well_it_agrees(trained: Any) -> None:
    model, x, _, _ = trained
    lines = str(bp.compress(model, x[:40], steps=2)).splitlines()
    assert lines[0].startswith("params: ") and lines[1].startswith("macs: ")
    assert lines[2].startswith("of 4 held-out images ") and "95 % interval" in lines[2]
    assert lines[3].startswith("2 steps, ")


def test_minutes_decide_how_many_steps_there_are(trained: Any, monkeypatch: Any) -> None:
    model, x, _, _ = trained
    paces = {torch.float32: 0.5, torch.bfloat16: 0.25}
    monkeypatch.setattr(PACE, "seconds_a_step", lambda *given: paces[given[-1].dtype])
    monkeypatch.setattr(COMPRESS.time, "perf_counter", lambda: 3.0)
    how = bp.compress(model, x[:40], minutes=0.05, learning_rate=0.01).how
    assert (how.steps, how.dtype) == (12, torch.bfloat16)
    assert bp.compress(model, x[:40], minutes=0.7, dtype=torch.bfloat16).how.steps == 168 - 160
    with pytest.raises(bp.PruneError, match=r"minutes \(=1e-06\) are too few"):
        bp.compress(model, x[:40], minutes=1e-6)


def test_the_clock_runs_while_a_copy_learns(trained: Any) -> None:
    model, x, _, _ = trained
    student = Student(fitted_start(model, bp.plan(model, x[:2]), x[:40]))
    before = [parameter.clone() for parameter in student.parameters()]
    assert seconds_a_step(student, model, x[:40], Learning(steps=1, batch_size=8)) > 0
    assert all(map(torch.equal, before, student.parameters()))


def test_the_learning_rate_is_that_of_the_smallest_loss(monkeypatch: Any) -> None:
    ends = dict(zip(RATES, (math.nan, 3.0, 1.0, 2.0), strict=True))

    def learn(_: Any, dense: Any, images: Any, how: Learning, progress: Any) -> None:
        for step in range(1, how.steps + 1):
            loss = ends[how.learning_rate] if step > how.steps - 5 else 0.0
            if math.isnan(loss):
                raise Failed("the loss is nan")
            progress(step, how.steps, loss)

    monkeypatch.setattr("branchprune.few_images.rate.learn", learn)
    given: Any = (None, None, None)
    assert best_rate(*given, Learning()) == 0.001
    ends |= dict.fromkeys(RATES, math.nan)
    with pytest.raises(bp.PruneError, match="not finite, whatever the learning rate"):
        best_rate(*given, Learning())


def test_images_are_matched_where_a_model_makes_images() -> None:
    torch.manual_seed(0)
    model, x = UNet((4, 8)), torch.rand(20, 1, 8, 8)
    once = {"dtype": torch.float32, "learning_rate": 0.01}
    heard: list[float] = []
    found = bp.compress(
        model, x, 0.5, steps=40, mixup=0.0, progress=lambda *at: heard.append(at[2])
    )
    assert found.agreement.kind == "relative error"
    assert heard[-1] < 0.5 * heard[-40]
    own = bp.compress(
        model, x, steps=20, **once, distance=lambda y, wanted: (y - wanted).abs().mean()
    )
    assert own.agreement.value < 0.5


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.randn(8, 3, 8, 8), {"steps": 1, "minutes": 1}, "give one of them"),
        (torch.randn(8, 3, 8, 8), {"steps": -1}, r"steps \(=-1\) must be a whole number"),
        (torch.randn(8, 3, 8, 8), {"minutes": -1}, r"minutes \(=-1\) must be positive"),
        (torch.randn(8, 3, 8, 8), {"batch_size": 1}, r"batch_size \(=1\)"),
        (torch.randn(8, 3, 8, 8), {"dtype": torch.float16}, r"dtype \(=torch.float16\)"),
        (torch.randn(8, 3, 8, 8), {"mixup": -1}, r"mixup \(=-1\)"),
        (torch.randn(8, 3, 8, 8), {"exclude": LAYERS}, "nothing"),
        (torch.randn(8, 1, 8, 8), {}, "channels"),
    ],
)
def test_bad_input_is_told_in_one_line(
    images: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(bp.PruneError, match=message) as caught:
        bp.compress(vgg(), images, **options)
    assert "\n" not in str(caught.value)
