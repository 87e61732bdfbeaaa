"""What two processes do together, each with half of every batch, and one process alone.

A child runs every case and writes its results: `python two_ranks.py RANK FOLDER`.
"""

import os
import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import branchprune as bp

STEPS, BATCH = 20, 8
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


def main(rank, folder):
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save({case: train(*case, rank) for case in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
