"""branchprune: α-blended parallel-branch pruning of convolutional networks.

```python
plan    = bp.plan(model, example, keep=22 / 64)
blended = bp.attach(model, plan)
for blended.alpha in bp.Schedule(bp.steps(0.1), hold=2):
    train_one_epoch(blended)
small   = bp.collapse(blended)
```
"""

from branchprune import rules
from branchprune.artifacts.export import export
from branchprune.artifacts.exported import Exported
from branchprune.artifacts.serialization import load, save
from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.block_skipping import Shallowing
from branchprune.blending.fit_expand import fit_expand
from branchprune.blending.schedules import Plateau, Schedule, cosine, linear, multiplicative, steps
from branchprune.blending.stand_in import stand_in
from branchprune.collapsing.collapse import collapse
from branchprune.criteria.curvature import fisher, obd
from branchprune.criteria.discrimination import discrimination
from branchprune.criteria.group_weights import GroupWeights
from branchprune.errors import PruneError
from branchprune.few_images.compress import Compressed, compress
from branchprune.few_images.folder import read_folder
from branchprune.graph.rules.teach import forget, teach
from branchprune.planning.plan import Plan
from branchprune.planning.residual_blocks import blocks, without
from branchprune.runtimes.executorch import ExecuTorch
from branchprune.runtimes.onnx_runtime import OnnxRuntime
from branchprune.runtimes.openvino import OpenVino
from branchprune.runtimes.pytorch import PyTorch
from branchprune.targets.depth import Shallower, shorten
from branchprune.targets.plan import plan, plans
from branchprune.targets.sensitivity import sensitivity
from branchprune.version import __version__

__all__ = [
    "Blended",
    "Compressed",
    "ExecuTorch",
    "Exported",
    "GroupWeights",
    "OnnxRuntime",
    "OpenVino",
    "Plan",
    "Plateau",
    "PruneError",
    "PyTorch",
    "Schedule",
    "Shallower",
    "Shallowing",
    "__version__",
    "attach",
    "blocks",
    "collapse",
    "compress",
    "cosine",
    "discrimination",
    "export",
    "fisher",
    "fit_expand",
    "forget",
    "linear",
    "load",
    "multiplicative",
    "obd",
    "plan",
    "plans",
    "read_folder",
    "rules",
    "save",
    "sensitivity",
    "shorten",
    "stand_in",
    "steps",
    "teach",
    "without",
]
