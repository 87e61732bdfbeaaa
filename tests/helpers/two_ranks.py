"""What two processes do together, each with half of every batch, and one process alone.

Both ranks run every case and write their results: `python two_ranks.py FOLDER`. One forks the
other, since importing takes longer than all cases.
"""

import multiprocessing
import os
import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.lightning import BranchPruning

STEPS, BATCH = 12, 8
ALPHAS = {"wide": 1.0, "blended": 0.6, "branch": 0.0, "in turns": {"0": 0.0, "3": 0.5, "6": 1.0}}
CASES = [*product(("sum", "group", "step", "sample"), ALPHAS)]


def network():
    torch.manual_seed(0)
    parts = []
    for inputs, outputs in ((3, 8), (8, 6), (6, 4)):
        norm = nn.InstanceNorm2d(outputs, affine=True)
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.PReLU(outputs)]
    return nn.Sequential(*parts, nn.Conv2d(4, 2, 1)).double()


def data():
    made = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, 3, 6, 6, generator=made, dtype=torch.float64) for _ in range(STEPS)]


def train(mixing, alpha, rank=None):
    """Return the losses, the weights, and what had a gradient of other numbers than none.

    Args:
        mixing: See `bp.attach`.
        alpha: Key of `ALPHAS`; the first half of the steps is at another α.
        rank: Which half of the batches; None: all of them, without DDP.
    """
    model = network()
    blended = bp.attach(model, bp.plan(model, data()[0][:1]), mixing=mixing)
    called = blended if rank is None else DistributedDataParallel(blended)
    optimizer = torch.optim.SGD(called.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(rank or 0)
    losses = []
    for step, batch in enumerate(data()):
        blended.alpha = 0.8 if step < STEPS // 2 else ALPHAS[alpha]
        batch = batch if rank is None else batch.chunk(2)[rank]
        optimizer.zero_grad()
        loss = (called(batch) - batch[:, :2].cos()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    trained = {name for name, p in blended.named_parameters() if p.grad is not None}
    return losses, {name: p.detach().clone() for name, p in blended.named_parameters()}, trained


class Task(LightningModule):
    """Logs, as users do, metrics of a rank's own half of the images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)),
            *(nn.ReLU(), nn.Conv2d(4, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(0)),
        )

    def error(self, batch):
        return (self.model(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        return self.error(batch)

    def validation_step(self, batch, batch_idx):
        self.log("quality", -self.error(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def loader():
    made = torch.Generator().manual_seed(2)
    images, wanted = torch.randn(32, 3, 8, 8, generator=made), torch.randn(32, generator=made)
    return DataLoader(TensorDataset(images, wanted), batch_size=4)


class Watched(BranchPruning):
    """Notes what decides on the training, and whether the original layers move."""

    def on_train_epoch_end(self, trainer, pl_module):
        first = self.blended.model.get_submodule("0").weight.detach().clone()
        branch = float(trainer.callback_metrics["quality_branch"])
        self.seen = [*getattr(self, "seen", []), (self.schedule.alpha, branch, first)]
        super().on_train_epoch_end(trainer, pl_module)


def fit(folder, thaw_at, **options):
    """Train with Lightning's strategy "ddp" as one of its processes."""
    hold = bp.Plateau(max_epochs=4, patience=1)
    schedule = bp.Schedule((0.5, 0.2, 0.0), hold=hold)
    choices = {"monitor": "quality", "restore_best": "max", "thaw_at": thaw_at, **options}
    pruning = Watched(schedule, example=torch.zeros(1, 3, 8, 8), **choices)
    strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment())
    shown = {f"enable_{name}": False for name in ("progress_bar", "model_summary", "checkpointing")}
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=schedule.max_epochs,
        callbacks=[pruning],
        logger=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **shown,
    )
    task = Task()
    trainer.fit(task, loader(), loader())
    return pruning.seen, task.model.state_dict(), pruning.collapse_error


def refusal(shard):
    """Return what is said where a blended model, or one to be planned, is sharded."""
    x, mesh = torch.randn(2, 3, 6, 6).double(), init_device_mesh("cpu", (2,))
    messages = []
    blended = bp.attach(network(), bp.plan(network(), x))
    for model, use in ((network(), bp.plan), (blended, nn.Module.__call__)):
        shard(model, mesh)
        try:
            use(model, x)
        except bp.PruneError as error:
            messages.append(str(error))
    return messages


def tensor_parallel(model, mesh):
    path = next(name for name, module in model.named_modules() if isinstance(module, nn.PReLU))
    module = model.get_submodule(path)
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(0)]))


def run(rank, folder):
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {case: train(*case, rank) for case in CASES}
    found |= {("fit", thaw_at): fit(folder, thaw_at) for thaw_at in (1, 0.2)}
    found["fsdp2"] = refusal(lambda model, mesh: fully_shard(model, mesh=mesh))
    found["parallel"] = refusal(tensor_parallel)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(folder):
    other = multiprocessing.get_context("fork").Process(target=run, args=(1, folder), daemon=True)
    other.start()
    run(0, folder)
    other.join()
    return other.exitcode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
