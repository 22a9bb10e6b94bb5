"""The API page that pdoc makes of the docstrings: ``python -m pdoc gruclip`` shows it."""

from __future__ import annotations

import re
import warnings

import pdoc
import pytest

import gruclip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pages")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("gruclip", output_directory=folder)
    return (folder / "gruclip.html").read_text()


@pytest.mark.parametrize("name", gruclip.__all__)
def test_every_public_name_is_rendered_with_its_docstring(name: str, page: str) -> None:
    (section,) = re.findall(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert 'class="docstring"' in section


def test_the_overview_stands_above_the_names(page: str) -> None:
    overview = page.partition('<section class="module-info">')[2].partition("</section>")[0]
    assert "The projection" in overview
    assert ">jacobian_at_origin<" in overview
