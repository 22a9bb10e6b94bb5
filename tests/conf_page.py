"""The generated parts of conf/README.md; ``python tests/conf_page.py`` writes them into the page.

Settings come from the dataclasses of `gruclip.config`, options from the files of conf/, the protocol from its
config.yaml.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from gruclip.choices import CELLS
from gruclip.config import NOT_IDENTITY, RunConfig
from gruclip.spectral import ALGORITHMS

CONF = Path(__file__).parents[1] / "conf"
PAGE = CONF / "README.md"

#: Rules that are no field's own: one depends on another setting, the other's names stand with the algorithms.
OTHER_RULES = {
    "optimizer.algorithm": f"one of {', '.join(ALGORITHMS)}",
    "optimizer.delta": "a number inside (0, limit of `model.cell`): "
    + ", ".join(f"{cell.bias_free_limit:g} of {name}" for name, cell in CELLS.items()),
}
TYPES = {int: "whole number", float: "number", str: "word", tuple[str, ...]: "words"}


#: YAML's words for Python's.
WORDS = {"None": "null", "True": "true", "False": "false"}


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    assert not any("|" in cell for line in lines for cell in line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: Any) -> str:
    """A value as one types it."""
    if value is None:
        return "`null`"
    return f"`{','.join(map(str, value))}`" if isinstance(value, list | tuple) else f"`{value}`"


# -- settings -----------------------------------------------------------------------------------------


def settings() -> str:
    return table(["setting", "type", "default", "allowed", "meaning"], _setting_rows(RunConfig(), ""))


def _setting_rows(group: Any, prefix: str) -> list[list[str]]:
    rows = []
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        name, value = f"{prefix}{field.name}", getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            rows += _setting_rows(value, f"{name}.")
            continue
        rule = field.metadata["rule"]
        allowed = OTHER_RULES.get(name) or (rule.right if rule else "any")
        meaning = field.metadata["meaning"] + (" *" if name in NOT_IDENTITY else "")
        rows.append([f"`{name}`", _type(hints[field.name]), code(value), allowed, meaning])
    return rows


def _type(hint: Any) -> str:
    parts = [hint] if hint in TYPES else list(typing.get_args(hint))
    (kind,) = (TYPES[part] for part in parts if part is not type(None))
    return f"{kind} or null" if type(None) in parts else kind


# -- options of the groups ----------------------------------------------------------------------------


def options() -> str:
    rows = []
    for folder in sorted({path.parent for path in CONF.glob("**/*.yaml")} - {CONF}):
        group = folder.relative_to(CONF).as_posix()
        for path in sorted(folder.glob("*.yaml")):
            rows.append([f"`{_typed(group)}={path.stem}`", first_comment(path), _sets(path)])
    return table(["option", "what it is", "sets"], rows)


def _typed(group: str) -> str:
    return f"+{group}" if group in ("experiment", "sweep") else group


def first_comment(path: Path) -> str:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# "), f"{path}: should start with a comment that says what it is"
    return lines[0].removeprefix("# ").rstrip(".")


def _sets(path: Path) -> str:
    """The settings in an option's file, as the file gives them; of a sweep those outside its grids."""
    content = yaml.safe_load(path.read_text())
    whole = "@package _global_" in path.read_text()
    prefix = "" if whole else f"{path.parent.relative_to(CONF).as_posix().replace('/', '.')}."
    chosen = [one for one in content.pop("defaults", []) if isinstance(one, str)]
    groups = [one for one in yaml.safe_load(path.read_text()).get("defaults", []) if isinstance(one, dict)]
    parts = [f"all of `{one}`" for one in chosen]
    parts += [f"`{key.removeprefix('override /')}={value}`" for one in groups for key, value in one.items()]
    for name in ("hydra", "protocol", "_target_"):
        content.pop(name, None)
    parts += [f"`{prefix}{name}={WORDS.get(repr(value), value)}`" for name, value in _flat(content)]
    return ", ".join(parts)


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        pair
        for name, value in content.items()
        for pair in (_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)])
    ]


# -- the protocol -------------------------------------------------------------------------------------


def protocol() -> str:
    """Each value of ``protocol``: default and meaning from config.yaml, and what the experiments' files put there."""
    experiments = {
        path.stem: dict(_flat(yaml.safe_load(path.read_text()).get("protocol", {})))
        for path in sorted((CONF / "experiment").glob("*.yaml"))
    }
    with_own = {name: own for name, own in experiments.items() if own}
    meanings = _comments((CONF / "config.yaml").read_text())
    rows = [
        [f"`protocol.{name}`", code(value), *(code(own.get(name, value)) for own in with_own.values()), meanings[name]]
        for name, value in _flat(yaml.safe_load((CONF / "config.yaml").read_text())["protocol"])
    ]
    return table(["value", "default", *(f"`{name}`" for name in with_own), "meaning"], rows)


def _comments(text: str) -> dict[str, str]:
    """The comment behind each line of the block ``protocol``, by its dotted name."""
    block = text.partition("\nprotocol:\n")[2].partition("\n\n")[0]
    comments, parent = {}, ""
    for line in block.splitlines():
        match = re.fullmatch(r"( +)(\w+):(.*?)(?:  # (.*))?", line)
        assert match, line
        indent, name, value, comment = match.groups()
        if not value.strip():
            parent = f"{name}."
        else:
            comments[name if len(indent) == 2 else f"{parent}{name}"] = comment or ""
    return comments


# -- the page -----------------------------------------------------------------------------------------

PARTS = {"settings": settings, "options": options, "protocol": protocol}


def rendered(page: str) -> str:
    """The page with every part between ``<!-- NAME: generated -->`` and ``<!-- end -->`` made anew."""
    for name, render in PARTS.items():
        pattern = rf"(<!-- {name}: generated -->\n).*?(<!-- end -->)"
        text = render()
        page, count = re.subn(pattern, rf"\1\n{text}\n\n\2", page, flags=re.DOTALL)
        assert count == 1, f"{PAGE}: should have one part {name}"
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
