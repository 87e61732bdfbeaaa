"""branchprune: α-blended parallel-branch pruning of convolutional networks.

```python
plan    = bp.plan(model, example, keep=22 / 64)
blended = bp.attach(model, plan)
blended.alpha = 0.7
...
small   = bp.collapse(blended)
```
"""

from branchprune.blended import Blended
from branchprune.branches import attach
from branchprune.collapsing import collapse
from branchprune.errors import PruneError
from branchprune.planning import Plan, plan

__all__ = ["Blended", "Plan", "PruneError", "attach", "collapse", "plan"]
