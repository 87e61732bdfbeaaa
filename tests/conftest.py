import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
FOLDERS = [
    str(path) for path in (TESTS, *TESTS.rglob("*")) if path.is_dir() and path.name != "__pycache__"
]
sys.path[:0] = FOLDERS  # tests share helpers, and configurations name classes of test modules
os.environ["PYTHONPATH"] = os.pathsep.join(  # so that child processes find them, too
    [str(TESTS.parent), *FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]
)

settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("fixed"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
torch.set_num_threads(1)  # for fixtures of modules, too, and child processes
os.environ["OMP_NUM_THREADS"] = "1"
gc.disable()  # what imports leave is no garbage


IMPLICIT = "CompositeImplicitAutograd"
"""What torch calls operators that are made of others."""
LESS_OFTEN = (20_000, 20, 10)
"""Garbage, of which tests make much and keep little, is collected at so many new objects."""
LONGEST = {
    *("test_configs.py", "test_methods.py", "test_pruning.py", "test_reproduce.py"),
    *("test_latency_target.py", "test_target.py", "test_torture.py"),
}
"""Begun first, as of several processes one would else be left alone with such a file at the end:
those that take long and would come late."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest before all others, whose order stays."""
    assert {path.name for path in TESTS.rglob("test_*.py")} >= LONGEST
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the half a million objects that imports made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*LESS_OFTEN)
    gc.enable()


def pytest_unconfigure() -> None:
    """Hand them back: what is frozen at exit looks leaked to the libraries that it is from."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _one_pass_is_timed() -> Iterator[None]:
    """No test reads how long a network takes in a run, so none needs to wait for it."""
    from branchprune.runtimes.latency import compare_latency

    def timed_once(dense: Any, small: Any, x: torch.Tensor, _: float) -> Any:
        return compare_latency(dense, small, x, seconds=0.0)

    with pytest.MonkeyPatch.context() as patch:
        if "branchprune.cli" in sys.modules:  # otherwise nothing is run, and importing takes long
            patch.setattr("branchprune.experiments.run.result.compare_latency", timed_once)
        yield


@pytest.fixture(autouse=True, scope="session")
def _entry_points_are_read_once() -> Iterator[None]:
    """Each Trainer looks through all packages that are installed, and a run makes eight."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("lightning_fabric", "lightning.fabric"):
            registry = sys.modules.get(f"{name}.utilities.registry")
            if registry is not None:
                patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True, scope="session")
def _the_parser_of_runs_is_made_once() -> Iterator[None]:
    """A process makes it for one run, but that of the tests for a thousand."""
    with pytest.MonkeyPatch.context() as patch:
        config = sys.modules.get("branchprune.experiments.run.config")
        if config is not None:
            patch.setattr(config, "make_parser", cache(config.make_parser))
        yield


def _look_operators_up_once() -> None:
    """Have exporters that are imported keep the tables that each export makes of all operators.

    torch's exporter to ONNX parses the source of each operator anew, and exports of every kind
    look for operators that were registered since, which takes as long as a small network.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is not None and not hasattr(registration, "kept"):
        registry = registration.ONNXRegistry
        registration.kept = cache(registry.from_torchlib)
        registry.from_torchlib = staticmethod(lambda *of, **at: copy(registration.kept(*of, **at)))
    utils = sys.modules.get("torch._export.utils")
    if utils is not None and not hasattr(utils, "known"):
        utils.known, look = [], utils._materialize_cpp_cia_ops

        def look_if_new() -> None:
            found = torch._C._dispatch_get_registrations_for_dispatch_key(IMPLICIT)
            if found != utils.known:
                look()
                utils.known = found

        utils._materialize_cpp_cia_ops = look_if_new


@pytest.fixture(scope="module")
def without_charts() -> Iterator[None]:
    """Reports of runs have no charts, which take as long to draw as tiny networks to train.

    For what asks how a run trains; its page is asked for in reports/ and test_cli.py, and drawn for
    every configuration file that is shipped.
    """
    with pytest.MonkeyPatch.context() as patch:
        for chart in ("blending", "rounds", "losses"):
            patch.setattr(f"branchprune.reports.plots.{chart}", lambda *_, **__: "")
        yield


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _look_operators_up_once()
    yield
    assert torch.get_default_dtype() == torch.float32


@contextmanager
def _no_rehearsal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("branchprune.experiments.run.experiment._Run._rehearse", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def charts_drawn_once() -> Iterator[None]:
    """Reports whose charts show the same draw them once, for what asks about the rest of a page."""
    from branchprune.reports import plots

    def remembered(draw: Callable[..., str]) -> Callable[..., str]:
        drawn: dict[str, str] = {}

        def chart(*given: Any, **named: Any) -> str:
            key = repr((given, named))
            if key not in drawn:
                drawn[key] = draw(*given, **named)
            return drawn[key]

        return chart

    with pytest.MonkeyPatch.context() as patch:
        for chart in ("blending", "rounds", "losses", "trade_off"):
            patch.setattr(plots, chart, remembered(getattr(plots, chart)))
        yield


@pytest.fixture
def without_rehearsal() -> Iterator[None]:
    """Runs begin at once, for tests that count their steps and files."""
    with _no_rehearsal():
        yield


@pytest.fixture(scope="module")
def module_without_rehearsal() -> Iterator[None]:
    """So do all of a file, those that its fixtures share too: none is about the rehearsal."""
    with _no_rehearsal():
        yield
