"""torch.compile as a runtime: what it compiles, how often, and what it says where it cannot."""

import re

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.runtimes.named import runtime_of
from branchprune.runtimes.torch_compile import TorchCompile


@pytest.fixture
def compiled(monkeypatch):
    """Compile into what runs node by node; return the graphs, and how often each has run."""
    graphs, runs, plain = [], [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        runs.append(0)
        at = len(runs) - 1

        def run(*args):
            runs[at] += 1
            return graph.forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", lambda f, **given: plain(f, backend=backend, **given))
    yield graphs, runs
    torch.compiler.reset()


def test_every_model_of_a_class_is_compiled_however_many_there_are(compiled):
    """torch.compile by itself gives up at the ninth, and runs it as it is."""
    graphs, runs = compiled
    models = [nn.Conv2d(2, width, 1) for width in range(1, 12)]
    x = torch.randn(3, 2, 4, 4)
    steps = [TorchCompile(threads=1).prepared(model, x) for model in models]
    assert len(graphs) == len(models) and runs == [1] * len(models)
    for model, step in zip(models, steps, strict=True):
        assert torch.equal(step(), model(x))
    assert len(graphs) == len(models) and runs == [2] * len(models)  # nothing is compiled again


def test_it_computes_in_evaluation_and_the_model_stays_as_it_is(compiled):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model(torch.randn(4, 3, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    found = TorchCompile(threads=1).prepared(model, x)()
    assert model.training and compiled[1] == [2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.allclose(found, model.eval()(x))


def test_it_uses_so_many_threads_as_it_compiles_and_as_it_runs(monkeypatch):
    seen = []

    def compile_(function, **given):
        def run(*args):
            seen.append(torch.get_num_threads())
            return function(*args)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    before = torch.get_num_threads()
    TorchCompile(threads=before + 1).prepared(nn.Linear(2, 2), torch.zeros(1, 2))()
    assert seen == [before + 1] * 2 and torch.get_num_threads() == before


def test_a_compiler_that_fails_is_told_with_the_model(monkeypatch):
    def broken(function, **given):
        def run(*args):
            raise RuntimeError("no C++ compiler\nat all")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    said = re.escape("torch.compile cannot run Linear: no C++ compiler")
    with pytest.raises(bp.PruneError, match=said + "$"):
        TorchCompile().prepared(nn.Linear(2, 2), torch.zeros(1, 2))


def test_it_has_a_name():
    found = runtime_of("torch-compile", 2)
    assert isinstance(found, TorchCompile) and (found.name, found.threads) == ("torch.compile", 2)
    assert found.version() == torch.__version__
    with pytest.raises(bp.PruneError, match=r"\(='tflite'\) must be one of .*torch-compile"):
        runtime_of("tflite", 1)
