"""The page of results says nothing that the kept tables do not: its rows are rows of theirs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from results_page import OUTPUTS, OWN, PAGE, Row, filled, kept, section, tables

from gruclip.report import recalled

FOUND = [row for _, rows in tables(section(PAGE.read_text(encoding="utf-8"), "What we found")) for row in rows]


def test_the_page_has_rows() -> None:
    assert len(FOUND) > 40


@pytest.mark.parametrize("row", FOUND, ids=lambda row: f"{row['experiment']}, {row['setting']}")
def test_a_row_of_the_page_is_a_row_of_the_kept_table(row: Row) -> None:
    rows = kept(row)
    assert len(rows) == 1, f"{len(rows)} kept rows are of {row['experiment']}, {row['setting']}"
    shown = {name: cell for name, cell in row.items() if name not in OWN}
    assert shown.items() <= rows[0].items()


def test_the_rows_of_the_page_are_written_anew_from_the_kept_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page
    numbers = "| 1043 | 144 (138) |"  # of Figure 1's run, which no other run will change
    assert numbers in page
    assert filled(page.replace(numbers, "| 1042 | 7 (6.7) |")) == page


def recalled_of(dataset: str, setting: str) -> recalled.Recalled:
    parameter, value = setting.split()
    method = {"threshold": "gradient_clipping", "delta": "spectral_clipping"}[parameter]
    return recalled.VALUES[dataset][method, float(value)]


def test_the_papers_numbers_stand_beside_those_of_the_kept_tables() -> None:
    numbers = section(PAGE.read_text(encoding="utf-8"), "The paper's numbers and ours")
    of_tables = {
        file: {row["setting"]: row for row in next(tables((OUTPUTS / "paper" / file).read_text(encoding="utf-8")))[1]}
        for file in ("h200/cut_off.md", "table_1.md", "table_2.md")
    }
    words, music = (rows for _, rows in tables(numbers))
    assert [len(words), len(music)] == [len(recalled.VALUES[dataset]) for dataset in ("ptb", "nottingham")]
    for row in words:
        setting, success, ours, loss, our_loss = row.values()
        assert recalled_of("ptb", setting) == (success, loss)
        assert ours == of_tables["h200/cut_off.md"][setting]["success"]
        assert our_loss == of_tables["table_1.md"][setting]["test perplexity"]
    for setting, *shown in (list(row.values()) for row in music):
        ours = of_tables["table_2.md"][setting]
        theirs = recalled_of("nottingham", setting)
        assert shown == [theirs.success, ours["success"], theirs.loss, ours["validation loss"]]


def test_the_table_of_runs_that_were_cut_off_is_what_the_code_beside_it_prints() -> None:
    page = (OUTPUTS / "paper" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=OUTPUTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout == (OUTPUTS / "paper" / "h200" / "cut_off.md").read_text(encoding="utf-8")
