"""conf/README.md says what the dataclasses, the configuration files and the code say."""

from __future__ import annotations

import re
from pathlib import Path

import conf_page
import pytest
import yaml

from gruclip import choices, config
from gruclip.cli import allowed
from gruclip.config import RunConfig

PAGE = conf_page.PAGE.read_text()
REPOSITORY = Path(__file__).parents[1]


def test_the_tables_are_those_that_the_command_writes() -> None:
    assert conf_page.rendered(PAGE) == PAGE, "run `python tests/conf_page.py`"


def test_a_changed_default_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf_page, "RunConfig", lambda: RunConfig(seed=7))
    assert conf_page.rendered(PAGE) != PAGE


def test_every_setting_has_a_meaning_and_stands_in_the_page() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)\|$", conf_page.settings(), re.MULTILINE))
    assert list(rows) == list(RunConfig().flat())
    assert all(row.split("|")[-1].strip() for row in rows.values())


def test_every_value_of_the_protocol_has_a_meaning() -> None:
    assert not [row for row in conf_page.protocol().splitlines() if re.search(r"\|\s*\|$", row)]


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("dataset", choices.DATASETS),
        ("optimizer", choices.OPTIMIZERS),
        ("schedule", config.SCHEDULES),
        ("logger", choices.LOGGERS),
    ],
)
def test_every_name_that_may_be_chosen_has_a_file(group: str, names: tuple[str, ...]) -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (conf_page.CONF / group).glob("*.yaml")}
    assert set(files) == set(names)
    if group != "logger":
        assert all(content["name"] == name for name, content in files.items())


def test_the_page_names_the_environment_variables_that_the_code_reads() -> None:
    code = "\n".join(path.read_text() for path in (REPOSITORY / "gruclip").rglob("*.py"))
    read = set(re.findall(r"environ\.get\(\"(\w+)\"", code)) | set(re.findall(r"\bGRUCLIP_[A-Z]+\b", code))
    read -= {"HYDRA_FULL_ERROR"}  # put back as it was
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE)) == read


def test_the_page_names_the_launchers_there_are() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Launchers")[2].partition("## ")[0], re.MULTILINE))
    assert named == set(allowed.LAUNCHERS)
    assert all(f'"hydra-{name}-launcher"' in pyproject for name in ("submitit", "joblib"))
