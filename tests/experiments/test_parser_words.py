"""What jsonargparse says of a command line, in words; each is what the parser itself has said."""

from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt

from branchprune import PruneError
from branchprune.experiments.parsed import parsed
from branchprune.experiments.parser_words import in_words

KINDS: dict[str, Any] = {
    "keep": float | dict[str, float] | None,
    "minutes": float | None,
    "target": dict[str, float] | None,
    "init_args": dict[str, Any],
    "mean": list[float] | None,
    "size": int | tuple[int, int] | None,
    "runtime": Literal["pytorch", "onnxruntime"] | None,
    "multiple_of": PositiveInt | Literal["auto"],
    "depth": NonNegativeInt,
    "share": OpenUnitInterval,
    "grey": bool,
    "models": list[Literal["a", "b"]],
    "names": list[str] | None,
    "odd": complex | dict[str, list[int]],
}


def refused(line: str) -> str:
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in KINDS.items():
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--exclude", action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("folder", type=Path)
    with pytest.raises(PruneError) as error:
        parsed(parser, line.split("|"))
    return str(error.value)


NUMBERS = "must be a number or a mapping of names to numbers"
MAPPING = "target (=0.5) must be a mapping of names to numbers: write --target.NAME 0.5"
SAID = {
    "f|--keep|half": f"keep (='half') {NUMBERS}",
    "f|--keep|50%": f"keep (='50%') {NUMBERS}: write 0.5",
    "f|--minutes|5|min": "--minutes takes one value, and 'min' is one too many",
    "f|--keep|None": "keep (='None') must be a number, a mapping of names to numbers or null",
    "f|--keep.conv|half": "keep.conv (='half') must be a number",
    "f|--keep": "--keep needs a value",
    "f|--minutes|nan": "minutes (='nan') must be a number",
    "f|--target|0.5": MAPPING,
    "f|--target=0.5": MAPPING,
    "f|--target|half": "target (='half') must be a mapping of names to numbers",
    "f|--target.macs|50%": "target.macs (='50%') must be a number: write 0.5",
    "f|--init_args|3": "init_args (=3) must be a mapping: write --init_args.NAME 3",
    "f|--mean|0.5": "mean (=0.5) must be a list of numbers: write '[0.5]'",
    "f|--mean|0.5|0.4|.3": "mean (='0.5 0.4 .3'): write '[0.5, 0.4, .3]'",
    "--mean|0.5|0.4|f": "mean (='0.5 0.4'): write '[0.5, 0.4]'",
    "f|--mean|1,2,3": "mean (='1,2,3') must be a list of numbers: write '[1, 2, 3]'",
    "f|--mean|grey": "mean (='grey') must be a list of numbers",
    "f|--names|conv": "names (='conv') must be a list of texts: write '[conv]'",
    "f|--size|9x9": "size (='9x9') must be a whole number or a list of 2 whole numbers",
    "f|--size|[1,2,3]": "size (=[1, 2, 3]) must be a whole number or a list of 2 whole numbers",
    "f|--size|9|9": "--size takes one value, not '9 9': a list is written '[9, 9]'",
    "f|--runtime|tensorrt": "runtime (='tensorrt') must be one of pytorch, onnxruntime",
    "f|--multiple_of|some": "multiple_of (='some') must be a whole number above 0 or 'auto'",
    "f|--depth|-1": "depth (=-1) must be a whole number of at least 0",
    "f|--depth|x": "depth (='x') must be a whole number of at least 0",
    "f|--share|2": "share (=2) must be a number between 0 and 1",
    "f|--grey|maybe": "grey (='maybe') must be true or false",
    "f|--models|c": "models (='c') must be a list",
    "f|--multiple-of|8": "--multiple-of is no option; the nearest is --multiple_of",
    "f|--multiple-of=8": "--multiple-of is no option; the nearest is --multiple_of",
    "f|--exclude|a|b": "--exclude takes one value: repeat it, --exclude a --exclude b",
    "f|--json|yes": "--json takes no value, and 'yes' is one too many",
    "f|more": "unrecognized arguments: more",
    "--json": "the following arguments are required: folder",
}


@pytest.mark.parametrize("line", SAID)
def test_a_wrong_value_is_told_in_words(line: str) -> None:
    assert refused(line) == SAID[line]


def test_what_has_no_words_stays_as_it_is() -> None:
    said = refused("f|--odd|x")
    assert said.startswith("odd: Does not validate") and "complex" in said and "\n" not in said
    assert in_words("odd: something else") == "odd: something else"


def test_what_argparse_says() -> None:
    line = "argument --jobs: invalid PositiveInt value: 'x'"
    assert in_words(line) == "jobs (='x') must be a whole number above 0"
