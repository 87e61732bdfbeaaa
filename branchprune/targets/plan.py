"""A plan from a target: the widths with the least predicted change of the output within it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example
from branchprune.planning import plan as by_share
from branchprune.planning.plan import Plan
from branchprune.runtimes.runtime import Runtime
from branchprune.targets.chooser import Chooser, planned_for
from branchprune.targets.error_curves import RECONSTRUCTION, Init, MeasuredErrors
from branchprune.targets.goal import check_asked, check_runtime, check_target, needing_runtime
from branchprune.targets.measured_latency import MeasuredLatency
from branchprune.targets.target_plan import TargetPlan

DEFAULT = 0.5
"""What is kept where neither a share nor a target is given."""
FLOOR = 0.1
"""The least share of a group's channels."""


@one_at_a_time
def plan(
    model: nn.Module,
    example: Example,
    keep: float | Mapping[str, float] | None = None,
    *,
    target: Mapping[str, float] | None = None,
    batches: Iterable[Example] | None = None,
    criterion: Init = RECONSTRUCTION,
    cache: str | Path | None = None,
    floor: float = FLOOR,
    exclude: Sequence[str] = (),
    multiple_of: int | Literal["auto"] = 1,
    runtime: Runtime | None = None,
    latency_table: str | Path | None = None,
    inside: str = "",
    opaque: Sequence[str] = (),
    check: bool = False,
) -> Plan:
    """Find the channel groups of a model and decide how wide each will be.

    ```python
    plan = bp.plan(model, torch.randn(1, 3, 32, 32), keep=22 / 64)
    print(plan)
    plan = bp.plan(model, images[:1], target={"macs": 0.5}, batches=[images])
    runtime = bp.OnnxRuntime(threads=2)
    plan = bp.plan(
        model, images[:1], target={"latency_ms": 5}, batches=[images], runtime=runtime,
        multiple_of="auto",
    )
    ```

    Args:
        model: Any network; it is traced and run once, and not changed.
        example: An input, a tuple of arguments or a dictionary of keyword arguments.
        keep: Fraction of the channels to keep, in (0, 1]; or one a layer, by path, by the path of a
            module around it or by the name of its group, with "" for all others:
            `{"": 0.5, "head": 1.0}`. A group takes that of a layer named itself, else that of the
            closest module around its first layer that has one, else the default; groups that no key
            names stay, without a branch. 1.0 keeps a group whole, with a branch as wide as it is,
            which `exclude` would spare it. Parameters and MACs fall with about the square of the
            fraction. With a target: the layers and modules alone that are to keep a share, whatever
            the target; what keeps 1.0 then stays without a branch. None: 0.5, or what the target
            leaves.
        target: What to reach, as the share that is kept, below 1, or as a number: "macs" and
            "params", of the model or of `inside`; "memory" in bytes, that is parameters and
            buffers, and the most of input and activations that is live at once as the model
            evaluates the example (a tensor is live until it is read for the last time, as in a
            runtime that plans its memory; PyTorch itself takes more where a variable in forward
            keeps one for longer, and what an operation takes for itself is not counted); "latency"
            as a share, or "latency_ms" in milliseconds, of a pass on the example in `runtime`. The
            widths are those with the least
            predicted change of the output: of vectors (N, k), k > 1, which are taken as logits of
            classes, the Kullback-Leibler divergence of their softmax, of other outputs the squared
            error as a share of their variance. How much it changes with each group alone is
            measured at two widths on `batches`, the widths between and beyond follow what
            channels leave unexplained of the others, and the changes of all groups add up. Norms
            over several channels, as LayerNorm, are taken as they are with all of them.
        batches: Inputs for that, each a tensor, or a tuple or dictionary of arguments, as they are
            used, normalised: some hundred images. Labels are not needed. The same go to
            `attach(…, "reconstruction", batches=…)`.
        criterion: By which channels are chosen where changes are measured, as `init` of `attach`,
            to which give the same: "reconstruction", "l1", …, "taylor" by the gradients in the
            model, or a function.
        cache: Folder that keeps what was measured of single groups, by the digest of model, batches
            and criterion; that of a function, and of gradients, is not kept.
        floor: The least share of a group's channels that a target leaves, in (0, 1].
        exclude: Layers, or modules around them, whose channels stay; or names of groups, as
            "conv1#2".
        multiple_of: Round the kept widths to a multiple of this; the plan names groups that are too
            narrow for one, and shrink without. "auto", with a target and a runtime: the least of 1,
            4, 8 and 16 that wastes no time there, measured on the heaviest layers.
        runtime: Where the latency is measured, such as `bp.OnnxRuntime(threads=2)`: each layer at a
            grid of widths, whole models of several widths, and at last the model of the plan, in
            turns with the dense one, until it is within the target. Layers other than
            convolutions and fully connected ones take a time for each number that they get.
        latency_table: File, JSON, that keeps the times of layers; where it exists it is read, and
            must be of this runtime, with as many threads, and of this processor.
        inside: Path of a module: only what is inside it is traced and pruned, such as the backbone
            of a detector, which cannot be traced as a whole. Costs are then those of the module.
        opaque: Paths of modules that are not looked into; what they read keeps its width. The path
            of a list of modules, or of one that is not called itself, means each within it.
        check: Try the widths now, as `attach` does: a model of these widths is run beside its
            graph, in both modes. That costs a few forward passes.

    Returns:
        The plan; `print` shows it as a table, of a target what was reached, too. Its multiply-adds
        are those of convolutions and matrix products: of layers and functions that the trace sees,
        and in parts that `opaque` or `teach` leaves out.

    Raises:
        PruneError: An argument is wrong, the model cannot be traced or does not accept the
            example or a batch, nothing in it can be pruned, the target is met by the model as it is
            or cannot be reached, or `check` finds that the collapsed model would compute something
            else.
    """
    check_asked(keep, target, multiple_of)
    if target is None:
        given = ["batches"] * (batches is not None) + [f"floor (={floor!r})"] * (floor != FLOOR)
        if criterion != RECONSTRUCTION:
            given.append(f"criterion (={criterion!r})")
        if cache is not None:
            given.append(f"cache (={str(cache)!r})")
        if runtime is not None:
            given.append(f"runtime (={getattr(runtime, 'name', runtime)})")
        if latency_table is not None:
            given.append(f"latency_table (={str(latency_table)!r})")
        if given:
            belong = "belong" if given[1:] or batches is not None else "belongs"
            raise PruneError(
                f"{', '.join(given)} {belong} to a target: give one, such as target={{'macs': 0.5}}"
            )
        if multiple_of == "auto":
            raise PruneError("multiple_of='auto' belongs to a target: give one, and a runtime")
        share = DEFAULT if keep is None else keep
        return by_share.plan(
            model,
            example,
            share,
            exclude=exclude,
            multiple_of=multiple_of,
            inside=inside,
            opaque=opaque,
            check=check,
        )
    latency = measuring(target, multiple_of, runtime, latency_table)
    errors = MeasuredErrors.on(batches, criterion, cache)
    chooser = Chooser(target, keep, floor, exclude, multiple_of, errors, latency)
    return planned_for(model, example, chooser, inside, opaque, check)


