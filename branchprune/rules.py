"""What an operation does to channels, for `teach`: the rules, and what one of your own is given.

```python
from branchprune import rules, teach

teach(MyActivation, rules.same)
```

A rule is a function `(analysis, node) -> Layout | None`. It asks the `Analysis` for the `Layout`
of what the node reads, and returns that of what the node makes; None where no channels are known.
"""

from branchprune.graph.channels import Layout
from branchprune.graph.rules.elementwise import cast, elementwise, opaque, pad, same
from branchprune.graph.rules.join import concatenate
from branchprune.graph.rules.linear import linear
from branchprune.graph.rules.norm import (
    batch_norm,
    channelwise,
    group_norm,
    layer_norm,
    norm,
    prelu,
)
from branchprune.graph.state import Analysis

__all__ = [
    "Analysis",
    "Layout",
    "batch_norm",
    "cast",
    "channelwise",
    "concatenate",
    "elementwise",
    "group_norm",
    "layer_norm",
    "linear",
    "norm",
    "opaque",
    "pad",
    "prelu",
    "same",
]
