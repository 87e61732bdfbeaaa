"""Mixup, against formulas written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import Losses, distance, loader, network, numbered, randomised, trainer

import branchprune as bp
from branchprune.lightning import ClassificationTask
from branchprune.training.mixup import Mixup


def test_each_example_is_mixed_with_its_partner() -> None:
    x = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    mixed = Mixup(0.3, torch.tensor([2, 0, 1, 3]))(x)
    for i, j in enumerate((2, 0, 1, 3)):
        assert torch.allclose(mixed[i], 0.3 * x[i] + 0.7 * x[j])
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_shares_are_of_the_beta_distribution_and_partners_are_all() -> None:
    torch.manual_seed(0)
    drawn = [Mixup.draw(0.4, torch.zeros(5, 1)) for _ in range(4000)]
    shares = torch.tensor([mix.share for mix in drawn])
    assert all(sorted(mix.partner.tolist()) == [0, 1, 2, 3, 4] for mix in drawn)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(0.25 / 1.8, abs=0.01)  # 1 / (4 (2 α + 1))
    assert len({tuple(mix.partner.tolist()) for mix in drawn}) == 120


@pytest.mark.parametrize(("weight", "remember"), [(0.0, None), (0.6, None), (0.6, 1)])
def test_training_loss_is_that_of_the_mixture(
    weight: float, remember: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's logits are mixed, those of the images as they are; nothing else is."""
    share = 0.7

    def drawn(alpha: float, batch: torch.Tensor) -> Mixup:
        assert alpha == 0.4
        return Mixup(share, torch.arange(len(batch)).roll(1))

    monkeypatch.setattr(Mixup, "draw", drawn)
    options: dict[str, Any] = {"teacher_weight": weight, "remember": remember}
    task = ClassificationTask(randomised(1), mixup=0.4, learning_rate=1e-30, **options)
    teacher = randomised(1).eval()
    task.model = student = randomised(2)
    losses = Losses()
    run = trainer(2, losses)
    run.fit(task, numbered(), loader())
    expected = []
    with torch.no_grad():
        for x, y in [*loader(), *loader()]:
            n = len(x)
            mixed = torch.stack([share * x[i] + (1 - share) * x[i - 1] for i in range(n)])
            logits, told = student.train()(mixed), teacher(x)
            told = torch.stack([share * told[i] + (1 - share) * told[i - 1] for i in range(n)])
            likely = logits.log_softmax(1)
            hard = -sum(
                share * likely[i, y[i]] + (1 - share) * likely[i, y[i - 1]] for i in range(n)
            )
            soft = distance(logits, told, 4.0)
            expected.append((1 - weight) * float(hard) / n + weight * soft)
    assert losses.seen == pytest.approx(expected, rel=1e-4)
    found = run.validate(task, loader(), verbose=False)[0]["loss/val"]
    with torch.no_grad():
        plain = [
            torch.nn.functional.cross_entropy(student.eval()(x), y).item() for x, y in loader()
        ]
    assert found == pytest.approx(sum(plain) / len(plain), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -0.1}, r"mixup \(=-0.1\)"),
        ({"mixup": float("nan")}, "mixup"),
        ({"mixup": 0.4, "feature_weight": 1.0}, r"feature_weight \(=1.0\)"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(bp.PruneError, match=message):
        ClassificationTask(network(), **options)  # type: ignore[arg-type]
