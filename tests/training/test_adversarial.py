"""The adversarial task: each loss moves its own part, whatever α is, and the metric is honest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.data import Digits
from branchprune.lightning import AdversarialTask, BranchPruning, LossGuard
from branchprune.models import DCGAN, Discriminator, Generator, UNet
from branchprune.training.adversarial import sliced_wasserstein

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def gan() -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(6, (8,), (8,))


def loader(images: Tensor = IMAGES, batch_size: int = 8) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size)


def trainer(epochs: int, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


class Step(Callback):
    """Seeds the noise of a step, and keeps its gradients."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.manual_seed(3)

    def on_train_batch_end(self, trainer: Trainer, task: AdversarialTask, *_: Any) -> None:
        self.gradients = {name: p.grad for name, p in task.model.named_parameters()}


def one_step(model: nn.Module, **options: Any) -> dict[str, Tensor | None]:
    """Train for a step and return the gradients."""
    step = Step()
    trainer(1, step).fit(AdversarialTask(model, **options), loader(IMAGES[:8]), loader())
    return step.gradients


@pytest.mark.parametrize(
    "alpha", [None, 1.0, 0.5, 0.0, {"generator": 0.0}, {"generator": 0.0, "discriminator": 0.5}]
)
def test_each_loss_moves_its_own_part(alpha: Any) -> None:
    """Against the textbook: the losses written out, and generated images detached."""
    model: nn.Module = gan()
    if alpha is not None:
        model = bp.attach(model, bp.plan(model, IMAGES[:2]), init="random")
        model.alpha = alpha
    before = copy.deepcopy(model).train()
    found = one_step(model, real_label=0.9)

    torch.manual_seed(3)
    _, fake, real = before(IMAGES[:8])
    says, no = real.sigmoid(), 1 - real.sigmoid()
    discriminator = -(0.9 * says.log() + 0.1 * no.log()).mean() - (1 - fake.sigmoid()).log().mean()
    generator = -fake.sigmoid().log().mean()
    for name, parameter in before.named_parameters():
        loss = generator if "generator" in name.split(".")[:2] else discriminator
        [expected] = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
        grad, after = found[name], model.get_parameter(name)
        if expected is None:
            assert grad is None and torch.equal(after, parameter)
        else:
            assert grad is not None and torch.allclose(grad, expected, rtol=1e-4, atol=1e-7)
            assert not torch.equal(after, parameter)


def test_unused_paths_are_left_alone() -> None:
    model = gan()
    blended = bp.attach(model, bp.plan(model, IMAGES[:2]))
    grads = one_step(blended)
    assert all(
        (grad is None) == (name.partition(".")[0] != "model") for name, grad in grads.items()
    )
    blended.alpha = 0
    grads = one_step(blended)
    norm = "model.generator.layers.1"
    idle = {name for name, grad in grads.items() if grad is None}
    assert idle == {f"{norm}.weight", f"{norm}.bias"}


def test_parts_of_a_blended_model() -> None:
    model = gan()
    blended = bp.attach(model, bp.plan(model, IMAGES[:2]))
    parts = AdversarialTask(blended).parts()
    names = {id(p): name for name, p in blended.named_parameters()}
    assert sum(map(len, parts.values())) == len(names)
    for part, parameters in parts.items():
        found = {names[id(p)] for p in parameters}
        assert {name.split(".")[1] for name in found} == {part}
        assert {name.split(".")[0] for name in found} >= {"model", "reduce", "expand"}


