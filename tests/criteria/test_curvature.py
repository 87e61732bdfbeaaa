"""Criteria by the curvature of a loss, against derivatives that are spelled out."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from models import scramble
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import branchprune as bp
from branchprune.criteria.curvature import Saliency

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(6, 2, 5, 5, generator=GENERATOR, dtype=torch.double)
Y = torch.randint(3, (6,), generator=GENERATOR)


class Classifier(nn.Sequential):
    """A smooth net with a norm, whose second derivatives can be computed one by one."""

    def __init__(self) -> None:
        layers = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(1)
        super().__init__(*layers, nn.Flatten(), nn.Linear(6, 3))


@pytest.fixture
def model() -> Classifier:
    return scramble(Classifier().double()).eval()


def each_alone(model: nn.Module) -> Iterator[Tensor]:
    yield from (F.cross_entropy(model(X[i : i + 1]), Y[i : i + 1]) for i in range(len(X)))


def of_channels(model: nn.Module, h: dict[str, Tensor]) -> Tensor:
    """Return ½ Σ h w² of what makes each of the six channels."""
    weights = dict(model.named_parameters())
    names = "0.weight", "0.bias", "1.weight", "1.bias"
    terms = [(h[n] * weights[n].detach() ** 2).reshape(6, -1).sum(1) for n in names]
    return torch.stack(terms).sum(0) / 2


def scores_of(model: nn.Module, criterion: Saliency, example: Tensor = X[:1]) -> list[Tensor]:
    """Return the scores of each group that can shrink."""
    seen: list[Tensor] = []

    def watch(group: bp.GroupWeights) -> Tensor:
        seen.append(criterion(group))
        return seen[-1]

    watch.graded = criterion.graded  # type: ignore[attr-defined]
    bp.attach(model, bp.plan(model, example), watch)
    return seen


def test_fisher_is_the_mean_of_squared_gradients(model: Classifier) -> None:
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for loss in each_alone(model):
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            squares[name] += parameter.grad**2 / len(X)
    model.zero_grad()
    criterion = bp.fisher(model, each_alone(model))
    assert torch.allclose(scores_of(model, criterion)[0], of_channels(model, squares))
    assert all(each.grad is None for each in model.parameters())


def test_losses_of_one_pass_are_taken_together(model: Classifier) -> None:
    alone = scores_of(model, bp.fisher(model, each_alone(model)))[0]
    at_once = F.cross_entropy(model(X), Y, reduction="none")
    assert torch.allclose(scores_of(model, bp.fisher(model, at_once))[0], alone)


def test_squares_of_small_gradients_of_halves_are_not_0(model: Classifier) -> None:
    found = []
    for each, x in ((model, X), (copy.deepcopy(model).half(), X.half())):
        criterion = bp.fisher(each, [1e-3 * F.cross_entropy(each(x), Y)])
        found.append(criterion.graded.get_submodule("0").weight.grad)
    wide, half = found
    assert isinstance(wide, Tensor) and wide.max() < 1e-7
    assert isinstance(half, Tensor) and (half - wide).abs().max() < 0.1 * wide.max()


def test_obd_nears_the_hessian_of_each_row(model: Classifier) -> None:
    def loss() -> Tensor:
        return F.cross_entropy(model(X), Y)

    expected = torch.zeros(6, dtype=torch.double)
    for name, parameter in list(model.named_parameters())[:4]:
        [first] = torch.autograd.grad(loss(), [parameter], create_graph=True)
        rows = [torch.autograd.grad(g, parameter, retain_graph=True)[0] for g in first.flatten()]
        hessian = torch.stack(rows).view(6, -1, 6, parameter[0].numel())
        for row, w in enumerate(parameter.detach().reshape(6, -1)):
            expected[row] += w @ hessian[row, :, row] @ w / 2
        assert "weight" in name or parameter.dim() == 1
    torch.manual_seed(0)
    found = scores_of(model, bp.obd(model, [loss()], draws=400))[0]
    assert torch.allclose(found, expected, atol=0.15 * float(expected.abs().max()))


@pytest.mark.parametrize("groups", [1, 2])
def test_obd_nears_the_hessian_of_each_channel_of_a_transposed_layer(groups: int) -> None:
    up = nn.ConvTranspose2d(2, 6, 2, groups=groups)
    model = nn.Sequential(up, nn.Tanh(), nn.Conv2d(6, 3, 6), nn.Flatten()).double()
    weight, bias = up.weight, up.bias
    assert bias is not None

    def loss() -> Tensor:
        return F.cross_entropy(model(X), Y)

    [first] = torch.autograd.grad(loss(), [weight], create_graph=True)
    columns = [torch.autograd.grad(g, weight, retain_graph=True)[0] for g in first.flatten()]
    hessian = torch.stack([column.flatten() for column in columns])
    [slope] = torch.autograd.grad(loss(), [bias], create_graph=True)
    expected = torch.zeros(6, dtype=torch.double)
    for channel in range(6):
        own = torch.zeros_like(weight)  # 2 inputs, and outputs of each group
        part = slice(None) if groups == 1 else slice(channel // 3, channel // 3 + 1)
        own[part, channel % (6 // groups)] = weight.detach()[part, channel % (6 // groups)]
        expected[channel] = own.flatten() @ hessian @ own.flatten() / 2
        [of_bias] = torch.autograd.grad(slope[channel], [bias], retain_graph=True)
        expected[channel] += of_bias[channel] * bias.detach()[channel] ** 2 / 2
    torch.manual_seed(0)
    found = scores_of(model, bp.obd(model, [loss()], draws=400))[0]
    assert torch.allclose(found, expected, atol=0.15 * float(expected.abs().max()))


def test_what_wraps_the_model_is_told_at_once(model: Classifier) -> None:
    for criterion in (bp.fisher, bp.obd):
        with pytest.raises(bp.PruneError, match=r"wrapped in DataParallel: pass model\.module"):
            criterion(nn.DataParallel(model), each_alone(model))


def test_obd_says_nearly_the_same_with_other_signs() -> None:
    """Of a net that has learned to tell bright quadrants apart; ranks of channels, two seeds."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4)),
    )
    labels = torch.arange(128) % 4
    images = torch.randn(128, 1, 8, 8)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        parts = zip(images.split(16), labels.split(16), strict=True)
        criterion = bp.obd(model, (F.cross_entropy(model(x), y) for x, y in parts))
        found.append(scores_of(model, criterion, images[:1]))
    for one, other in zip(*found, strict=True):
        ranks = torch.stack([one, other]).argsort(1).argsort(1).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.7


