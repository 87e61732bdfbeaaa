"""What `bp.export` has written, and how well it agrees with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from branchprune.artifacts.file_format import FLOAT32
from branchprune.artifacts.quantization import Quantized
from branchprune.runtimes.batch import DYNAMIC, Batch

UNITS = ("bytes", "kB", "MB", "GB")


@dataclass(frozen=True)
class Exported:
    """A file that a runtime runs without branchprune and without the class of the model.

    Attributes:
        path: The file.
        files: All that were written, `path` first.
        format: "onnx", "openvino", "torch-export" or "executorch".
        runtime: In which it was compared, with its version.
        batch: The batch that it takes: a number of examples, or "dynamic" for any.
        parity: For each size of a batch, max |Δ| / max |model's| of the worst output.
        tolerance: The largest that was allowed.
        bytes: Size of all files together.
        seconds: How long exporting and comparing took.
        precision: What the runtime computes in on this machine by itself: "f32", or "bf16".
        set_by: What makes it compute in float32, as it was compared; empty: it does.
        quantized: What 8 bits cost, where they were asked for; `parity` is that of float32 before.
        largest: The largest batch of a file that takes any; None: there is none.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    runtime: str
    batch: Batch
    parity: Mapping[int, float]
    tolerance: float
    bytes: int
    seconds: float
    precision: str = FLOAT32
    set_by: str = ""
    quantized: Quantized | None = None
    largest: int | None = None

    def __str__(self) -> str:
        beside = "".join(f" and {each.name}" for each in self.files[1:])
        any_batch = f"batches up to {self.largest}" if self.largest else "any batch"
        takes = any_batch if self.batch == DYNAMIC else f"a batch of {self.batch}"
        *others, last = map(str, self.parity)
        tried = f"batches of {', '.join(others)} and {last}" if others else f"a batch of {last}"
        worst = max(self.parity.values())
        lines = [
            f"{self.path}{beside}: {in_bytes(self.bytes)}, {takes}, in {self.seconds:.1f} s",
            f"parity: in {self.runtime}, outputs differ by at most {worst:.2g} of the largest, at "
            f"{tried} (tolerance {self.tolerance:g})",
        ]
        if self.quantized is not None:
            lines[-1] = f"before it was rounded, {lines[-1]}"
            lines.append(str(self.quantized))
        if self.precision != FLOAT32:
            lines.append(
                f"note: on this processor it computes in {self.precision} by itself; it was "
                f"compared with {self.set_by}"
            )
        return "\n".join(lines)


def in_bytes(count: int) -> str:
    """Return a number of bytes in a unit that is read at once: 44.7 MB."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {UNITS[unit]}" if unit else f"{count} bytes"
