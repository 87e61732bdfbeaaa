"""The README: its code runs, its tables are those of the result files, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    fences = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.S | re.M)
    return [content for name, content in fences if name == language]


def test_ten_lines_run_in_a_fresh_interpreter(tmp_path):
    checks = "assert small.conv1.out_channels == 32; assert small(example).isfinite().all()"
    code = f"{blocks('python')[0]}\n{checks}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_lightning_lines_run():
    from pytorch_lightning import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    import branchprune as bp

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            hits = self.net(batch[0]).argmax(1) == batch[1]
            self.log("val_acc", hits.float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def train_dataloader(self):
            return DataLoader(TensorDataset(images, torch.arange(8) % 2), 4)

        val_dataloader = train_dataloader

    images, module = torch.randn(8, 1, 4, 4), Module()
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    scope = {
        "bp": bp,
        "images": images,
        "module": module,
        "data": None,
        "Trainer": lambda **options: Trainer(**options, **quiet, enable_progress_bar=False),
    }
    exec(blocks("python")[1], scope)
    assert module.net[0].out_channels == 4


class MyActivation(nn.Module):
    def forward(self, x):
        if float(x.detach().abs().max()) > 1e9:  # no trace gets past this
            raise OverflowError
        return x * x.sigmoid()


class MyNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x):
        if bool(x.isnan().any()):
            raise ValueError
        return x * self.scale[:, None, None]


def my_function(a, b):
    return a + b if bool(a.isfinite().all()) else b


class MyAttention(nn.Module):
    def forward(self, x):
        return x * x.mean(1, keepdim=True) if bool(x.isfinite().all()) else x


class MyFold(nn.Module):
    def forward(self, x):
        n, c, h, w = (int(size) for size in x.shape)
        return x.reshape(n, c, h // 2, 2 * w)


class Taught(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, 8, 1) for i in (3, 8, 8, 8))
        self.act, self.norm, self.attention, self.fold = (
            *(MyActivation(), MyNorm(8), MyAttention()),
            MyFold(),
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.norm(self.act(self.a(x)))
        x = my_function(x, self.b(x))
        return self.head(self.d(self.attention(self.c(self.fold(x)))).relu())


def test_operations_are_taught_as_the_readme_says(monkeypatch):
    import branchprune as bp
    from branchprune.graph.rules import registry as rulebook

    for name in ("MODULE_RULES", "FUNCTION_RULES", "TAUGHT"):
        monkeypatch.setattr(rulebook, name, dict(getattr(rulebook, name)))
    monkeypatch.setattr("branchprune.graph.tracing.trace.TAUGHT", rulebook.TAUGHT)
    model, x = Taught().eval(), torch.randn(2, 3, 4, 4)
    with pytest.raises(bp.PruneError, match="cannot be traced in act"):
        bp.plan(model, x)
    exec("\n".join(blocks("python")[2:4]), {**globals(), "bp": bp})
    plan = bp.plan(model, x)
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["a"] is None and reasons["d"] is None
    assert reasons["c"] == "read by attention (MyAttention): it is opaque"
    blended = bp.attach(model, plan)
    assert torch.equal(blended(x), model(x))
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small.norm.scale.shape == (4,) and small.c.in_channels == 4
    assert (blended(x) - small(x)).abs().max() < 1e-5


def test_configuration_in_the_readme_has_only_keys_that_exist():
    from branchprune.experiments.run.config import make_parser

    text = blocks("yaml")[0].replace("my_package.MyNet", "branchprune.models.VGG")
    text = text.replace("my_package.MyDataModule", "branchprune.data.Digits")
    text = text.replace("{width: 64}", "{classes: 10}")
    assert make_parser().parse_string(text).prune.keep == 0.34375


def test_plan_in_the_readme_is_what_plan_prints():
    import torchvision

    import branchprune as bp

    model = torchvision.models.resnet18(num_classes=10)
    printed = str(bp.plan(model, torch.randn(2, 3, 64, 64), keep=0.5)).splitlines()
    shown = next(block for block in blocks("") if block.startswith("group"))
    for line in shown.splitlines():
        assert line == "…" or line in printed


def test_tables_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "scripts" / "readme_tables.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run scripts/readme_tables.py"


def test_check_notices_a_changed_figure(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme_tables

    row = re.search(r"\| plan \+ attach \+ collapse, seconds \| ([\d.]+)", TEXT)
    changed = TEXT.replace(row.group(0), row.group(0) + "9")
    assert readme_tables.fill(changed) == TEXT != changed
    with pytest.raises(ValueError, match="bench"):
        readme_tables.fill("no markers")


@pytest.mark.parametrize("gone", ["<!-- {} -->", "<!-- /{} -->", "<!-- /?{} -->"])
@pytest.mark.parametrize("name", ["bench", "plan_speed", "zoo", "paper", "cost", "compare"])
def test_a_marker_that_is_missing_is_named(monkeypatch, name, gone):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme_tables

    tables = {"bench", "plan_speed", "zoo", "paper", "cost", "compare"}
    assert {*readme_tables.TABLES} == tables
    said = f"must have <!-- {name} --> and <!-- /{name} -->, once each"
    with pytest.raises(ValueError, match=said):
        readme_tables.fill(re.sub(gone.format(name), "", TEXT))


def test_a_marker_that_is_there_twice_is_named(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme_tables

    with pytest.raises(ValueError, match="must have <!-- zoo --> and"):
        readme_tables.fill(f"{TEXT}\n<!-- zoo -->\n")


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in target or (ROOT / target).exists(), target


def test_commands_are_named():
    for command in ("make demo", "make test", "pip install"):
        assert command in TEXT
