"""Feature matching: the injected gradients against those of a loss that is spelled out."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from models import Net, relative, resnet, scramble, vgg
from random_networks import Case, attached, cases, seeded
from torch import Tensor, nn
from two_paths import X, blended_of, both_paths, chain, gradients

import branchprune as bp
from branchprune.blending.feature_matching import mismatch
from branchprune.blending.projections import EndPiece, Expand


def spelled_out(blended: bp.Blended, alphas: tuple[float, float]) -> tuple[Tensor, list[Tensor]]:
    """Compute `chain` and each end's mismatch."""
    output, pairs = both_paths(blended, alphas)
    wides = [wide.detach() for _, wide in pairs]
    missed = [(b - u).square().sum() for (b, _), u in zip(pairs, wides, strict=True)]
    return output, [m / u.square().sum() for m, u in zip(missed, wides, strict=True)]


def check(expected: list[Tensor], blended: bp.Blended, loss: Tensor) -> None:
    found = gradients(loss, blended)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for (name, _), a, b in zip(blended.named_parameters(), expected, found, strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * largest, name


def test_the_gradient_is_that_of_the_term() -> None:
    blended = blended_of(chain(), matching=0.3)
    blended.alpha = {"0": 0.25, "4": 0.5}
    y, terms = spelled_out(blended, (0.25, 0.5))
    term = 0.3 * (terms[0] + terms[1]) / 2
    found = blended(X)
    assert relative(y, found) < 1e-12
    assert float(blended.matching_loss) == pytest.approx(float(term.detach()), rel=1e-5)
    assert blended.matching_loss.grad_fn is None
    alone = gradients(term, blended)
    assert sum(float(g.abs().sum()) > 0 for g in alone) >= 8
    check(gradients(y.square().sum() + term, blended), blended, found.square().sum())


def test_the_loss_is_not_scaled_with() -> None:
    """Scaling the loss scales its own gradient alone."""
    blended = blended_of(chain(), matching=0.3)
    blended.alpha = 0.5
    y, terms = spelled_out(blended, (0.5, 0.5))
    expected = gradients(128 * y.sum() + 0.15 * (terms[0] + terms[1]), blended)
    check(expected, blended, 128 * blended(X).sum())


def test_only_groups_between_0_and_1_are_matched() -> None:
    blended = blended_of(chain(), matching=0.3)
    for fixed in (0.0, 1.0):
        blended.alpha = {"0": 0.5, "4": fixed}
        y, terms = spelled_out(blended, (0.5, fixed))
        expected = gradients(y.sum() + 0.3 * terms[0], blended)
        check(expected, blended, blended(X).sum())
        assert float(blended.matching_loss) == pytest.approx(
            float(0.3 * terms[0].detach()), rel=1e-5
        )


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_nothing_is_matched_at_0_and_1(alpha: float) -> None:
    blended, plain = blended_of(chain(), matching=0.3), None
    blended.alpha = alpha
    plain = bp.attach(blended.model, blended.plan)
    plain.load_state_dict(blended.state_dict())
    outputs = [net.train()(X) for net in (plain, blended)]
    assert torch.equal(*outputs) and blended.matching_loss == 0
    expected = gradients(outputs[0].sum(), plain)
    assert all(
        torch.equal(a, b)
        for a, b in zip(expected, gradients(outputs[1].sum(), blended), strict=True)
    )


def test_evaluation_has_no_term() -> None:
    blended = blended_of(chain(), matching=0.3).eval()
    blended.alpha = 0.5
    plain = bp.attach(blended.model, blended.plan)
    plain.load_state_dict(blended.state_dict())
    check(gradients(plain.eval()(X).sum(), plain), blended, blended(X).sum())
    assert blended.matching_loss == 0


def test_a_tensor_that_several_layers_read_counts_once() -> None:
    """Two consumers share a B; the pull comes with either of them."""

    def run(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = m.a(x).tanh()
        return m.b(h), m.c(h)

    model = Net(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(8, 2, 1))
    blended = blended_of(model, matching=0.4)
    blended.alpha = 0.5
    [b] = [p for n, p in blended.expand.named_parameters()]
    a = blended.reduce.get_submodule("a").weights[0]

    def term() -> Tensor:
        z = blended.model.a(X)
        branch = torch.einsum("ck,nkhw->nchw", b, torch.einsum("kc,nchw->nkhw", a, z).tanh())
        wide = z.tanh().detach()
        return 0.4 * (branch - wide).square().sum() / wide.square().sum()

    for pick in ((0,), (1,), (0, 1)):
        plain = bp.attach(blended.model, blended.plan)
        plain.load_state_dict(blended.state_dict())
        own = gradients(sum(plain.train()(X)[i].sum() for i in pick), plain)
        extra = gradients(term(), blended)
        expected = [g + e for g, e in zip(own, extra, strict=True)]
        outputs = blended(X)
        check(expected, blended, sum(outputs[i].sum() for i in pick))


def test_channels_that_stay_do_not_count() -> None:
    model = Net(
        lambda m, x: m.b(m.n(torch.cat([m.a(x), m.stays(x)], 1)).relu()),
        a=nn.Conv2d(3, 8, 3),
        stays=nn.Conv2d(3, 6, 3),
        n=nn.BatchNorm2d(14),
        b=nn.Conv2d(14, 4, 3),
    )
    model = scramble(model.double())
    plan = bp.plan(model, X, exclude=["stays"])
    blended = scramble(bp.attach(model, plan, matching=1.0), seed=2).train()
    blended.alpha = 0.5
    blended(X)
    with torch.no_grad():
        z, stays = blended.model.a(X), blended.model.stays(X)
        wide = copy.deepcopy(blended.model.n)(torch.cat([z, stays], 1)).relu()[:, :8]
        narrow = torch.cat([blended.reduce.a(z), stays], 1)
        narrow = copy.deepcopy(blended.twin.n)(narrow).relu()[:, :4]
        branch = torch.einsum("ck,nkhw->nchw", blended.expand.b.weights[0], narrow)
        expected = (branch - wide).square().sum() / wide.square().sum()
    assert float(blended.matching_loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("mixing", ["group", "sample"])
def test_sampled_paths_are_matched_too(mixing: Any) -> None:
    blended = blended_of(chain(), mixing=mixing, matching=0.3)
    blended.alpha = 0.5
    blended(X).sum().backward()
    assert blended.matching_loss > 0
    end = blended.expand.get_submodule("4").weights[0]
    missing = 0
    for _ in range(20):  # even where the wide path is drawn, the branch learns
        blended.zero_grad()
        blended(X[:2]).sum().backward()
        missing += not end.grad.abs().sum()
    assert missing == 0


def test_a_wide_path_of_zeros() -> None:
    blended = blended_of(chain(), matching=0.3)
    with torch.no_grad():
        blended.model[4].weight.zero_()
        blended.model[4].bias.zero_()
    blended.alpha = 0.5
    blended(X).sum().backward()
    assert blended.matching_loss.isfinite()
    assert all(p.grad.isfinite().all() for p in blended.parameters())


def test_a_concatenation_of_groups_at_0_and_1_is_not_matched() -> None:
    """Both paths are computed there, but of no channel both count; elsewhere they do."""
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(3, 6, 3), "c": nn.Conv2d(14, 8, 3)}
    model = Net(
        lambda m, x: m.d(m.c(torch.cat([m.a(x), m.b(x)], 1).tanh()).tanh()),
        **layers,
        d=nn.Conv2d(8, 4, 1),
    )
    blended = blended_of(model, matching=0.5)
    blended.alpha = {"a": 0, "b": 1, "c": 0.5}
    blended(X).sum().backward()
    only = copy.deepcopy(blended)
    only.alpha = {"a": 0, "b": 0, "c": 0.5}
    only(X)
    assert blended.matching_loss > 0 and only.matching_loss > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    """300² is too large for float16, and bfloat16 counts no further than 256 one by one."""
    weight = torch.full((4, 2), 0.5, dtype=dtype)
    expand = Expand([EndPiece(4, 2, 1, 0)], -1, [weight])
    narrow, wide = torch.full((500, 2), 200.0, dtype=dtype), torch.full((500, 4), 300.0).to(dtype)
    term = mismatch(expand, narrow, wide, [True]).detach()
    assert term.dtype == torch.float32
    assert float(term) == pytest.approx((200 - 300) ** 2 / 300**2, rel=1e-5)


def test_copies_and_checkpoints() -> None:
    blended = blended_of(vgg(), matching=0.3)
    plain = bp.attach(blended.model, blended.plan)
    assert list(blended.state_dict()) == list(plain.state_dict())
    blended.alpha = 0.5
    for other in (copy.deepcopy(blended), pickle.loads(pickle.dumps(blended))):
        for net in (blended, other):
            net.zero_grad()
            seeded(net, X).sum().backward()
        assert other.matching_loss == blended.matching_loss > 0
        assert other.matching_loss is not blended.matching_loss
        pairs = zip(blended.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(p.grad, q.grad) for p, q in pairs)


def test_autocast() -> None:
    model = scramble(resnet())
    x = X.float()
    blended = bp.attach(model, bp.plan(model, x), matching=0.5).train()
    blended.alpha = 0.5
    blended(x)
    full = float(blended.matching_loss)
    with torch.autocast("cpu", torch.bfloat16):
        blended(x).float().sum().backward()
    assert blended.matching_loss.dtype == torch.float32
    assert float(blended.matching_loss) == pytest.approx(full, rel=0.05)
    assert all(p.grad.isfinite().all() for p in blended.parameters())


# torch 2.11 warns of what its own compiler does.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled() -> None:
    torch._dynamo.reset()
    blended = blended_of(chain(), matching=0.3)
    reference = copy.deepcopy(blended)
    blended.compile(backend="aot_eager", fullgraph=True)
    for alpha in (0.5, 0.25):
        for net in (reference, blended):
            net.alpha = alpha
            net.zero_grad()
            net(X).sum().backward()
        assert torch.allclose(reference.matching_loss, blended.matching_loss)
        for p, q in zip(reference.parameters(), blended.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, 1e-9, 1e-12)
    torch._dynamo.reset()


def test_the_branch_learns_to_be_the_wide_path() -> None:
    """With the model held fixed, training on nothing but the term reduces it; collapse is exact."""
    blended = blended_of(chain(), matching=1.0)
    blended.model.requires_grad_(False)
    blended.alpha = 0.5
    optimizer = torch.optim.Adam(blended.parameters(), 0.02)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        (0 * blended(X).sum()).backward()
        optimizer.step()
        values.append(float(blended.matching_loss))
    assert values[-1] < 0.4 * values[0]
    blended.eval().alpha = 0
    assert relative(blended(X), bp.collapse(blended)(X)) < 1e-10


@pytest.mark.parametrize("matching", [-0.1, float("nan"), float("inf"), "much", None])
def test_bad_weights(matching: Any) -> None:
    with pytest.raises(bp.PruneError, match=rf"matching \(={matching!r}\) must be a weight"):
        blended_of(chain(), matching=matching)


def test_one_path_cannot_be_matched() -> None:
    with pytest.raises(bp.PruneError, match=r"matching \(=0.1\) needs both paths"):
        blended_of(chain(), mixing="step", matching=0.1)


@settings(max_examples=20)
@given(cases())
def test_random_networks(case: Case) -> None:
    """The gradient is that of the loss and of each end's own mismatch, seen through hooks."""
    case.double().model.train()
    blended = scramble(attached(case, matching=0.7), seed=5)
    blended.alpha = 0.5
    plain = scramble(attached(case), seed=5)
    plain.alpha = 0.5
    terms: dict[str, Tensor] = {}

    def see(name: str) -> Any:
        def hook(end: Any, args: tuple[Any, ...], _: Tensor) -> None:
            if len(args) == 3 and name not in terms:
                narrow, wide, _ = args
                sizes = [piece.wide * piece.repeat for piece in end.pieces]
                pairs = zip(
                    end.forward(narrow).split(sizes, end.dim),
                    wide.detach().split(sizes, end.dim),
                    end.pieces,
                    strict=True,
                )
                live = [(x, u) for x, u, piece in pairs if piece.branch is not None]
                missed = sum((x - u).square().sum() for x, u in live)
                terms[name] = missed / sum(u.square().sum() for _, u in live)

        return hook

    for name, end in plain.expand.named_modules():
        if hasattr(end, "pieces"):
            end.register_forward_hook(see(name))
    loss = seeded(plain, case.x).square().sum()
    term = 0.7 * sum(terms.values()) / len(terms)
    expected = gradients(loss + term, plain)
    found = gradients(seeded(blended, case.x).square().sum(), blended)
    assert float(blended.matching_loss) == pytest.approx(float(term.detach()), rel=1e-5)
    largest = max(float(g.abs().max()) for g in expected)
    for a, b in zip(expected, found, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * largest


def test_the_callback_mixes_matches_and_logs() -> None:
    import pytorch_lightning
    from pytorch_lightning import Callback, Trainer
    from small_training import loader, make_module

    from branchprune.lightning import BranchPruning

    schedule = bp.Schedule((0.5, 0.25, 0.0))
    options = {"mixing": "group", "matching": 0.5, "example": torch.randn(2, 1, 8, 8)}
    pruning = BranchPruning(schedule, **options)
    logged: list[float | None] = []

    class Watch(Callback):
        seen: list[float]

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.seen = []

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.seen.append(float(pruning.blended.matching_loss))

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            value = trainer.callback_metrics.pop("loss/matching", None)
            logged.append(None if value is None else float(value))
            if any(pruning.blended.alpha.values()):
                assert logged[-1] == pytest.approx(sum(self.seen) / len(self.seen))

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[pruning, Watch()],
        log_every_n_steps=1,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(make_module(pytorch_lightning), loader(), loader(seed=1))
    assert pruning.blended.mixing == "group" and pruning.blended.matching == 0.5
    assert logged[0] > 0 and logged[1] > 0 and logged[2] == logged[1]  # not logged again
    assert pruning.collapse_error < 1e-10
    with pytest.raises(bp.PruneError, match="mixing"):
        BranchPruning(schedule, mixing="none")
    with pytest.raises(bp.PruneError, match="matching"):
        BranchPruning(schedule, matching=-1)


def test_mixing_and_matching_take_effect_when_they_are_set():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    x = torch.randn(4, 3, 8, 8)
    plan = bp.plan(net, x)
    changed = bp.attach(net, plan).train()
    made = bp.attach(net, plan, mixing="group", matching=0.3).train()
    changed.alpha = made.alpha = 0.5
    changed(x)  # whose code is kept
    changed.mixing, changed.matching = "group", 0.3
    for blended in (changed, made):
        torch.manual_seed(3)
        blended(x).square().sum().backward()
    assert changed.matching_loss == made.matching_loss > 0
    for a, b in zip(changed.parameters(), made.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    changed.matching, changed.mixing = 0.0, "step"
    with pytest.raises(bp.PruneError, match="matching"):
        changed.matching = 0.3
    with pytest.raises(bp.PruneError, match=r"mixing \(='mean'\)"):
        changed.mixing = "mean"
    assert (changed.mixing, changed.matching) == ("step", 0.0)
