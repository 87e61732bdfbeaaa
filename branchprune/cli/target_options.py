"""The options of commands that choose widths for a target."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from branchprune.errors import PruneError
from branchprune.runtimes.named import RUNTIMES, runtime_of
from branchprune.targets.goal import check_asked, check_runtime, needing_runtime

KEEP = """fraction of the channels to keep, in (0, 1], or one a layer: '{"": 0.5, "head": 1.0}';
without this and --target it is 0.5"""
TARGET = """what to reach in place of --keep, as the share that is kept, below 1, or as a number:
--target.macs 0.5, --target.params 2e6, --target.memory 4e6 (bytes, for {memory}), --target.latency
0.5 or --target.latency_ms 5 (of {latency}, in --runtime); the widths are {chosen}"""
RUNTIME = """where the latency is measured, for --target.latency, --target.latency_ms or
--multiple_of auto"""


def add_target(parser: ArgumentParser, memory: str, latency: str, chosen: str) -> None:
    """Add --keep, --target, --multiple_of, --runtime and --threads.

    Args:
        parser: The command's.
        memory: The inputs whose memory is meant.
        latency: Those whose latency is.
        chosen: How the widths are chosen.
    """
    add = parser.add_argument
    add("--keep", type=float | dict[str, float] | None, default=None, help=KEEP)
    told = TARGET.format(memory=memory, latency=latency, chosen=chosen)
    add("--target", type=dict[str, float] | None, default=None, help=told)
    add(
        "--multiple_of",
        type=PositiveInt | Literal["auto"],
        default=1,
        help="round the kept widths to it; auto: to what pays in --runtime",
    )
    add("--runtime", type=Literal[(*RUNTIMES,)] | None, default=None, help=RUNTIME)
    threads = "those of --runtime; else one a core"
    add("--threads", type=PositiveInt | None, default=None, help=threads)


def asked(options: Namespace) -> dict[str, Any]:
    """Return `keep`, `target`, `multiple_of` and `runtime`, as `plan` takes them.

    Raises:
        PruneError: They say two things, or a runtime is missing.
    """
    keep, target, multiple_of = options.keep, options.target, options.multiple_of
    check_asked(keep, target, multiple_of)
    if multiple_of == "auto" and target is None:
        raise PruneError("multiple_of (='auto') belongs to a target: give one, --target.macs 0.5")
    if options.threads is not None and options.runtime is None:
        raise PruneError(f"threads (={options.threads}) are those of a runtime: give --runtime")
    runtime = runtime_of(options.runtime, options.threads)
    needing = needing_runtime(target or {}, multiple_of)
    check_runtime(needing, runtime is not None)
    if runtime is not None and not needing:
        raise PruneError(
            f"runtime (={options.runtime!r}) is where a latency is measured: give "
            "--target.latency_ms 5, --target.latency 0.5 or --multiple_of auto, or leave it out"
        )
    return {"keep": keep, "target": target, "multiple_of": multiple_of, "runtime": runtime}
