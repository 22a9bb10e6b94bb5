"""The rows of outputs/README.md, each of a kept table; ``python tests/report/results_page.py`` writes them anew.

A row names its table, experiment and setting, and shows some columns of that row there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

OUTPUTS = Path(__file__).parents[2] / "outputs"
PAGE = OUTPUTS / "README.md"

#: What the page calls otherwise than the tables' captions do.
CAPTION = {"in full": "epochs until the learning rate", "demo": "Python's pydoc topics"}
#: What only the page has.
OWN = ("experiment", "table")

Row = dict[str, str]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> Iterator[tuple[str, list[Row]]]:
    """The tables of a page in Markdown, each with the last other line before it."""
    for table in re.finditer(r"([^\n]*)\n\n((?:\|.*\n)+)", text):
        head, _, *rows = table[2].splitlines()
        yield table[1], [dict(zip(cells(head), cells(row), strict=True)) for row in rows]


def section(page: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    return page[page.index(f"\n## {heading}") :].removeprefix("\n").partition("\n## ")[0]


def is_of(experiment: str, caption: str) -> bool:
    return all(
        re.search(re.escape(CAPTION.get(words, words)) + r"(?![\d.]*\d)", caption) for words in experiment.split(", ")
    )


def kept(row: Row) -> list[Row]:
    """Of the table that a row of the page names the rows of its experiment and setting: one, if all is well."""
    (file,) = re.findall(r"\((paper/(?:table_|h200/)\w+\.md)\)", row["table"])
    return [
        other
        for caption, rows in tables((OUTPUTS / file).read_text(encoding="utf-8"))
        if is_of(row["experiment"], caption)
        for other in rows
        if other["setting"] == row["setting"]
    ]


def filled(page: str) -> str:
    """The page with the rows of what was found as the kept tables have them."""
    found = section(page, "What we found")
    for _, rows in tables(found):
        for row in rows:
            (source,) = kept(row)
            found = found.replace(_line(row), _line({name: row[name] if name in OWN else source[name] for name in row}))
    return page.replace(section(page, "What we found"), found)


def _line(row: Row) -> str:
    return f"| {' | '.join(row.values())} |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
