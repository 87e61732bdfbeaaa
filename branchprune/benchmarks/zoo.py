"""Coverage: every model of a library is planned, blended and collapsed, with nothing set by hand.

Each model has a fresh process of its own (`zoo_child.py`), which gives its memory back and whose
end, whatever the cause, ends nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from fnmatch import filter as matching
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import OpenUnitInterval, PositiveFloat, PositiveInt
from rich.console import Console

from branchprune.benchmarks import zoo_table
from branchprune.benchmarks.child import parse, run_child
from branchprune.benchmarks.options import options_parser
from branchprune.benchmarks.zoo_models import LIBRARIES, smallest
from branchprune.benchmarks.zoo_table import Row
from branchprune.errors import PruneError
from branchprune.experiments import environment
from branchprune.experiments.parsed import parsed

ABOUT = "Plan, blend and collapse every model of a library, and write a table of what that came to."


@dataclass
class Options:
    """Options of `branchprune zoo`.

    Args:
        library: torchvision, timm, segmentation_models_pytorch or ultralytics.
        output: Folder for zoo.jsonl, zoo.csv and zoo.md; what succeeded there is not run again.
        record: Write to the committed results instead.
        models: Names, or patterns such as resnet*.
        smallest: Only the smallest model of each family.
        keep: Fraction of the channels to keep.
        jobs: Models side by side.
        seed: Seed of weights, inputs and noise.
        timeout: Seconds that a model may take.
        image_size: Height and width; null: the size at which the model's weights are evaluated.
    """

    library: Literal["torchvision", "timm", "segmentation_models_pytorch", "ultralytics"] = (
        "torchvision"
    )
    output: Path = Path("runs/zoo")
    record: bool = False
    models: list[str] | str = "*"
    smallest: bool = False
    keep: OpenUnitInterval = 0.5
    jobs: PositiveInt = 1
    seed: int = 0
    timeout: PositiveFloat = 1800
    image_size: PositiveInt | None = None


def main(args: Sequence[str], console: Console) -> int:
    """Measure the models and write the tables; return 1 if a model fails, else 0.

    Raises:
        PruneError: An option is wrong, the library is missing, or the output cannot be written.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    parser = options_parser(
        "branchprune zoo", Options, description=ABOUT, exit_on_error=False, allow_abbrev=False
    )
    try:
        options = Options(**vars(parsed(parser, args)))
        if options.record:
            options = replace(options, output=environment.recorded(""))
        blank = _blank_rows(options)
        options.output.mkdir(parents=True, exist_ok=True)
        rows = zoo_table.read_rows(options.output / "zoo.jsonl")
        todo = [row for key, row in blank.items() if key not in rows or not rows[key].exact]
        say(f"{len(blank) - len(todo)} models are done, {len(todo)} to do")
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(run_apart, row, options.timeout) for row in todo]
            try:
                for i, future in enumerate(as_completed(futures), 1):
                    row = future.result()
                    rows[row.key] = row
                    zoo_table.append_row(options.output, row)
                    zoo_table.write_tables(options.output, rows, row.key[:-1])
                    say(f"{i}/{len(todo)} {row.progress()}")
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        mine = [rows[key] for key in blank]
        zoo_table.write_tables(options.output, rows, mine[0].key[:-1])
    except OSError as error:
        raise PruneError(f"output folder {options.output} cannot be written: {error}") from error
    say(zoo_table.markdown_summary(mine))
    return int(not all(row.exact for row in mine))


def _blank_rows(options: Options) -> dict[zoo_table.Key, Row]:
    """Return a row for each model that the options name, with nothing measured yet."""
    list_models, build = LIBRARIES[options.library]
    families = list_models()
    patterns = [options.models] if isinstance(options.models, str) else options.models
    found = {pattern: matching(families, pattern) for pattern in patterns}
    for pattern in [pattern for pattern, names in found.items() if not names]:
        raise PruneError(f"models names {pattern!r}, which {options.library} lacks")
    wanted = {name for names in found.values() for name in names}
    families = {name: family for name, family in families.items() if name in wanted}
    families = smallest(families, build) if options.smallest else families
    threads = max(1, torch.get_num_threads() // options.jobs)
    settings = (options.keep, options.seed, options.image_size, threads, options.smallest)
    rows = [Row(options.library, n, f, *settings) for n, f in families.items()]
    return {row.key: row for row in rows}


def run_apart(row: Row, timeout: float) -> Row:
    """Measure a model in a process of its own, for some seconds; return how far it came."""
    module = ["-W", "ignore", "-m", "branchprune.benchmarks.zoo_child"]
    lines, error = run_child([*module, json.dumps(asdict(row))], timeout)
    for line in lines:
        row = parse(line, Row) or row
    if error is not None:
        row.error, row.exact = error, False
    return row
