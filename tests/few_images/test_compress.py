"""A trained model made small: what it does afterwards, and what is refused before."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from models import Net, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending.bn_recalibration import batch_norms
from branchprune.data import Digits
from branchprune.errors import Failed
from branchprune.few_images.card import card
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.pace import seconds_a_step
from branchprune.few_images.rate import RATES, best_rate
from branchprune.few_images.start import fitted_start
from branchprune.few_images.student import Student
from branchprune.models import VGG, UNet

MODULES = ("compress", "pace", "start", "settling")
COMPRESS, PACE, START, SETTLING = (
    import_module(f"branchprune.few_images.{name}") for name in MODULES
)
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
    blended = bp.fit_expand(blended, [images], ridge=0.1)
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


def test_without_steps_channels_are_chosen_and_ends_fitted(trained: Any) -> None:
    model, x, _, _ = trained
    found = bp.compress(model, x[:100], 0.4, steps=0)
    known = x[:100][torch.randperm(100, generator=torch.Generator().manual_seed(0))[10:]]
    torch.testing.assert_close(found.model(x[:50]), cut(model, known, 0.4)(x[:50]))


def test_what_is_given_is_not_tried_out(trained: Any, monkeypatch: Any) -> None:
    model, x, _, _ = trained
    for name in ("fastest", "best_rate"):
        monkeypatch.setattr(SETTLING, name, lambda *_: pytest.fail("tried out"))
    given = {"dtype": torch.bfloat16, "learning_rate": 0.02, "seed": 3}
    how = bp.compress(model, x[:20], steps=2, **given).how
    assert {name: getattr(how, name) for name in given} == given


def test_its_lines_say_what_it_costs_and_how_well_it_agrees(trained: Any) -> None:
    model, x, _, _ = trained
    found = bp.compress(model, x[:40], steps=2, seed=4)
    lines = str(found).splitlines()
    assert lines[0].startswith("params: ") and lines[1].startswith("macs: ")
    assert lines[2].startswith("on 4 held-out images the class is ") and "95 % interval" in lines[2]
    how = f"learning rate {found.how.learning_rate}, {str(found.how.dtype)[6:]}, seed 4"
    assert lines[3].startswith(f"2 steps of 64 images ({how}), 36 images, ")


def test_what_was_warned_of_stands_at_the_end_and_on_the_card(trained: Any) -> None:
    model, x, _, _ = trained
    with pytest.warns(UserWarning, match="images are not what") as said:
        found = bp.compress(model, 5 + 4 * x[:40], steps=0)
    doubts = [str(each.message) for each in said]
    assert [*found.doubts] == doubts
    assert str(found).splitlines()[-1] == f"but {doubts[-1]}"
    assert f"**But** {doubts[0]}." in card(found, "a model", (8, 8))


FITTING, TRYING, LEARNING = "choosing channels and fitting", "trying learning rates", "learning"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, [FITTING]),
        ({"steps": 2}, [FITTING, LEARNING]),
        ({"steps": 100, "batch_size": 2}, [FITTING, TRYING, LEARNING]),
        ({"steps": 100, "batch_size": 2, "learning_rate": 0.01}, [FITTING, LEARNING]),
        ({"steps": 0, "target": {"macs": 0.5}}, ["choosing widths", FITTING]),
    ],
)
def test_phases_are_told_as_they_begin(trained: Any, given: Any, said: list[str]) -> None:
    model, x, _, _ = trained
    told: list[str] = []

    def step(at: int, *_: object) -> None:
        told.extend([f"step {at}"] * (at == 1))

    found = bp.compress(model, x[:20], **given, progress=step, phase=told.append)
    assert told == said + ["step 1"] * (LEARNING in said)
    assert ("fitted, without steps of learning, 18 images, " in str(found)) == (not given["steps"])


@pytest.mark.parametrize("given", [{"keep": 2}, {"minutes": -1}, {"steps": -1}, {"seed": 0.5}])
def test_nothing_begins_before_the_numbers_are_checked(trained: Any, given: Any) -> None:
    images = (pytest.fail("images are read") for _ in range(1))
    with pytest.raises(bp.PruneError):
        bp.compress(trained[0], images, **given, phase=lambda _: pytest.fail("begun"))


def test_one_image_is_one_image(trained: Any) -> None:
    model, x, _, _ = trained
    lines = str(bp.compress(model, x[:2], steps=0)).splitlines()
    assert lines[2].startswith("on 1 held-out image the class is") and ", 1 image, " in lines[3]


def test_a_target_is_reached(trained: Any) -> None:
    model, x, images, classes = trained
    found = bp.compress(model, x[:100], target={"macs": 0.3}, steps=60, batch_size=32)
    before, after = found.plan.before, found.plan.after
    assert 0.29 * before.macs < after.macs <= 0.3 * before.macs
    assert sum(p.numel() for p in found.model.parameters()) == after.params
    assert "macs: at most" in str(found.plan)
    assert accuracy(found.model, images, classes) > 0.8
    with pytest.raises(bp.PruneError, match=r"keep \(=0.5\) and target"):
        bp.compress(model, x[:100], 0.5, target={"macs": 0.3})


def test_minutes_decide_how_many_steps_there_are(trained: Any, monkeypatch: Any) -> None:
    model, x, _, _ = trained
    paces = {torch.float32: 0.5, torch.bfloat16: 0.25}
    monkeypatch.setattr(PACE, "seconds_a_step", lambda *given: paces[given[-1].dtype])
    monkeypatch.setattr(COMPRESS.time, "perf_counter", lambda: 3.0)
    how = bp.compress(model, x[:40], minutes=0.05, learning_rate=0.01).how
    assert (how.steps, how.batch_size, how.dtype) == (12, 16, torch.bfloat16)
    given = ("steps", "batch_size", "learning_rate", "dtype", "seed")
    again = bp.compress(model, x[:40], **{name: getattr(how, name) for name in given}).model
    first = bp.compress(model, x[:40], minutes=0.05, learning_rate=0.01).model
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    small = {"dtype": torch.bfloat16, "batch_size": 2}
    how = bp.compress(model, x[:40], minutes=0.6, **small).how
    assert (how.steps, how.batch_size) == (144 - 4 * 10, 2)
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
        model, x, 0.5, steps=150, mixing_alpha=0.0, progress=lambda *at: heard.append(at[2])
    )
    assert found.agreement.kind == "relative error"
    assert heard[-1] < 0.5 * heard[-150]
    own = bp.compress(
        model, x, steps=20, **once, distance=lambda y, wanted: (y - wanted).abs().mean()
    )
    assert own.agreement.value < 0.5


@pytest.mark.parametrize("momentum", [1e-3, None])
def test_statistics_are_of_the_last_steps_whatever_a_norms_momentum(
    trained: Any, momentum: float | None
) -> None:
    model, x, _, _ = trained
    slow = copy.deepcopy(model)
    for norm in batch_norms(slow):
        norm.momentum = momentum
    options = {"steps": 5, "batch_size": 16, "dtype": torch.float32}
    wanted, found = (bp.compress(each, x[:20], 0.4, **options).model for each in (model, slow))
    assert {norm.momentum for norm in batch_norms(found)} == {momentum}
    torch.testing.assert_close(found.state_dict(), wanted.state_dict())


def test_a_seed_decides_what_others_draw_and_their_generator_stays(
    trained: Any, monkeypatch: Any
) -> None:
    model, x, _, _ = trained
    monkeypatch.setattr(COMPRESS, "DTYPES", (torch.float32, torch.float32))

    def jitter(images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images) + 0.1 * random.random()

    def small(dtype: torch.dtype | None) -> dict[str, Tensor]:
        options = {"steps": 2, "transform": jitter, "dtype": dtype, "learning_rate": 0.01}
        return bp.compress(model, x[:20], **options).model.state_dict()

    first = small(None)  # a copy learns before, to see how fast it goes
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate()
    again = small(torch.float32)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_gradients_are_off(mode: Any) -> None:
    torch.manual_seed(0)
    net = vgg((4, 4), classes=3)
    nn.init.normal_(net[-1].weight, std=30.0)  # sure of its classes
    with mode():
        images = torch.randn(8, 3, 8, 8)
        options: Any = dict(steps=1, learning_rate=1e-3, dtype=torch.float32)
        small = bp.compress(net, images, batch_size=4, **options).model
        assert not torch.is_grad_enabled()
    assert small(torch.randn(2, 3, 8, 8)).requires_grad


def test_a_parameter_of_integers_stays() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = vgg((4, 4), classes=3)
            self.numbers = nn.Parameter(torch.arange(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x) + self.numbers
            return scores

    torch.manual_seed(0)
    net = Numbered().eval()
    student = Student(
        fitted_start(net, bp.plan(net, torch.randn(2, 3, 8, 8)), torch.randn(4, 3, 8, 8))
    )
    assert {name for name, p in student.model.named_parameters() if not p.requires_grad} == {
        *("numbers", "net.12.weight", "net.12.bias")
    }
    assert torch.equal(student.folded().numbers, torch.arange(3))


def test_it_is_ready_to_be_used_and_a_model_in_training_stays_so(trained: Any) -> None:
    model, x = copy.deepcopy(trained[0]).train(), trained[1].double()
    found = bp.compress(model, x[:20], steps=1)
    assert not any(module.training for module in found.model.modules())
    assert all(module.training for module in model.modules())


@dataclass
class Scores:
    """What some libraries return in place of a tuple."""

    scores: Tensor


@pytest.mark.filterwarnings("ignore:images")
@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (lambda y: Scores(y), "top-1"),
        (lambda y: y[:, :1], "relative error"),  # of one number the largest is always the same
        (lambda y: y.sum(), "relative error"),
    ],
)
def test_outputs_of_many_kinds_are_judged(last: Any, kind: str) -> None:
    torch.manual_seed(0)
    net = Net(lambda self, x: last(self.body(x)), body=vgg())
    found = bp.compress(
        net, torch.randn(30, 3, 8, 8), steps=1, mixing_alpha=0.0, dtype=torch.float32
    )
    assert found.agreement.kind == kind and found.agreement.images == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(lambda self, x: self.body(x).argmax(1), body=vgg()), "no tensor of floats"),
        (Net(lambda self, x: self.body(x) / 0, body=vgg()), "NaN or infinity"),
        (vgg().half(), "weight is of torch.float16"),
        (print, "must be a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_matched_is_refused(model: Any, message: str) -> None:
    with pytest.raises(bp.PruneError, match=message):
        bp.compress(model, torch.randn(8, 3, 8, 8), steps=1)


def test_recurrent_layers_learn_as_cudnn_wants_it_without_dropout(monkeypatch: Any) -> None:
    seen: list[tuple[bool, float]] = []
    forward = nn.LSTM.forward

    def noted(self: nn.LSTM, *given: Any) -> Any:
        seen.append((self.training, self.dropout))
        return forward(self, *given)

    net = Net(
        lambda self, x: self.fc(self.lstm(self.first(x))[0][:, -1]),
        first=nn.Linear(3, 8),
        lstm=nn.LSTM(8, 8, 2, batch_first=True, dropout=0.5),
        fc=nn.Linear(8, 4),
    )
    net, x = net.eval(), torch.randn(8, 5, 3)
    student = Student(fitted_start(net, bp.plan(net, x), x))
    monkeypatch.setattr(nn.LSTM, "forward", noted)
    learn(student, net, x, Learning(steps=1, batch_size=8))
    assert seen == [(False, 0.5), (False, 0.5), (True, 0.0)]  # the dense model's, the student's
    lstm: Any = student.model.get_submodule("lstm")
    assert (lstm.training, lstm.dropout) == (False, 0.5)


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_start_takes_few_passes_of_a_part_of_large_images(
    blocks: int, monkeypatch: Any
) -> None:
    sizes: list[int] = []
    forward = nn.Conv2d.forward

    def noted(self: nn.Conv2d, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(self, x)

    model = VGG([[8] * blocks, [12]]).eval()
    x = torch.randn(40, 3, 8, 8)
    planned = bp.plan(model, x[:2])
    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    monkeypatch.setattr(START, "LARGEST", 1000)
    fitted_start(model, planned, x)
    assert max(sizes) == START.LEAST
    assert sizes.count(START.LEAST) <= 4 * (blocks + 1)  # to choose, to fit, for statistics


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.randn(8, 3, 8, 8), {"steps": 1, "minutes": 1}, "give one of them"),
        (torch.randn(8, 3, 8, 8), {"steps": -1}, r"steps \(=-1\) must be a whole number"),
        (torch.randn(8, 3, 8, 8), {"minutes": -1}, r"minutes \(=-1\) must be positive"),
        (torch.randn(8, 3, 8, 8), {"batch_size": 1}, r"batch_size \(=1\)"),
        (torch.randn(8, 3, 8, 8), {"dtype": torch.float16}, r"dtype \(=torch.float16\)"),
        (torch.randn(8, 3, 8, 8), {"mixing_alpha": -1}, r"mixing_alpha \(=-1\)"),
        (torch.randn(8, 3, 8, 8), {"exclude": LAYERS}, "nothing"),
        (torch.randn(8, 3, 8, 8), {"keep": 1.0}, r"keep \(=1.0\): no channel would go"),
        (torch.randn(8, 1, 8, 8), {}, "channels"),
        (torch.randn(8, 3, 8, 8), {"seed": -1}, r"seed \(=-1\)"),
        (torch.randn(8, 3, 8, 8), {"transform": lambda x: None}, "transform returned a NoneType"),
        (torch.randn(8, 3, 8, 8), {"transform": lambda x: x.byte()}, "transform .* torch.uint8"),
        (
            torch.randn(8, 3, 8, 8),
            {"transform": lambda x: x[:, :1]},
            r"transform made \(2, 1, 8, 8\)",
        ),
        (torch.randn(8, 3, 8, 8), {"distance": lambda y, u: (y - u).sum(1)}, r"a shape \(2,\)"),
        (torch.randn(8, 3, 8, 8), {"distance": lambda y, u: 1.0}, "distance returned a float"),
        (torch.randn(8, 3, 8, 8), {"distance": lambda y, u: u.mean()}, "no gradient"),
    ],
)
def test_bad_input_is_told_in_one_line(
    images: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(bp.PruneError, match=message) as caught:
        bp.compress(vgg(), images, **options)
    assert "\n" not in str(caught.value)
