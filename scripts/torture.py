"""What a run survives: kills, full and failing disks, races, damaged files. A table tells.

```sh
python scripts/torture.py                  # all of it: hours
python scripts/torture.py --kills 5 --writes 5 --races 2 --flips 50
```

Survived: ended, or went on with `--resume`, to the weights and the one line of results of a run
that nobody disturbed. Refused: ended in one clear line, and then went on to the same. The status is
1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torture_files import attacks
from torture_runs import ERRORS, Runs, Trial, library

HEAD = (
    "| attack | tried | survived | refused clearly | wrong |\n| --- | ---: | ---: | ---: | ---: |"
)


def campaigns(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Iterator[Trial]]]:
    """Yield each kind of attack with its trials, which are made when they are asked for."""
    for name, trials in attacks(folder / "files", options.flips // 8):
        yield f"{name}: flipped bits, cut ends", trials
    preloaded = library(folder)
    runs = Runs(folder / "runs", preloaded)
    for number, name in ((9, "kill -9"), (15, "SIGTERM"), (2, "Ctrl-C")):
        trials = runs.interrupted(signal.Signals(number), options.kills, options.seed)
        yield f"{name} at random moments", trials
    for error in ERRORS if preloaded else ():
        yield f"{error} from a write on", runs.failing(error, options.writes, options.seed)
    yield "two runs with one folder", runs.races(options.races, options.seed)


def table(counts: dict[str, Counter[str]]) -> str:
    """Return the table, as Markdown."""
    rows = [HEAD]
    for name, found in counts.items():
        numbers = [found.total(), *(found[how] for how in ("survived", "refused", "wrong"))]
        rows.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows) + "\n"


def main(args: Sequence[str] | None = None) -> int:
    """Attack, print the table, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="Moments for each signal")
    parser.add_argument("--writes", type=int, help="Writes that fail; default: every one")
    parser.add_argument("--races", type=int, default=50, help="Pairs of runs with one folder")
    parser.add_argument("--flips", type=int, default=5000, help="Damaged files")
    parser.add_argument("--seed", type=int, default=0, help="Of moments, bits and writes")
    parser.add_argument("--output", type=Path, help="File for the table")
    options = parser.parse_args(args)
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, trials in campaigns(options, Path(folder)):
            counts[name] = Counter()
            for trial in trials:
                counts[name][trial.how] += 1
                if trial.how == "wrong":
                    print(f"WRONG: {trial.what}", file=sys.stderr, flush=True)
    text = table(counts)
    print(text)
    if options.output is not None:
        options.output.write_text(text)
    return int(any(found["wrong"] for found in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
