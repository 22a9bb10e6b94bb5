"""The equations of the projection's page and the code that names them."""

from __future__ import annotations

import re
from pathlib import Path

import gruclip.spectral

ROOM = Path(gruclip.spectral.__file__).parent


def test_the_code_names_every_equation_of_the_page_and_no_other() -> None:
    page = (ROOM / "README.md").read_text()
    numbered = [int(number) for number in re.findall(r"^    .*\((\d+)\)$", page, re.MULTILINE)]
    assert numbered == list(range(1, len(numbered) + 1))
    named: set[int] = set()
    for path in ROOM.glob("*.py"):
        docstring = path.read_text().split('"""')[1]
        spans = re.findall(r"\((\d+)\)(?: to \((\d+)\))?", docstring)
        named |= {number for first, last in spans for number in range(int(first), int(last or first) + 1)}
    assert named == set(numbered)
