"""The README: its code runs, its tables are those of the result files, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    from torch import nn
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


def test_configuration_in_the_readme_has_only_keys_that_exist():
    from branchprune.config import make_parser

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


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in target or (ROOT / target).exists(), target


def test_commands_are_named():
    for command in ("make demo", "make test", "pip install"):
        assert command in TEXT
