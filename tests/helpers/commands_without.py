"""A command, run where packages are missing, one after another; used by `test_dependencies.py`.

Its arguments are a JSON list of packages, and the command. It prints, as JSON, the exit status and
the error output for each package. What the command imports is imported once, and the command runs
in copies of the process that forget one of the packages.
"""

import importlib
import json
import os
import sys
import tempfile

from refusing import refuse

from branchprune.cli import main

KEPT = ("branchprune", "branchprune.cli", "branchprune.errors")


def forget(package):
    """Forget a package, and what of branchprune may have imported something from it."""
    for name in list(sys.modules):
        first = name.partition(".")[0]
        if first == package or (first == "branchprune" and name not in KEPT):
            del sys.modules[name]


def without(package, command):
    """Return exit status and error output of a command where a package is missing."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            forget(package)
            refuse([package])
            try:
                os._exit(main(command))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status, said.read()


if __name__ == "__main__":
    packages, command = json.loads(sys.argv[1]), sys.argv[2:]
    for name in ("branchprune.lightning", "branchprune.reports.report", *packages):
        importlib.import_module(name)
    print(json.dumps({package: without(package, command) for package in packages}))
