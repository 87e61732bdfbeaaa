"""`python -m branchprune`: the command line where the shell does not find `branchprune`."""

import sys

from branchprune.cli import main

sys.exit(main())
