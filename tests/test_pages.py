"""The pages beside the code: the citation, the changelog, the glossary."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import gruclip

REPOSITORY = Path(__file__).parents[1]


def test_the_citation_names_the_software_its_version_and_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # those that the format requires
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == gruclip.__version__
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == ["Kanai", "Fujiwara", "Iwamura"]
    assert paper["year"] == 2017


def test_one_version_in_the_package_its_metadata_and_the_changelog() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == gruclip.__version__
    versions = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == ["Unreleased", gruclip.__version__]


def test_the_changelog_has_the_headings_of_its_form_alone() -> None:
    headings = set(re.findall(r"^### (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_python_in_the_readme_runs(tmp_path: Path) -> None:
    """All of it, from top to bottom, in one process, as a reader would type it."""
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


PAGES = [
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.splitlines()
]  # fmt: skip

#: A path in backticks that starts with a folder of the repository; what runs create lies below outputs/.
PATH = re.compile(r"`((?:conf|gruclip|scripts|tests)/[^`\s]*)`")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults_of(page: Path) -> list[str]:
    """Links to files or headings that do not exist, and paths that do not."""
    found = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    for path in PATH.findall(prose(page)):
        if not any(mark in path for mark in "<>*…{") and "..." not in path and "NAME" not in path:
            found += [] if (REPOSITORY / path).exists() else [path]
    return found


def test_there_are_pages_to_check() -> None:
    assert len(PAGES) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_link_is_dead_and_no_path_is_missing(page: Path) -> None:
    assert not faults_of(page)


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n[there](page.md#a-page) [gone](gone.md) [no heading](#none) `gruclip/native/gru.cpp`\n"
    )
    assert faults_of(page) == ["gone.md", "#none", "gruclip/native/gru.cpp"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, to_read = set[Path](), [REPOSITORY / "README.md"]
    while to_read:
        page = to_read.pop().resolve()
        if page not in reached:
            reached.add(page)
            to_read += [page.parent / link.partition("#")[0] for link in links(page) if ".md" in link]
    assert reached == {page.resolve() for page in PAGES}


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_bytes()) <= 8192
