"""Tables of Markdown pages, which stand between two marker comments."""

from __future__ import annotations

import re
from collections.abc import Mapping


def fill(text: str, tables: Mapping[str, str], page: str) -> str:
    """Return the text of a page with tables put between their markers.

    Args:
        text: The page as it is: a table `name` stands between `<!-- name -->` and `<!-- /name -->`.
        tables: The tables, by name.
        page: What the page is called, for errors.

    Raises:
        ValueError: The markers of a table are missing, or not one of each in their order.
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        found = re.findall(rf"<!-- /?{name} -->", text)
        if found != [start, end]:
            raise ValueError(f"{page} must have {start} and {end}, once each; it has {found}")
        before, after = text.split(start)[0], text.split(end)[1]
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text
