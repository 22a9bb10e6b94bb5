"""Checkpoints: tensors and a run's progress in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gruclip.errors import UserError


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write `tensors`, with `progress` as JSON in the header."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata={"progress": json.dumps(progress)})
    os.replace(partial, path)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress of a checkpoint; `UserError` where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(file.metadata()["progress"])
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint; has the run finished an epoch?") from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({error}); remove it to start the run anew") from None
