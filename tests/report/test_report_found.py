"""The page of results says nothing that the kept tables do not: its rows are rows of theirs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gruclip.report import recalled

OUTPUTS = Path(__file__).parents[2] / "outputs"

#: What the page calls otherwise than the tables' captions do.
CAPTION = {"in full": "epochs until the learning rate", "demo": "Python's pydoc topics"}

Row = dict[str, str]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> Iterator[tuple[str, list[Row]]]:
    """The tables of a page in Markdown, each with the last other line before it."""
    for table in re.finditer(r"([^\n]*)\n\n((?:\|.*\n)+)", text):
        head, _, *rows = table[2].splitlines()
        yield table[1], [dict(zip(cells(head), cells(row), strict=True)) for row in rows]


def found() -> list[Row]:
    page = (OUTPUTS / "README.md").read_text(encoding="utf-8")
    section = page[page.index("\n## What we found") : page.index("\n## Which runs there are")]
    return [row for _, rows in tables(section) for row in rows]


def is_of(experiment: str, caption: str) -> bool:
    return all(
        re.search(re.escape(CAPTION.get(words, words)) + r"(?![\d.]*\d)", caption) for words in experiment.split(", ")
    )


def test_the_page_has_rows() -> None:
    assert len(found()) > 40


@pytest.mark.parametrize("row", found(), ids=lambda row: f"{row['experiment']}, {row['setting']}")
def test_a_row_of_the_page_is_a_row_of_the_kept_table(row: Row) -> None:
    (file,) = re.findall(r"\((paper/(?:table_|h200/)\w+\.md)\)", row["table"])
    kept = [
        other
        for caption, rows in tables((OUTPUTS / file).read_text(encoding="utf-8"))
        if is_of(row["experiment"], caption)
        for other in rows
        if other["setting"] == row["setting"]
    ]
    assert len(kept) == 1, f"{len(kept)} rows of {file} are of {row['experiment']}, {row['setting']}"
    shown = {name: cell for name, cell in row.items() if name not in ("experiment", "table")}
    assert shown.items() <= kept[0].items()


def recalled_of(dataset: str, setting: str) -> recalled.Recalled:
    parameter, value = setting.split()
    method = {"threshold": "gradient_clipping", "delta": "spectral_clipping"}[parameter]
    return recalled.VALUES[dataset][method, float(value)]


def test_the_papers_numbers_stand_beside_those_of_the_kept_tables() -> None:
    page = (OUTPUTS / "README.md").read_text(encoding="utf-8")
    section = page[page.index("\n## The paper's numbers and ours") : page.index("\n## What we found")]
    kept = {
        file: {row["setting"]: row for row in next(tables((OUTPUTS / "paper" / file).read_text(encoding="utf-8")))[1]}
        for file in ("h200/cut_off.md", "table_1.md", "table_2.md")
    }
    words, music = (rows for _, rows in tables(section))
    assert [len(words), len(music)] == [len(recalled.VALUES[dataset]) for dataset in ("ptb", "nottingham")]
    for row in words:
        setting, success, ours, loss, our_loss = row.values()
        assert recalled_of("ptb", setting) == (success, loss)
        assert ours == kept["h200/cut_off.md"][setting]["success"]
        assert our_loss == kept["table_1.md"][setting]["test perplexity"]
    for setting, *numbers in (list(row.values()) for row in music):
        ours = kept["table_2.md"][setting]
        theirs = recalled_of("nottingham", setting)
        assert numbers == [theirs.success, ours["success"], theirs.loss, ours["validation loss"]]


def test_the_table_of_runs_that_were_cut_off_is_what_the_code_beside_it_prints() -> None:
    page = (OUTPUTS / "paper" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=OUTPUTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout == (OUTPUTS / "paper" / "h200" / "cut_off.md").read_text(encoding="utf-8")
