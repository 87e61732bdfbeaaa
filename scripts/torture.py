"""What pruning and its runs survive: a table of attacks.

```sh
python scripts/torture.py --record         # all of it: hours
python scripts/torture.py --kills 5 --writes 5 --races 2 --flips 50 --configs 20 --networks 20
python scripts/torture.py --only "random networks*" --record
```

Runs are killed and interrupted at random moments, their disk is full or fails from a write on, two
have one folder. Files are damaged, configurations have a mistake, and random networks are pruned
and collapsed in each precision.

Survived: ended, or went on with `--resume`, to the weights and the one line of results of a run
that nobody disturbed; what was read is as it was; the collapse is exact. Refused: ended in one
clear line, a run before it trained or so that it then went on to the same. Everything else is
wrong, and then the status is 1.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

import torture_configs
import torture_files
import torture_networks
from torture_runs import ERRORS, Runs, library
from torture_table import table
from torture_trial import HOW, Trial

from branchprune.experiments import environment
from branchprune.experiments.files import append_line

Attack = Callable[[], Iterator[Trial]]
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
RECORD = "torture.jsonl"


def attacks(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Attack]]:
    """Yield the name of each attack, and what makes its trials.

    Args:
        options: How often to attack, and the seed.
        folder: Where to work.
    """
    seed = options.seed
    for dtype in torture_networks.DTYPES:
        count = options.networks if dtype == torture_networks.DTYPES[0] else options.networks // 4
        name = str(dtype).removeprefix("torch.")
        yield f"random networks, {name}", partial(torture_networks.attack, dtype, count, seed)
    yield "configurations with a mistake", partial(torture_configs.attack, options.configs, seed)
    for name, read in torture_files.attacks(folder / "files", options.flips // 8):
        yield f"{name}: flipped bits, cut ends", read
    preloaded = library(folder)
    runs = cache(partial(Runs, folder / "runs", preloaded))
    for name, number in SIGNALS.items():
        yield f"{name} at random moments", partial(_interrupted, runs, number, options)
    for error in ERRORS if preloaded else ():
        yield f"{error} from a write on", partial(_failing, runs, error, options)
    yield "two runs with one folder", lambda: runs().races(options.races, seed)


def _interrupted(
    runs: Callable[[], Runs], number: signal.Signals, options: argparse.Namespace
) -> Iterator[Trial]:
    yield from runs().interrupted(number, options.kills, options.seed)


def _failing(runs: Callable[[], Runs], error: str, options: argparse.Namespace) -> Iterator[Trial]:
    yield from runs().failing(error, options.writes, options.seed)


def survey(trials: Iterator[Trial]) -> Counter[str]:
    """Return what became of an attack's trials; name those that went wrong."""
    found: Counter[str] = Counter()
    for trial in trials:
        found[trial.how] += 1
        if trial.how == "wrong":
            print(f"WRONG: {trial.what}", file=sys.stderr, flush=True)
    return found


def line(name: str, found: Counter[str], seconds: float, args: Sequence[str]) -> dict[str, Any]:
    """Return the line of results of an attack."""
    return {
        "attack": name,
        "tried": found.total(),
        **{how: found[how] for how in HOW},
        "command": shlex.join(["python", "scripts/torture.py", *args]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "hardware": environment.hardware("cpu"),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Attack, print the table, and return 1 if anything was wrong."""
    args = sys.argv[1:] if args is None else args
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    add = parser.add_argument
    add("--only", default="*", help='Pattern of attacks, as "random networks*"')
    add("--kills", type=int, default=200, help="Moments for each signal")
    add("--writes", type=int, help="Writes that fail; default: every one")
    add("--races", type=int, default=50, help="Pairs of runs with one folder")
    add("--flips", type=int, default=5000, help="Damaged files")
    add("--configs", type=int, default=1000, help="Configurations with a mistake")
    add("--networks", type=int, default=2000, help="Networks in float64; a quarter in each other")
    add("--seed", type=int, default=0, help="Of all that is random")
    add("--record", action="store_true", help=environment.RECORD_HELP)
    options = parser.parse_args(args)
    output = environment.recorded(RECORD) if options.record else None
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, attack in attacks(options, Path(folder)):
            if not fnmatch(name, options.only):
                continue
            since = time.monotonic()
            found = survey(attack())
            lines.append(line(name, found, time.monotonic() - since, args))
            if output is not None:
                append_line(output, lines[-1])
    print(table(lines))
    return int(any(each["wrong"] for each in lines))


if __name__ == "__main__":
    sys.exit(main())
