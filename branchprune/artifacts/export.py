"""A model in a file that runs where branchprune and the class of the model are not installed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.artifacts.agreement import agreement
from branchprune.artifacts.export_checks import (
    check_judged,
    check_model,
    check_takes_batch,
    checked_options,
    like_example,
)
from branchprune.artifacts.export_files import (
    check_free,
    folder_beside,
    give_names,
    kept_as_failed,
)
from branchprune.artifacts.export_formats import format_of
from branchprune.artifacts.export_header import export_header
from branchprune.artifacts.exported import Exported
from branchprune.artifacts.file_format import HALF, INT8, FileFormat, Source
from branchprune.artifacts.parity import TOLERANCE, outputs_of, parity
from branchprune.artifacts.quantization import SAMPLES, Quantization, Quantized, Score
from branchprune.artifacts.rounding import at_once, quantized
from branchprune.errors import PruneError, positive
from branchprune.graph.inference_mode import outside_inference_mode
from branchprune.graph.inputs import Example, copied, evaluating, example_inputs, tensors
from branchprune.graph.random_generators import own_generators
from branchprune.graph.unlabelled import Images, gather
from branchprune.runtimes.batch import DYNAMIC, Batch, batch_of, check_batch
from branchprune.runtimes.captured import captured, changed_buffer
from branchprune.runtimes.in_runtime import InRuntime, OnImages

APART = 0.1
"""Relative error of outputs of a file in 8 bits beside what computes as it has to: runtimes round
at other places."""
COMPARED = 64
"""Images on which they are compared."""
HALF_TOLERANCE = 1e-3
"""The same with weights of float16."""
NUMBERS = {None: "float32", HALF: "float16 weights", INT8: "int8"}
"""What headers say of the numbers in a file."""


@outside_inference_mode()
def export(
    model: nn.Module,
    example: Example,
    path: str | Path,
    *,
    format: str | None = None,
    batch: Batch = DYNAMIC,
    opset: int | None = None,
    quantize: int | None = None,
    calibration: Images | None = None,
    samples: int = SAMPLES,
    max_drop: float | None = None,
    score: Score | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    made_by: str | None = None,
    init_args: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as ONNX, for OpenVINO, ExecuTorch or as torch.export does, and compare.

    The file is opened in its runtime and compared with the model in evaluation mode: on the
    example and on noise that is like it, at batches of 1, 3 and 7 where it takes any. Only where
    it computes the same it gets its name. It runs without branchprune and without the source of
    the model, and says what it is: as `metadata_props` of ONNX, `rt_info` of OpenVINO, by the
    method "branchprune" of ExecuTorch, or in `branchprune.json` of torch.export's `extra_files`.

    ```python
    print(bp.export(small, images[:1], "small.onnx"))
    ```

    Args:
        model: A dense or collapsed model, with parameters of float32. It is exported in evaluation
            mode and for the processor; itself it stays as it is, and where it is.
        example: An input, or several as a tuple or dictionary. The first size of the tensor with
            most sizes is the batch, also of others that begin with it; other sizes are fixed.
        path: Where to write: NAME.onnx, NAME.xml (OpenVINO, with weights in NAME.bin), NAME.pt2
            (torch.export) or NAME.pte (ExecuTorch).
        format: "onnx", "openvino", "torch-export" or "executorch"; None: as the path ends.
        batch: The batch that the file takes: "dynamic" for any, which are 64 at most for
            ExecuTorch, or a number of examples.
        opset: Version of ONNX's operators, 18 or above; None: 20. For ONNX alone.
        quantize: Bits of the numbers in files of ONNX, OpenVINO and, of 8, ExecuTorch; None: 32.
            16: weights in half precision, computed in what the runtime computes in. 8: weights and
            activations in whole numbers. Such a file is compared in float32 first, and then judged
            on images.
        calibration: Images for 8 bits, without labels: a tensor (N, …), or batches of such, as the
            model wants them. Some of them set the ranges, up to 1000 others judge: 800 are good.
        samples: How many images set ranges, at most; never more than half.
        max_drop: Points that may be lost in 8 bits; None: any. Where more are, the layers that cost
            most stay float32. Points are those of `score`; without it, percent of images whose
            class is another, or the relative error of outputs in percent.
        score: Takes a module that computes as the file does, and returns how good it is, in
            points, of which more are better, such as the accuracy in percent.
        tolerance: The largest max |Δ| / max |model's| of an output; None: 1e-5, and 1e-3 with
            weights in half precision. Whole numbers must be equal.
        overwrite: Whether to replace files that exist, once the new ones are right.
        made_by: What makes the wide model, as in `bp.save`; it is written down.
        init_args: Arguments of the class or function there.

    Returns:
        What was written, how large it is, and how well it agrees; it can be printed.

    Raises:
        PruneError: An argument is wrong, a package is missing, or the model cannot be exported or
            run in the runtime. `Failed`, a PruneError too: the file cannot be written, or it
            computes something else, and is kept as NAME.failed.
    """
    start = time.perf_counter()
    if not isinstance(path, str | os.PathLike):
        raise PruneError(f"path (a {type(path).__name__}) must be the path of a file")
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    kind = format_of(path, format)
    options = checked_options(kind, opset=opset, quantize=quantize)
    wanted = _asked_of_8_bits(quantize, calibration, samples, max_drop, score)
    check_batch(batch)
    limit = tolerance or (HALF_TOLERANCE if quantize == HALF else TOLERANCE)
    positive("tolerance", limit if tolerance is None else tolerance)
    check_model(model)
    header = export_header(model, made_by, init_args or {}) | {"numbers": NUMBERS[quantize]}
    kind.check_installed()
    check_free(path, kind, overwrite)
    name = type(model).__name__
    ready, given = _on_cpu(model, example)
    output = outputs_of(ready, given)
    if not tensors(output):
        raise PruneError(f"{name}: forward returns no tensor")
    check_takes_batch(ready, given, batch, kind)
    if wanted is not None:
        check_judged(output)
        wanted = replace(wanted, calibration=like_example(wanted.calibration, given))
    with folder_beside(path) as folder, own_generators([]):
        part = folder / path.name
        program = captured(ready, given, batch, kind.title)
        if changed := changed_buffer(program):
            raise PruneError(
                f"{name}: forward changes {changed}, and what a file computes stays as it is: "
                "leave that out in evaluation"
            )
        source = Source(name, program, given, batch, output, header, options)
        if wanted is not None:
            source = kind.prepared(source)
        kind.write(source, part)
        found, judged = parity(ready, kind.exactly(part, name), given, batch), None
        if not max(found.values()) <= limit:
            raise kept_as_failed(found, limit, kind, path, part)
        if wanted is not None:
            called = ready if isinstance(given, Tensor) else OnImages(ready, given)
            judged = _rounded(called, source, kind, part, wanted)
        check_free(path, kind, overwrite)  # others may have written meanwhile
        size = sum(each.stat().st_size for each in kind.files(part))
        give_names(kind.files(part), kind.files(path))
    runtime = kind.runtime(1)
    return Exported(
        path=path,
        files=kind.files(path),
        format=kind.name,
        runtime=f"{runtime.name} {runtime.version().partition('-')[0]}",
        batch=batch,
        parity=found,
        tolerance=limit,
        bytes=size,
        seconds=time.perf_counter() - start,
        precision=kind.precision(),
        set_by=kind.set_by,
        quantized=judged,
        largest=kind.largest,
    )


