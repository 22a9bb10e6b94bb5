"""The records of a run's folder read back: configuration and summary. Nothing in them is believed unchecked."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gruclip.config import RunConfig
from gruclip.errors import ConfigError, UserError

yaml: Any
try:
    yaml = importlib.import_module("yaml")
except ImportError:  # a machine with torch and little else: config.yaml is JSON there, which is YAML too
    yaml = None

FINISHED = ("success", "failed", "diverged")
STATUSES = (*FINISHED, "unfinished")

#: What can be done about a record that is damaged: in general, and for one that is made from the others.
MOVE_AWAY = "move the folder away to run it anew"
WRITTEN_ANEW = "remove that file, and the command that made the run writes it anew"

#: Levels that the YAML loader is trusted with; a configuration has two.
MAX_LEVELS = 2000

#: C's parser, where PyYAML has it, is ten times faster; both build plain data only.
_YAML_LOADER: Any = None if yaml is None else getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration of a run folder, and its ``identity`` and ``data_sha256``.

    Raises `UserError` where there is none, and where its settings are not those that its identity was made of.
    """
    path = Path(folder) / "config.yaml"
    if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        raise UserError(f"{folder}: not a run's folder (no config.yaml); give one below outputs/")
    settings = read_yaml(path)
    extra = {name: settings.pop(name, None) for name in ("identity", "data_sha256")}
    try:
        config = RunConfig.from_dict(settings)
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from None
    for name, value in extra.items():
        if not isinstance(value, str):
            raise UserError(f"{path}: not a run's configuration (no {name}); {MOVE_AWAY}")
    if config.identity(extra["data_sha256"]) != extra["identity"]:
        raise UserError(
            f"{path}: altered after the run was begun (its settings are not those of its identity "
            f"{extra['identity'][:12]}); put back what was there, or {MOVE_AWAY}"
        )
    return config, extra


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json``, with "inf" and "nan" as floats again; its status is one of `STATUSES`."""
    path = Path(folder) / "summary.json"
    content = read_json(path, WRITTEN_ANEW)
    if content.get("status") not in STATUSES:
        raise UserError(
            f"{path}: status={content.get('status')}: should be one of {', '.join(STATUSES)}; {WRITTEN_ANEW}"
        )
    return {name: float(value) if value in ("inf", "nan") else value for name, value in content.items()}


def read_environment(folder: Path) -> dict[str, Any]:
    """``environment.json``, with versions by name and a list of what was before, where it has these."""
    path = Path(folder) / "environment.json"
    remedy = "remove that file, and nothing is known of what the run was trained with until now"
    content = read_json(path, remedy)
    if not isinstance(content.get("versions", {}), dict) or not isinstance(content.get("before", []), list):
        raise UserError(f"{path}: not a record of gruclip's; {remedy}")
    return content


def read_json(path: Path, remedy: str = MOVE_AWAY) -> dict[str, Any]:
    """A JSON record; `UserError` where it cannot be read or is none, with the `remedy` for a damaged one."""
    text = _text(path, remedy)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({_first_line(error)}); {remedy}") from None
    except RecursionError:
        raise UserError(f"{path}: damaged (nested too deeply); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a record of gruclip's; {remedy}")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML record of plain data; `UserError` where it cannot be read or is none."""
    text = _text(path)
    # Each level takes one of these characters, and the C loader recurs: too many levels would end the process.
    if sum(map(text.count, "[{-?:")) > MAX_LEVELS:
        raise UserError(f"{path}: damaged (nested too deeply); {MOVE_AWAY}")
    try:
        content = _parsed(path, text)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: damaged ({_first_line(error)}); {MOVE_AWAY}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: not a run's configuration; {MOVE_AWAY}")
    return content


def _parsed(path: Path, text: str) -> Any:
    """Raises ValueError where it is no YAML."""
    if yaml is None:
        if not text.startswith("{"):
            raise UserError(f"{path}: cannot be read without PyYAML; install that")
        return json.loads(text)
    try:
        return yaml.load(text, Loader=_YAML_LOADER)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise ValueError(_first_line(error)) from None


def yaml_text(content: Mapping[str, Any]) -> str:
    """Plain data as YAML; without PyYAML as JSON, in the form that YAML reads as the same."""
    if yaml is not None:
        return str(yaml.safe_dump(dict(content), sort_keys=False))
    text = json.dumps(content, indent=2, ensure_ascii=True) + "\n"
    # YAML's numbers have a point before the exponent.
    return re.sub(r"(?<=: )(-?\d+)(?=e[-+]\d)", r"\1.0", text)


def _text(path: Path, remedy: str = MOVE_AWAY) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        other = remedy if isinstance(error, FileNotFoundError | IsADirectoryError) else "mend its permissions"
        raise UserError(f"{path}: cannot be read ({error.strerror}); {other}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged (byte {error.start} is not UTF-8); {remedy}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def strict(value: Any) -> Any:
    """Non-finite floats as the strings "inf" and "nan", which every JSON reader takes."""
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    return value
