"""Packages as if they were not installed, for tests in processes of their own."""

import sys
from importlib.machinery import PathFinder
from typing import ClassVar


class Refusing(PathFinder):
    """Finds what is installed, except what is refused, and notes what branchprune wants of that."""

    refused: ClassVar[set[str]] = set()
    wanted: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in cls.refused:
            return super().find_spec(name, path, target)
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame.f_globals["__name__"].startswith("branchprune"):
            cls.wanted.add(package)
        return None


def refuse(packages):
    """Let no package of these be imported from now on."""
    Refusing.refused.update(packages)
    if PathFinder in sys.meta_path:
        sys.meta_path[sys.meta_path.index(PathFinder)] = Refusing
