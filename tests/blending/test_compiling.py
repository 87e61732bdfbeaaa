"""blended.compile() and compile=True: the same numbers, compiled once."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from models import scramble
from small_training import trainer
from tiny_run import TINY, Data, Net
from torch.utils.flop_counter import FlopCounterMode

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.callbacks.training_cost import TrainingCost
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.models import VGG
from branchprune.runtimes.latency import compare_latency

pytestmark = pytest.mark.usefixtures("without_charts")

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
PLAIN = {"cpp.vec_isa_ok": False, "compile_threads": 1, "cpp_cache_precompile_headers": True}
"""Inductor's C++ without vectors, since which of them a processor has is found out by starting
processes with torch, and without processes that compile; headers are compiled once."""


class Backend:
    """Runs the graphs as they are, and counts them and their calls."""

    def __init__(self):
        self.compiled = self.called = 0

    def __call__(self, graph, _):
        self.compiled += 1

        def run(*args):
            self.called += 1
            return graph.forward(*args)

        return run


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def blended_network():
    model = scramble(VGG([[8, 8]], classes=4, in_channels=1))
    return scramble(bp.attach(model, bp.plan(model, X[:1])), seed=2)


def gradients(blended):
    return {n: p.grad for n, p in blended.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_statistics_are_those_without(training):
    blended = blended_network().train(training)
    other = copy.deepcopy(blended)
    blended.compile(backend="aot_eager", fullgraph=True)  # what eager does, and backward
    for alpha in (1, 0.7, 0.3, 0):
        outputs = []
        for net in (other, blended):
            net.alpha = alpha
            net.zero_grad()
            outputs.append(net(X))
            outputs[-1].square().sum().backward()
        assert torch.allclose(*outputs, rtol=1e-4, atol=1e-5)
        expected, found = gradients(other), gradients(blended)
        assert expected.keys() == found.keys()
        for name, grad in expected.items():
            assert torch.allclose(grad, found[name], rtol=1e-3, atol=1e-3 * grad.abs().max()), name
        for a, b in zip(other.buffers(), blended.buffers(), strict=True):
            assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_one_compilation_a_state_however_alpha_moves():
    blended, backend = blended_network().train(), Backend()
    blended.compile(backend=backend)
    for alpha in (1, 0.9, 0.5, 0.25, 0.1, 0, 0.9, 0, 1):
        blended.alpha = alpha
        for _ in range(2):
            blended(X).sum().backward()
    assert (backend.compiled, backend.called) == (3, 18)


def test_groups_one_after_another_compile_once_a_state():
    blended, backend = blended_network().train(), Backend()
    blended.compile(backend=backend)
    for name in blended.alpha:
        for alpha in (0.9, 0.5, 0.1, 0):
            blended.alpha = {name: alpha}
            blended(X).sum().backward()
    assert backend.compiled == 2 * len(blended.alpha)


def test_a_whole_training_compiles_each_program_once():
    """Levels, validation of blend and branch, recalibration, best weights, restarts, counting."""
    backends = []
    for levels in ((0.5, 0.0), (0.9, 0.5, 0.1, 0.0)):
        torch._dynamo.reset()
        pruning = BranchPruning(
            bp.Schedule(levels, restarts=[0.01]),
            monitor="loss/val_branch",
            restore_best="min",
        )
        task, backend = ClassificationTask(Net(), learning_rate=0.01), Backend()
        backends.append(backend)
        with pytest.MonkeyPatch.context() as patch:
            compiling = partial(torch.compile, backend=backend)
            patch.setattr(torch, "compile", compiling)
            pruning.compiles = True
            trainer(99, pruning, TrainingCost()).fit(task, Data())
        assert pruning.collapse_error < 1e-10
    assert backends[0].compiled == backends[1].compiled > 0
    assert backends[0].called < backends[1].called


def test_branch_only():
    blended, backend = blended_network().eval(), Backend()
    other = copy.deepcopy(blended)
    blended.compile(backend=backend)
    for net in (blended, other):
        net.alpha = 0.5
    batches = [torch.randn(5, 1, 8, 8) for _ in range(3)]
    with torch.no_grad():
        whole = blended(X)
        assert torch.allclose(whole, other(X), atol=1e-5)
        with blended.branch_only(batches), other.branch_only(batches):
            branch = blended(X)
            assert torch.allclose(branch, other(X), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(branch, whole, atol=1e-2)
        before = backend.called
        assert torch.equal(blended(X), whole) and backend.called == before + 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_a_copy_is_the_same_and_not_compiled(duplicate):
    blended, backend = blended_network().eval(), Backend()
    blended.compile(backend=lambda *args: backend(*args))  # which cannot be pickled
    blended.alpha = 0.5
    expected, called = blended(X), backend.called
    other = duplicate(blended)
    assert torch.allclose(other(X), expected, atol=1e-5) and backend.called == called == 1
    other.alpha = 0
    assert blended.alpha == dict.fromkeys(blended.alpha, 0.5)


def test_state_dict_goes_in_and_out():
    blended, other, backend = blended_network().eval(), blended_network().eval(), Backend()
    keys = list(blended.state_dict())
    blended.alpha = 0.3
    scramble(blended, seed=5)
    expected = blended(X)
    other.compile(backend=backend)
    assert list(other.state_dict()) == keys
    other(X)
    other.load_state_dict(blended.state_dict())
    assert torch.allclose(other(X), expected, rtol=1e-4, atol=1e-5) and backend.called == 2
    blended.load_state_dict(other.state_dict())
    assert torch.equal(blended(X), expected)


def test_collapse_after_compile():
    blended = blended_network().eval()
    other = copy.deepcopy(blended)
    blended.compile(backend=Backend())
    for net in (blended, other):
        net.alpha = 0
    small = bp.collapse(blended)
    assert torch.allclose(small(X), blended(X), rtol=1e-4, atol=1e-5)
    expected = bp.collapse(other).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize("alpha", [1, 0.5, 0])
def test_multiply_adds_are_counted_as_without(alpha):
    """Both before and after the program has been compiled."""
    blended, counts = blended_network().train(), []
    blended.alpha = alpha
    for compiles in (False, True):
        if compiles:
            blended.compile(backend="aot_eager")
        for _ in range(2):
            with FlopCounterMode(display=False) as counter:
                blended(X).sum().backward()
            counts.append(counter.get_total_flops())
            blended(X).sum().backward()
    assert len(set(counts)) == 1 and counts[0] > 0


def test_a_trainer_with_inductor_collapses_exactly():
    from torch._inductor import config  # it takes a second, which collecting needs not

    costs, ends = [], []
    for compiles in (False, True):
        torch.manual_seed(0)
        cost, task = TrainingCost(), ClassificationTask(Net(), learning_rate=0.01)
        pruning = BranchPruning(bp.Schedule((0.5, 0.0)), compile=compiles, recalibrate=0)
        with config.patch(PLAIN):
            trainer(2, pruning, cost, num_sanity_val_steps=0).fit(task, Data())
        assert pruning.collapse_error < 1e-10
        assert task.model is pruning.small and task.model[0].out_channels == 4
        costs.append(cost.macs)
        with torch.no_grad():
            ends.append(task.model.eval()(X[:, :, :4, :4]))
    assert costs[0] == costs[1] > 0
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-4)


def test_a_model_that_is_compiled_gets_branches_though_its_code_rounds_otherwise():
    def rounds_otherwise(graph, _):
        return lambda *args: tuple(y * (1 + 1e-6) for y in graph.forward(*args))

    model = scramble(VGG([[8, 8]], classes=4, in_channels=1)).eval()
    plan, expected = bp.plan(model, X[:1]), model(X)
    model.compile(backend=rounds_otherwise)
    assert not torch.equal(model(X), expected)
    assert torch.equal(bp.attach(model, plan).eval()(X), expected)


@pytest.mark.usefixtures("without_rehearsal")
def test_a_whole_run(tmp_path, monkeypatch):
    """The dense model that is measured is not compiled, since the small one is not."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    backend, measured = Backend(), []
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

    def watch(dense, small, x, seconds):
        measured.extend((model._compiled_call_impl, seconds) for model in (dense, small))
        return compare_latency(dense, small, x, seconds=0)

    monkeypatch.setattr("branchprune.experiments.run.result.compare_latency", watch)
    results = []
    for compiles in ("false", "true"):
        arguments = ["run", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / compiles)]
        assert main([*arguments, "--compile", compiles]) == 0
        assert (backend.called > 0) == (compiles == "true")
        results.append(json.loads((tmp_path / compiles / "result.json").read_text()))
    plain, compiled = results
    assert compiled["collapse"]["relative_error"] < 1e-10
    assert compiled["plan"] == plain["plan"]
    for stage in ("dense", "prune"):
        assert compiled["stages"][stage]["train_macs"] == plain["stages"][stage]["train_macs"] > 0
    scores = compiled["scores"]
    assert scores["blended_at_zero"]["val"] == pytest.approx(scores["small"]["val"])
    assert measured == [(None, 2.0)] * 4
