"""Costs, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from branchprune.cli.bench import main as bench
from branchprune.graph.macs_counter import MacsCounter
from branchprune.models import VGG
from branchprune.planning.profiling import count_macs, count_params, peak_memory


def test_macs_and_parameters_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(128, 5))
    assert count_macs(model, torch.zeros(1, 3, 8, 8)) == 4 * 4 * 8 * 3 * 9 + 128 * 5
    assert count_params(model) == 8 * 3 * 9 + 8 + 128 * 5 + 5


def test_a_parameter_that_is_given_to_a_layer_is_counted():
    """As class tokens are; torch's counter asks for its gradient function."""

    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.fc = nn.Parameter(torch.zeros(2, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x) + self.fc(self.token)

    model = Token()
    assert count_macs(model, torch.zeros(2, 4)) == 2 * 2 * 4 * 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def attending() -> tuple[nn.Module, int]:
    """Return a model with attention in evaluation, and its multiply-adds of 3 × 5 vectors."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    return layer, 3 * (5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8)


def test_attention_is_counted_whatever_computes_it():
    """Torch's counter sees nothing in the fast path."""
    layer, macs = attending()
    assert count_macs(layer, torch.randn(3, 5, 8)) == macs


def test_attention_is_counted_backward():
    """Torch's counter leaves out the kernel of the CPU, which computes the weights once more."""
    layer, macs = attending()
    with MacsCounter() as counter:
        layer(torch.randn(3, 5, 8, requires_grad=True)).sum().backward()
    assert counter.macs == 3 * macs + 3 * 5 * 5 * 8


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_both_gradients_of_a_convolution_cost_what_it_costs_itself(kind, groups):
    """A product in it is one in the gradient of the input and one in that of the weight."""
    layer, x = kind(8, 16, 3, stride=2, groups=groups), torch.randn(2, 8, 9, 9)
    pixels = (x if kind is nn.ConvTranspose2d else layer(x))[0, 0].numel()
    products = 2 * pixels * 9 * 8 * 16 // groups
    for needs_slope, times in ((False, 2), (True, 3)):
        with MacsCounter() as counter:
            layer(x.requires_grad_(needs_slope)).sum().backward()
        assert counter.macs == times * products


def test_vgg16_has_the_known_size():
    model = VGG()
    assert count_params(model) == 14_728_266
    assert count_macs(model, torch.zeros(1, 3, 32, 32)) == 313_201_664


def test_peak_memory_is_weights_plus_the_tensors_alive_together():
    model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    weights = 4 * (4 * 100 + 100 + 100 * 2 + 2)
    hidden = 3 * 100 * 4
    assert peak_memory(model, torch.zeros(3, 4)) == weights + 3 * 4 * 4 + 2 * hidden


def test_peak_memory_frees_what_is_no_longer_used():
    deep = nn.Sequential(*[nn.Conv2d(4, 4, 1, bias=False) for _ in range(10)])
    x = torch.zeros(2, 4, 16, 16)
    assert peak_memory(deep, x) == 10 * 16 * 4 + 3 * x.nbytes


def test_memory_in_place_is_not_counted_twice():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(inplace=True))
    x = torch.zeros(2, 4, 16, 16)
    assert peak_memory(model, x) == 16 * 4 + 2 * x.nbytes


def test_bench_writes_its_rows(tmp_path, capsys, monkeypatch):
    import json

    from rich.console import Console

    blocks = [[8, 8], [16, 16], [32, 32, 32], [64, 64, 64], [64, 64, 64]]  # an eighth as wide
    monkeypatch.setattr("branchprune.benchmarks.bench.VGG", lambda stages=blocks: VGG(stages))
    path = tmp_path / "bench.json"
    args = ["--batch=2", "--image_size=32", "--repeats=2", f"--output={path}"]
    bench(args, Console(width=200))
    content = json.loads(path.read_text())
    assert [row["target"] for row in content["rows"] if row["target"]] == [
        "≤ 1.3",
        "≤ 1.2",
        "1.00 ± 0.03",
        "< 2",
    ]
    assert "plan + attach + collapse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [("--record", "record needs scripts/results"), ("--output=here", "here cannot be written")],
)
def test_bench_knows_where_to_write_before_it_measures(tmp_path, monkeypatch, option, message):
    from rich.console import Console

    from branchprune import PruneError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("branchprune.benchmarks.bench.measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "here").mkdir()
    with pytest.raises(PruneError, match=message):
        bench([option], Console())


def test_bench_names_a_bad_option():
    from rich.console import Console

    from branchprune import PruneError

    with pytest.raises(PruneError, match="batch_sise"):
        bench(["--batch_sise=2"], Console())
