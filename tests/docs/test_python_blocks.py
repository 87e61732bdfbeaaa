"""The code on the pages runs, and comes to what stands beside it."""

import warnings

import onnxruntime
import pytest
import torch
import torchvision
from pages import READMES, blocks, text
from torch import nn

TEN_LINES, LIGHTNING, EXPORT = blocks("README.md", "python")
TEACHING = blocks("branchprune/README.md", "python")


def test_every_python_block_is_run_here():
    found = {page: len(blocks(page, "python")) for page in READMES if blocks(page, "python")}
    assert found == {"README.md": 3, "branchprune/README.md": 2}


def test_ten_lines_and_the_export(tmp_path, monkeypatch):
    """Away from the checkout, in an interpreter of their own: see tests/test_wheel.py."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(TEN_LINES, scope)
    collapsed = scope["small"].eval()
    with warnings.catch_warnings(action="ignore"):
        exec(EXPORT, scope)
    assert len(TEN_LINES.splitlines()) <= 14 and (tmp_path / "small.safetensors").exists()
    assert type(collapsed) is torchvision.models.ResNet and collapsed.conv1.out_channels == 32
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(scope["small"](x), collapsed(x))
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), collapsed(x), atol=1e-4)


def test_the_cut_is_what_the_page_says():
    """Setting α to 0 at once cuts out the channels that the criterion chose, and no others."""
    import branchprune as bp

    assert "write `blended.alpha = 0` in place of the loop" in text("README.md")
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    plan = bp.plan(model, torch.randn(1, 3, 4, 4), keep=0.5)
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small = bp.collapse(blended)
    chosen = model[0].weight.abs().sum((1, 2, 3)).topk(4).indices.sort().values
    assert torch.equal(small[0].weight, model[0].weight[chosen])
    assert torch.equal(small[2].weight, model[2].weight[:, chosen])


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
    exec(LIGHTNING, scope)
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


class Stretch(nn.Module):
    def forward(self, x):
        n, c, h, w = (int(size) for size in x.shape)
        return x.reshape(n, c, h // 2, 2 * w)


class Taught(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, 8, 1) for i in (3, 8, 8, 8))
        self.act, self.norm, self.attention, self.stretch = (
            *(MyActivation(), MyNorm(8), MyAttention()),
            Stretch(),
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.norm(self.act(self.a(x)))
        x = my_function(x, self.b(x))
        return self.head(self.d(self.attention(self.c(self.stretch(x)))).relu())


@pytest.fixture
def _forget():
    from branchprune.graph.rules import teach

    yield
    for taught in (teach.TAUGHT, teach.TAUGHT_CLASSES, teach.TAUGHT_METHODS):
        taught.clear()


@pytest.mark.usefixtures("_forget")
def test_operations_are_taught_as_the_page_says():
    import branchprune as bp

    model, x = Taught().eval(), torch.randn(2, 3, 4, 4)
    with pytest.raises(bp.PruneError, match="cannot be traced in act"):
        bp.plan(model, x)
    exec("\n".join(TEACHING), {**globals(), "bp": bp})
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


def test_the_plan_on_the_page_is_what_plan_prints():
    import branchprune as bp

    model = torchvision.models.resnet18(num_classes=10)
    printed = str(bp.plan(model, torch.randn(2, 3, 64, 64), keep=0.5)).splitlines()
    shown = next(block for block in blocks("README.md", "") if block.startswith("group"))
    for line in shown.splitlines():
        assert line == "…" or line in printed