def test_obd_of_a_sum_of_squares_is_exact_with_one_draw() -> None:
    """Where the Hessian is a diagonal, the signs cancel: ½ h w² is what the loss loses."""
    layer = nn.Linear(3, 4, bias=False).double()
    model = nn.Sequential(layer, nn.Linear(4, 2).double()).eval()
    h = torch.rand(4, 3, generator=GENERATOR, dtype=torch.double)
    criterion = bp.obd(model, [(h * layer.weight**2).sum() / 2 for _ in range(2)], draws=1)
    plan = bp.plan(model, torch.randn(2, 3, dtype=torch.double))
    kept = (h * layer.weight.detach() ** 2).sum(1).topk(2).indices.tolist()
    found = bp.attach(model, plan, criterion).reduce.get_submodule("0").weights[0].argmax(1)
    assert sorted(found.tolist()) == sorted(kept)


def test_scaling_a_channel_and_its_reader_leaves_both_as_they_are(model: Classifier) -> None:
    """The norm's scale and shift grow, what reads them shrinks; tanh is left out for that."""
    model[2] = nn.ReLU()
    other, factor = (
        scramble(Classifier().double()).eval(),
        torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0, 7.0]),
    )
    other[2] = nn.ReLU()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in (other[1].weight, other[1].bias):
            parameter *= factor
        other[5].weight /= factor  # type: ignore[operator]
    found = [scores_of(each, bp.fisher(each, each_alone(each)))[0] for each in (model, other)]
    assert torch.allclose(*found)


def attended(y: Tensor) -> Tensor:
    """Return a loss by an operation that has no second derivative."""
    tokens = y[:, None, None].expand(-1, 1, 4, -1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found: Tensor = F.scaled_dot_product_attention(tokens, tokens, tokens)
    return found.square().sum()


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda m: [], "losses must be some scalars that the model has made: there are none"),
        (lambda m: [m(X)], r"losses\[0\] \(shape \(6, 3\)\) must be a scalar that depends"),
        (lambda m: [m(X).sum(), torch.tensor(1.0)], r"losses\[1\] \(shape \(\)\) must be a scalar"),
        (lambda m: [3.0], r"losses\[0\] \(float\) must be a scalar"),
        (lambda m: m(X).sum(), r"losses \(a Tensor\) must be several scalars, such as \[loss\]"),
        (lambda m: None, r"losses \(a NoneType\) must be several scalars"),
        (lambda m: [m(X).sum(), m(X).sum() * torch.nan], r"losses\[1\] \(=nan\) must be finite"),
        (lambda m: [-m(X).sum() * torch.inf], r"losses\[0\] \(=-?inf\) must be finite"),
        (lambda m: [attended(m(X))], r"losses\[0\]: derivative for .* is not implemented"),
    ],
)
def test_what_is_wrong_with_a_loss_is_told(model: Classifier, losses: object, message: str) -> None:
    assert callable(losses)
    with pytest.raises(bp.PruneError, match=message):
        bp.obd(model, losses(model))


def test_a_loss_that_does_not_see_a_group_is_told(model: Classifier) -> None:
    criterion = bp.fisher(model, [model[5].bias.sum()])  # type: ignore[union-attr]
    with pytest.raises(bp.PruneError, match="init 'fisher' needs gradients of 0: let the losses"):
        bp.attach(model, bp.plan(model, X[:1]), criterion)


def test_it_is_of_the_model_that_it_was_made_of(model: Classifier) -> None:
    criterion = bp.fisher(model, each_alone(model))
    assert len(repr(criterion)) < 100
    other = scramble(nn.Sequential(*[*model][:5], nn.Linear(6, 4)).double()).eval()
    message = r"init \(=Saliency.*\) was made of another model: 5.weight is of shape \(4, 6\) here"
    with pytest.raises(bp.PruneError, match=message):
        bp.attach(other, bp.plan(other, X[:1]), criterion)
    shorter = nn.Sequential(*[*model][:1], nn.Tanh(), nn.Conv2d(6, 2, 3)).double()
    message = r"2\.weight is of shape \(2, 6, 3, 3\) here, and missing there"
    with pytest.raises(bp.PruneError, match=message):
        bp.attach(shorter, bp.plan(shorter, X[:1]), criterion)
    with pytest.raises(
        bp.PruneError, match=r"criterion \(=.*\) was made of another model: 5\.weight"
    ):
        bp.plan(other, X[:1], target={"macs": 0.5}, batches=[X], criterion=criterion)


@pytest.mark.parametrize("draws", [0, 1.5, True])
def test_draws_are_a_whole_number(model: Classifier, draws: object) -> None:
    with pytest.raises(bp.PruneError, match="draws"):
        bp.obd(model, each_alone(model), draws=draws)  # type: ignore[arg-type]