@pytest.mark.parametrize("order", [None, ["generator", "discriminator"]])
def test_pruning_with_the_callback(order: list[str] | None) -> None:
    schedule = bp.Schedule((0.5, 0.0), final_hold=2, order=order)
    pruning = BranchPruning(schedule, keep=0.5, monitor="metric/val_swd_branch")
    pruning.example = IMAGES[:1]
    task = AdversarialTask(gan())
    run = trainer(schedule.max_epochs, pruning)
    run.fit(task, loader(), loader())
    assert isinstance(task.model, DCGAN)
    assert [p.shape for p in task.model.parameters()] == [
        p.shape for p in DCGAN(6, (4,), (4,)).parameters()
    ]
    assert pruning.collapse_error is not None and pruning.collapse_error < 1e-10
    logged = run.callback_metrics
    for name in ("metric/val_swd", "loss/val", "loss/val_generator", "loss/val_discriminator"):
        assert torch.equal(logged[name], logged[f"{name}_branch"])
    [again] = trainer(1).validate(task, loader(), verbose=False)
    assert again["metric/val_swd"] == pytest.approx(float(logged["metric/val_swd"]), rel=1e-4)


def test_metric_is_that_of_all_images_and_always_the_same() -> None:
    class Watch(Callback):
        def on_test_batch_start(self, *_: Any) -> None:
            self.before = torch.get_rng_state()

        def on_test_batch_end(self, *_: Any) -> None:
            assert torch.equal(self.before, torch.get_rng_state())

    task = AdversarialTask(gan(), projections=64, seed=5)
    [[first], [second]] = [trainer(1, Watch()).test(task, loader(), verbose=False) for _ in "ab"]
    assert first == second
    batches = []
    for i in range(2):
        torch.manual_seed(5 + i)
        batches.append(task.model.eval().generator(torch.randn(8, 6, 1, 1)))
    expected = sliced_wasserstein(torch.cat(batches), IMAGES, 64, 5)
    assert first["metric/test_swd"] == pytest.approx(float(expected))
    total = first["loss/test_generator"] + first["loss/test_discriminator"]
    assert first["loss/test"] == pytest.approx(total)


def test_distance_is_the_best_assignment_along_each_direction() -> None:
    a, b = torch.rand(9, 2, 3, 2), torch.rand(9, 2, 3, 2)
    directions = torch.randn(12, 5, generator=torch.Generator().manual_seed(4))
    costs = []
    for direction in directions.T / directions.norm(dim=0)[:, None]:
        pairs = (a.flatten(1) @ direction)[:, None] - (b.flatten(1) @ direction)
        rows, columns = linear_sum_assignment(pairs.square())
        costs.append(pairs[rows, columns].square().mean())
    expected = torch.stack(costs).mean().sqrt()
    assert float(sliced_wasserstein(a, b, 5, 4)) == pytest.approx(float(expected), rel=1e-5)


def test_distance_of_shifted_images_is_the_shift() -> None:
    a = torch.rand(20, 1, 8, 8)
    assert sliced_wasserstein(a, a[torch.randperm(20)]) == 0
    assert float(sliced_wasserstein(a, a + 0.3, 4096)) == pytest.approx(0.3, rel=0.05)
    with pytest.raises(bp.PruneError, match=r"a \(shape \(20, 1, 8, 8\)\) and b \(shape \(19, "):
        sliced_wasserstein(a, a[1:])


def test_it_learns() -> None:
    """Images that are bright on the left."""
    torch.manual_seed(0)
    images = 0.05 + 0.1 * torch.rand(128, 1, 8, 8)
    images[..., :4] += 0.8
    task = AdversarialTask(gan(), learning_rate=5e-3, real_label=0.9)
    [before] = trainer(1).validate(task, loader(images), verbose=False)
    run = trainer(10, check_val_every_n_epoch=10)
    run.fit(task, loader(images, 16), loader(images))
    assert run.callback_metrics["metric/val_swd"] < before["metric/val_swd"] / 2


@pytest.mark.parametrize("cosine", [True, False])
def test_learning_rates(cosine: bool) -> None:
    rates = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    trainer(2, Watch()).fit(
        AdversarialTask(gan(), learning_rate=0.01, cosine=cosine), loader(), loader()
    )
    second = pytest.approx(0.005 if cosine else 0.01)
    assert rates == [[0.01, 0.01], [second, second]]


