"""The records of a run's folder, written and read back: configuration, summary, and any JSON or YAML in it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gruclip.config import RunConfig
from gruclip.errors import UserError


def read_config(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration of a run folder, and its ``identity`` and ``data_sha256``."""
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder}: not a run's folder (no config.yaml); give one below outputs/")
    settings = read_yaml(path)
    extra = {name: settings.pop(name, None) for name in ("identity", "data_sha256")}
    return RunConfig.from_dict(settings), extra


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json``, with "inf" and "nan" as floats again."""
    content = read_json(Path(folder) / "summary.json")
    return {name: float(value) if value in ("inf", "nan") else value for name, value in content.items()}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the run's folder to run it anew") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a run's record; remove the run's folder to run it anew")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a run's configuration")
    return content


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def strict(value: Any) -> Any:
    """Non-finite floats as the strings "inf" and "nan", which every JSON reader takes."""
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    return value