def plans(
    model: nn.Module,
    example: Example,
    targets: Sequence[Mapping[str, float]],
    *,
    batches: Iterable[Example] | MeasuredErrors,
    criterion: Init = RECONSTRUCTION,
    cache: str | Path | None = None,
    keep: Mapping[str, float] | None = None,
    floor: float = FLOOR,
    exclude: Sequence[str] = (),
    multiple_of: int | Literal["auto"] = 1,
    runtime: Runtime | None = None,
    latency_table: str | Path | None = None,
    inside: str = "",
    opaque: Sequence[str] = (),
) -> list[TargetPlan]:
    """Return a plan for each of several targets; what they need is measured once.

    ```python
    for plan in bp.plans(model, x, [{"macs": s} for s in (0.75, 0.5, 0.25)], batches=[images]):
        print(plan.after.macs, sum(plan.errors))
    ```

    Args:
        model: See `plan`.
        example: See `plan`.
        targets: What to reach, once or several times; see `target` of `plan`.
        batches: See `plan`; or what has been measured on some, as `sensitivity` shares it.
        criterion: See `plan`.
        cache: See `plan`.
        keep: Layers and modules that keep a share, whatever the targets.
        floor: See `plan`.
        exclude: See `plan`.
        multiple_of: See `plan`.
        runtime: See `plan`.
        latency_table: See `plan`.
        inside: See `plan`.
        opaque: See `plan`.

    Returns:
        The plans, with the change of the output that is predicted for each.

    Raises:
        PruneError: See `plan`.
    """
    if isinstance(targets, str | Mapping) or not isinstance(targets, Iterable):
        raise PruneError(f"targets (={targets!r}) must be several, such as [{{'macs': 0.5}}]")
    targets = [*targets]
    for target in targets:
        check_asked(keep, check_target(target), multiple_of)
    every = {what: share for target in targets for what, share in target.items()}
    latency = measuring(every, multiple_of, runtime, latency_table)
    errors = MeasuredErrors.on(batches, criterion, cache)
    asked = (keep, floor, exclude, multiple_of, errors, latency)
    choosers = [Chooser(each, *asked) for each in targets]
    return [planned_for(model, example, each, inside, opaque) for each in choosers]


def measuring(
    target: Mapping[str, float],
    multiple_of: int | Literal["auto"],
    runtime: Runtime | None,
    latency_table: str | Path | None,
) -> MeasuredLatency | None:
    """Return what measures the latency; None where there is no runtime.

    Args:
        target: See `plan`.
        multiple_of: See `plan`.
        runtime: See `plan`.
        latency_table: See `plan`.

    Raises:
        PruneError: There is no runtime where one is needed, or nothing that needs it.
    """
    needing = needing_runtime(target, multiple_of)
    if not isinstance(latency_table, str | Path | None):
        raise PruneError(f"latency_table (={latency_table!r}) must be the path of a file")
    if runtime is None:
        if latency_table is not None:
            raise PruneError(f"latency_table (={str(latency_table)!r}) needs a runtime")
        check_runtime(needing, False)
        return None
    if isinstance(runtime, type) or not callable(getattr(runtime, "prepared", None)):
        raise PruneError(f"runtime (={runtime!r}) must be such as bp.PyTorch(threads=1)")
    if not needing:
        raise PruneError(
            f"runtime (={runtime.name}) belongs to a target of latency, or to multiple_of='auto'"
        )
    return MeasuredLatency(runtime, None if latency_table is None else Path(latency_table))
