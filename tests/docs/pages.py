"""The pages of the documentation: their code, commands, links and the names in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
READMES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("README.md")
    if not {".venv", "runs", "data", "node_modules"} & {*path.relative_to(ROOT).parts[:-1]}
)
PAGES = [
    *READMES,
    ".github/CONTRIBUTING.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("scripts/**/[a-z]*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.S | re.M)
PROGRAMS = ("branchprune", "python", "python3", "pip", "make", "pytest", "tensorboard")
SHELL = ("sh", "bash", "console")


def text(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [content for name, content in FENCE.findall(text(page)) if name == language]


def commands_in(markdown: str) -> list[str]:
    """Return the commands of a page, those of shell blocks and those in the text, once each.

    Comments, prompts and the folder of the environment go; lines that go on are joined.
    """
    lines = [
        line.removeprefix("$ ")
        for language, content in FENCE.findall(markdown)
        for line in content.replace("\\\n", " ").splitlines()
        if language in SHELL or (not language and is_command(line))
    ]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", markdown))
    return [*dict.fromkeys(filter(None, map(plain, [*lines, *filter(is_command, spans)])))]


def is_command(line: str) -> bool:
    """Return whether a line calls a program that pages name, with arguments."""
    words = line.removeprefix("$ ").removeprefix(".venv/bin/").split()
    return len(words) > 1 and words[0] in PROGRAMS


def plain(line: str) -> str:
    """Return a command without comment and without the folder of its program."""
    words = shlex.split(line, comments=True)
    return shlex.join([words[0].removeprefix(".venv/bin/"), *words[1:]]) if words else ""


def around(page: str, said: str) -> str:
    """Return the paragraph, table row or block of a page in which something stands first."""
    for part in re.split(r"\n\n|\n(?=\|)", text(page)):
        if said in part or said in commands_in(part):
            return " ".join(part.split())
    raise AssertionError(f"{page} does not show {said}")
