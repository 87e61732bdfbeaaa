"""The whole way of a model through the core, run by `test_core_alone.py` in a process of its own.

Its argument is a JSON list of the top-level packages that cannot be imported in it. It prints, as
JSON, those of them that branchprune asked for although it can do without.
"""

import contextlib
import json
import sys

from refusing import Refusing, refuse


def check(directory):
    import torch
    from torch import nn

    import branchprune as bp

    class Shift(nn.Module):
        def forward(self, x):
            return x + 1

    def network():
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Shift()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2)),
        )

    bp.teach(Shift, bp.rules.same)
    model, images, labels = network(), torch.randn(8, 3, 4, 4), torch.arange(8) % 2
    planned = bp.plan(model, images, keep=0.5)
    assert "8 → 4" in str(planned)
    blended = bp.attach(model, planned, init="reconstruction", batches=[images])
    bp.fit_expand(blended, [images])
    optimizer = torch.optim.SGD(blended.parameters(), 0.1)
    for blended.alpha in bp.Schedule(bp.steps(0.5)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(blended(images), labels).backward()
        optimizer.step()
    with blended.branch_only([images]):
        blended(images)
    small = bp.collapse(blended).eval()
    path = f"{directory}/small.safetensors"
    with contextlib.suppress(bp.PruneError):
        bp.save(small, path)
        raise AssertionError("safetensors reads the memory of tensors with NumPy")
    Refusing.refused.discard("numpy")
    bp.save(small, path)
    again = bp.load(network(), path).eval()
    assert again[0].out_channels == 4
    assert torch.equal(again(images), small(images))
    for (
        package
    ) in Refusing.refused:  # the guard works: what is refused has not come in by another door
        assert package not in sys.modules, package


if __name__ == "__main__":
    refuse(json.loads(sys.argv[1]))
    check(sys.argv[2])
    print(json.dumps(sorted(Refusing.wanted)))