def _asked_of_8_bits(
    bits: int | None,
    calibration: Images | None,
    samples: int,
    max_drop: float | None,
    score: Score | None,
) -> Quantization | None:
    """Return what is asked of 8 bits; None: nothing is."""
    if bits == INT8:
        if calibration is None:
            raise PruneError(
                "quantize (=8) needs calibration: images as the model wants them, some of which "
                "set the ranges, and others judge"
            )
        try:
            images = gather(calibration)
        except PruneError as error:
            raise PruneError(f"calibration: {error}") from error
        return Quantization(images, samples, max_drop, score)
    given = {"calibration": calibration, "max_drop": max_drop, "score": score}
    if named := [name for name, value in given.items() if value is not None]:
        raise PruneError(f"{named[0]} is for quantize=8, and quantize is {bits}")
    return None


def _rounded(
    model: nn.Module,
    source: Source,
    kind: FileFormat,
    part: Path,
    wanted: Quantization,
) -> Quantized:
    """Write a file of 8 bits in place of one of float32."""
    batch = source.batch
    latest: tuple[Source, nn.Module] | None = None

    def run(source: Source) -> nn.Module:
        nonlocal latest
        if latest is None or latest[0] is not source:
            latest = None  # is closed before its file is another
            kind.write(source, part)
            opened = kind.exactly(part, source.kind)
            latest = source, InRuntime(opened, source.output, batch, kind.largest).eval()
        return latest[1]

    assert kind.rounder is not None
    images, judges = wanted.divided()
    with TemporaryDirectory(prefix="branchprune-int8-") as folder:
        rounder = kind.rounder(source, images, Path(folder))
        made, found = quantized(model, rounder, run, batch, wanted)
        pair = rounder.reference(made), run(made)
    apart = agreement(*pair, judges[:COMPARED], **at_once(batch))
    if not apart.error <= APART:  # nor NaN
        raise PruneError(
            f"quantize (=8): {kind.runs_in} computes other products of whole numbers than it has "
            f"to, outputs differ by {apart.error:.0%}: take format 'onnx'"
            + (", or batch='dynamic'" if batch != DYNAMIC else "")
        )
    return found


def _on_cpu(model: nn.Module, example: Example) -> tuple[nn.Module, Example]:
    """Return a model in evaluation mode and an example that belongs to no computation."""
    example_inputs(example)  # says of what else it may be
    for each in tensors(example):
        if each.is_meta or each.layout != torch.strided:
            raise PruneError(
                f"example (a tensor on {each.device}, {each.layout}) must hold dense numbers"
            )
    batch_of(example)
    weights = (*model.parameters(), *model.buffers())
    here = all(each.device.type == "cpu" for each in weights)
    ready = evaluating(model) if here else copied(model).eval().cpu()
    moved: Example = tree_map_only(
        Tensor, lambda tensor: tensor.detach().as_subclass(Tensor).cpu(), example
    )
    return ready, moved
