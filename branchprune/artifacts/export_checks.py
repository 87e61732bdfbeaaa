"""What can be exported: options, models, examples and images are checked before a file is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from branchprune.artifacts.export_formats import FORMATS
from branchprune.artifacts.file_format import HALF, INT8, FileFormat
from branchprune.artifacts.parity import outputs_of
from branchprune.blending.blended import Blended
from branchprune.errors import PruneError, whole
from branchprune.graph.inputs import Example, tensors
from branchprune.graph.outputs import floats
from branchprune.graph.plain_model import refuse_lazy, refuse_wrapped
from branchprune.graph.sharding import refuse_sharded
from branchprune.runtimes.batch import DYNAMIC, Batch, batch_of, of_batch
from branchprune.runtimes.onnx_model import OLDEST, check_float32


def checked_options(kind: FileFormat, **options: Any) -> dict[str, Any]:
    """Return the options that are given, of those that not every format takes.

    Args:
        kind: The format.
        options: Their values by name; None: not given.

    Raises:
        PruneError: One is of another format, or its value is wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "quantize" in given and given["quantize"] not in (INT8, HALF):
        raise PruneError(f"quantize (={given['quantize']!r}) must be 8 or 16")
    for name, value in given.items():
        able = [f for f in FORMATS.values() if _takes(f, name, value)]
        if kind not in able:
            others = " or ".join(repr(f.name) for f in able)
            raise PruneError(
                f"{name} (={value!r}) is for format {others}, and format is {kind.name!r}"
            )
    if "opset" in given:
        whole("opset", opset := given["opset"], 1)
        if opset < OLDEST:
            raise PruneError(
                f"opset (={opset}) must be {OLDEST} or above: torch's exporter would make {OLDEST} "
                "of it in silence"
            )
    return given


def _takes(kind: FileFormat, name: str, value: Any) -> bool:
    """Return whether files of a format can be written with an option."""
    return value in kind.bits if name == "quantize" else name in kind.takes


def check_model(model: nn.Module) -> None:
    """Raise PruneError for what no file can hold as a model."""
    kind = type(model).__name__
    if isinstance(model, Blended):
        raise PruneError("model is blended: collapse it before it is exported, bp.collapse(model)")
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise PruneError(f"model (a {kind}) must be a torch.nn.Module with a Python forward")
    refuse_wrapped(model)
    refuse_sharded(model)
    refuse_lazy(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise PruneError(f"{name} is on the device meta: it has no numbers to export")
    check_float32(model)


def check_takes_batch(model: nn.Module, example: Example, batch: Batch, kind: FileFormat) -> None:
    """Raise PruneError for a model that does not take the batch that the file shall take."""
    now = batch_of(example)
    size = max(2, now) if batch == DYNAMIC else batch
    if batch == DYNAMIC and kind.largest is not None and now > kind.largest:
        raise PruneError(
            f"example has a batch of {now}, and a file of {kind.title} for any batch takes "
            f"{kind.largest}: give fewer, or batch={now}"
        )
    if size == now:
        return
    try:
        outputs_of(model, of_batch(example, size))
    except PruneError as error:
        raise PruneError(
            f"batch (={batch!r}): {error}, but a batch of {now} does. Where some inputs have no "
            f"batch, give an example of 2 or more; where forward takes no other, batch={now}"
        ) from error


def check_judged(output: Any) -> None:
    """Raise PruneError for outputs that nobody could compare with those of 8 bits."""
    if not floats(output):
        raise PruneError(
            "quantize (=8): forward returns no floats, by which the file could be judged: return "
            "the scores, and take their argmax outside"
        )


def like_example(images: Tensor, example: Example) -> Tensor:
    """Return images in the precision of the example, on the CPU.

    Raises:
        PruneError: They are of another shape, or the example is of several tensors.
    """
    given = tensors(example)
    if len(given) != 1:
        raise PruneError(f"quantize (=8) takes models of one input, and example has {len(given)}")
    if images.shape[1:] != given[0].shape[1:]:
        wanted = ", ".join(["N", *map(str, given[0].shape[1:])])
        raise PruneError(
            f"calibration (of shape {tuple(images.shape)}) must be like the example, ({wanted})"
        )
    return images.to("cpu", given[0].dtype)
