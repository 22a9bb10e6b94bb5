"""A table of text cells as Markdown or LaTeX, a table of values as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", **{character: f"\\{character}" for character in "&%$#_{}"}}


@dataclass(frozen=True)
class Table:
    """What is printed (`cells`, text) and what it was made of (`values`); `notes` stand below."""

    title: str
    caption: str
    cells: pd.DataFrame
    values: pd.DataFrame
    notes: list[str]

    @property
    def settings(self) -> str:
        """What the caption begins with, without the data's name: which of several tables this is."""
        return self.caption.split(". ")[0].partition(", ")[2]


def markdown(tables: Sequence[Table]) -> str:
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    rows = [list(table.cells.columns), *table.cells.to_numpy(str).tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    head = f"**{table.title}.** {table.caption}"
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return "\n".join([head, "", lines[0], rule, *lines[1:], notes])


def latex(tables: Sequence[Table]) -> str:
    """``table`` environments; they need the package booktabs."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    rows = [" & ".join(map(_escape, row)) + r" \\" for row in table.cells.to_numpy(str).tolist()]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escape(' '.join([table.caption, *table.notes]))}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.cells.columns)}}}",
            r"\toprule",
            " & ".join(map(_escape, table.cells.columns)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text.replace("`", ""))


def csv(tables: Sequence[Table]) -> str:
    """One table of all values, a line for each row of each table; infinity is ``inf``, what does not exist is empty."""
    return pd.concat([table.values for table in tables]).to_csv(index=False, float_format="%.6g", lineterminator="\n")