def test_each_part_has_an_adam_of_its_own() -> None:
    task = AdversarialTask(gan(), learning_rate=0.01, beta1=0.3, cosine=False)
    optimizers, parts = task.configure_optimizers(), task.parts()
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.Adam] * 2
    for optimizer, parameters in zip(optimizers, parts.values(), strict=True):
        [group] = optimizer.param_groups
        assert [*map(id, group["params"])] == [*map(id, parameters)]
        assert (group["lr"], group["betas"]) == (0.01, (0.3, 0.999))


def test_images_of_a_validation_that_broke_off_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = AdversarialTask(gan())
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    for batch in range(2):
        task.validation_step([IMAGES], batch)
    task.validation_step([IMAGES[:4]], 0)
    assert [len(real) for _, real in task.images] == [4]


def test_a_loss_that_is_not_a_number_changes_no_weight() -> None:
    class Breaks(AdversarialTask):
        def losses(self, generated: Tensor, real: Tensor) -> Any:
            losses = super().losses(generated, real)
            return losses | {"discriminator": losses["discriminator"] * float("nan")}

    task = Breaks(gan())
    with pytest.raises(bp.PruneError, match="the loss is nan at step 0"):
        trainer(1, LossGuard()).fit(task, loader(), loader())
    assert all(
        torch.equal(a, b) for a, b in zip(task.parameters(), gan().parameters(), strict=True)
    )


class Third(DCGAN):
    def __init__(self) -> None:
        super().__init__(6, (8,), (8,))
        self.encoder = nn.Linear(2, 2)


def test_parameters_of_neither_part() -> None:
    with pytest.raises(bp.PruneError, match=r"encoder\.weight is in neither of generator and"):
        AdversarialTask(Third()).parts()
    alone = nn.ModuleDict({"generator": Generator(4, (8,))})
    with pytest.raises(bp.PruneError, match="no parameters in 'discriminator'"):
        AdversarialTask(alone).parts()


@pytest.mark.parametrize(
    ("option", "value"),
    [("learning_rate", 0.0), ("real_label", 0.0), ("real_label", 1.1), ("projections", 0)],
)
def test_arguments_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(bp.PruneError, match=rf"{option} \(={value}\) must be"):
        AdversarialTask(gan(), **{option: value})


def test_models_and_data_refuse_bad_arguments() -> None:
    for make in (Generator, Discriminator):
        with pytest.raises(bp.PruneError, match=r"widths \(=\[\]\) must name"):
            make(widths=())
    with pytest.raises(bp.PruneError, match="must be equally many"):
        DCGAN(4, (8, 4), (8,))
    with pytest.raises(bp.PruneError, match=r"widths \(=\[8\]\) must name at least two"):
        UNet((8,))
    with pytest.raises(bp.PruneError, match=r"noise \(=-1\) must not be negative"):
        Digits(noise=-1)


def test_sizes() -> None:
    for widths, size in (((8,), 8), ((8, 6), 16), ((8, 6, 4), 32)):
        model = DCGAN(5, widths, widths, channels=3)
        images, fake, real = model(torch.rand(2, 3, size, size), torch.randn(4, 5, 1, 1))
        assert images.shape == (4, 3, size, size)
        assert fake.shape == (4, 1) and real.shape == (2, 1)
        assert images.min() >= 0 and images.max() <= 1
    assert UNet((4, 6, 8), 3, 2, sigmoid=False)(torch.rand(2, 3, 16, 12)).shape == (2, 2, 16, 12)


def test_noise_on_digits_is_on_the_images_alone() -> None:
    clean, noisy = Digits(reconstruct=True), Digits(reconstruct=True, noise=0.5)
    for data in (clean, noisy):
        data.setup()
    for split in ("train", "val", "test"):
        images, targets = noisy.splits[split].tensors
        assert torch.equal(targets, clean.splits[split].tensors[0])
        assert float((images - targets).std()) == pytest.approx(0.5, rel=0.02)
