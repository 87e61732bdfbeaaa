"""What a parser says of a value in terms of Python's types, said in words: "a list of numbers"."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pydoc import locate

PLURALS = {
    "float": ("a number", "numbers"),
    "int": ("a whole number", "whole numbers"),
    "bool": ("true or false", "true or false"),
    "str": ("a text", "texts"),
    "Path": ("a path", "paths"),
    "dict": ("a mapping", "mappings"),
    "list": ("a list", "lists"),
    "tuple": ("a list", "lists"),
    "PositiveInt": ("a whole number above 0", "whole numbers above 0"),
    "NonNegativeInt": ("a whole number of at least 0", "whole numbers of at least 0"),
    "PositiveFloat": ("a number above 0", "numbers above 0"),
    "NonNegativeFloat": ("a number of at least 0", "numbers of at least 0"),
    "OpenUnitInterval": ("a number between 0 and 1", "numbers between 0 and 1"),
    "ClosedUnitInterval": ("a number from 0 to 1", "numbers from 0 to 1"),
}
"""Names of types: one value of each, and several."""
FRACTIONS = ("float", "PositiveFloat", "OpenUnitInterval", "ClosedUnitInterval")
NULL = ("NoneType", "None")
UNION = re.compile(
    r"(?P<key>[\w.]+): Does not validate against any of the Union subtypes "
    r"Subtypes: \[(?P<kinds>.*)\] Errors: (?P<errors>.*) Given value type: .+? "
    r"Given value: (?P<value>.*)"
)
ONE = re.compile(r"(?P<key>[\w.]+): Expected a (?P<kinds>.+?)\. Got value: (?P<value>.*)")
RESTRICTED = re.compile(
    r"(?P<key>[\w.]+): Not of type (?P<kinds>\w+): "
    r"(?:.*: '(?P<text>.*)'|(?P<value>.*) does not conform.*)"
)
OF_ARGPARSE = re.compile(
    r"argument --(?P<key>[\w.]+): invalid (?P<kinds>\w+) value: '(?P<value>.*)'"
)
PATTERNS = (UNION, ONE, RESTRICTED, OF_ARGPARSE)
OPTION = re.compile(r"([\w.]+: )'([\w.]+)': (Option '\w+' is not accepted)")
OWN = re.compile(r"[\w.]+ (?:\(=.*?\) )?(?:must|needs|belongs?|sees) ")
MISSING = re.compile(r"argument (--[\w.]+): expected (?:one|at least one) argument")
NESTED = re.compile(r"NestedArg\(key='(.*?)', val=(.*)\)")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def in_words(line: str, args: Sequence[str] = ()) -> str:
    """Return what a parser says of a value as a person would; the line itself if it says else.

    Args:
        line: One line, such as "seed: Expected a <class 'int'>. Got value: x".
        args: The command line, from which values are that a list was given as.
    """
    if missing := MISSING.fullmatch(line):
        return f"{missing[1]} needs a value"
    option = OPTION.fullmatch(line)
    if option and (known := _fields(f"<class '{option[2]}'>")):
        return option[1] + _with_known(option[3], known)
    found = next(filter(None, (each.fullmatch(line) for each in PATTERNS)), None)
    if found is None:
        return line
    told = {"text": "", "errors": ""} | found.groupdict("")
    value = told["text"] or told["value"]
    words = [part for word in args for part in _parts(word)]
    return _said(told["key"], value, _split(told["kinds"]), told["errors"], words) or line


def _parts(word: str) -> list[str]:
    """Return an option and its value, where both are one word."""
    return word.split("=", 1) if word.startswith("--") else [word]


def _said(key: str, value: str, kinds: list[str], errors: str, args: Sequence[str]) -> str | None:
    if nested := NESTED.fullmatch(value):
        key, value = f"{key}.{nested[1]}", str(ast.literal_eval(nested[2]))
        kinds = [each for kind in kinds for each in _within(kind, "dict")[-1:]]
    elif value[:1] == "{" and (unknown := _unknown_option(kinds, errors)):
        return f"{key}: {unknown}"
    own = next(filter(OWN.match, re.split(r"(?:^| )- ", errors)), None)
    if own is not None:  # what a section itself has said
        return own
    null = bool({*map(_name, kinds)} & {*NULL}) and value.lower() in ("none", "nil", "")
    accepted = [each for each in kinds if _name(each) not in NULL]
    words = [_words(each) for each in accepted]
    if not words or None in words:
        return None
    given = _given(key, value, args)
    if len(given) > 1 and (written := _as_list(given, accepted)):
        return f"{key} (={' '.join(given)!r}): {written}"
    must = _joined([*filter(None, words), *["null"] * null])
    return f"{key} (={_shown(value)}) must be {must}{_hint(key, value, accepted, args)}"


def _hint(key: str, value: str, kinds: list[str], args: Sequence[str]) -> str:
    """Say what to write instead, where that is clear."""
    fractions = any(_name(kind) in FRACTIONS for kind in kinds)
    if fractions and value.endswith("%") and NUMBER.fullmatch(value[:-1].strip()):
        return f": write {float(value[:-1]) / 100:g}"
    if written := _as_list(value.replace(",", " ").split(), kinds):
        return f": {written}"
    if f"--{key}" in args and all(_name(kind) == "dict" for kind in kinds):
        return f": write --{key}.NAME {value}" * bool(NUMBER.fullmatch(value))
    return ""


def _as_list(given: Sequence[str], kinds: list[str]) -> str:
    """Say how a list is written, if some words can be one; else ""."""
    for kind in kinds:
        if _name(kind) not in ("list", "tuple"):
            continue
        pattern = r"[\w./-]+" if _within(kind, "list") == ["<class 'str'>"] else NUMBER
        if given and all(re.fullmatch(pattern, word) for word in given):
            return f"write '[{', '.join(given)}]'" if _fits(kind, len(given)) else ""
    return ""


def _fits(kind: str, count: int) -> bool:
    within = _within(kind, "tuple")
    return not within or "..." in within or len(within) == count


def _given(key: str, value: str, args: Sequence[str]) -> list[str]:
    """Return all words that were given as the value of an option."""
    if f"--{key}" not in args:
        return [value]
    words = []
    for word in args[[*args].index(f"--{key}") + 1 :]:
        if word.startswith("--"):
            break
        words.append(word)
    while len(words) > 1 and not NUMBER.fullmatch(words[-1]):  # such as a folder behind it
        words.pop()
    return words if words[:1] == [value] else [value]


def _unknown_option(kinds: list[str], errors: str) -> str | None:
    """Say which option of a section is not known, and which there are."""
    found = re.search(r"Option '\w+' is not accepted", errors)
    known = [each for each in map(_fields, kinds) if each]
    return _with_known(found[0], known[0]) if found and known else None


def _with_known(said: str, known: Sequence[str]) -> str:
    return f"{said}: there are {', '.join(known)}"


def _words(kind: str, several: bool = False) -> str | None:
    """Return a type, as Python writes it, in words; None if there are none for it."""
    name = _name(kind)
    if name == "Literal":
        values = ast.literal_eval(f"[{kind.partition('[')[2]}")
        return f"one of {', '.join(map(str, values))}" if values[1:] else repr(values[0])
    if name in ("list", "tuple", "dict") and "[" in kind:
        return _collection(name, kind)
    if name in PLURALS:
        return PLURALS[name][several]
    known = _fields(kind)
    return f"a mapping of {', '.join(known)}" if known else None


def _collection(name: str, kind: str) -> str | None:
    within = _within(kind, name)
    if within[-1] == "typing.Any":
        return PLURALS[name][0]
    each = _words(within[-1], several=True) or _words(within[0], several=True)
    if name == "dict" or each is None:
        return each and f"a mapping of names to {each}"
    count = f"{len(within)} " * (name == "tuple" and "..." not in within)
    return f"a list of {count}{each}"


def _fields(kind: str) -> list[str]:
    """Return the fields of a dataclass; of anything else none."""
    path = re.fullmatch(r"<class '([\w.]+)'>", kind)
    found = path and locate(path[1])
    return [each.name for each in fields(found)] if is_dataclass(found) else []


def _name(kind: str) -> str:
    """Return the name of a type without its module and arguments: "list" of "list[float]"."""
    return re.sub(r"<class '(.*)'>", r"\1", kind).partition("[")[0].rpartition(".")[2]


def _within(kind: str, name: str) -> list[str]:
    """Return the arguments of a type of that name, such as "tuple"; else none."""
    inner = kind.partition("[")[2].removesuffix("]")
    return [_class(each) for each in _split(inner)] if _name(kind) == name else []


def _class(kind: str) -> str:
    """Return a type as Python writes it where it stands alone."""
    return kind if re.search(r"[<\[.]", kind) else f"<class '{kind}'>"


def _split(kinds: str) -> list[str]:
    """Return types that commas separate, but for those within brackets."""
    parts, depth = [""], 0
    for letter in kinds:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _shown(value: str) -> str:
    return value if NUMBER.fullmatch(value) or value[:1] in ("[", "{") else repr(value)


def _joined(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
