"""Checkpoints: tensors and a run's progress in one safetensors file that says whose it is and proves that it is whole.

The header holds, as JSON, the run's identity, which of its checkpoints this is, the progress, and a SHA-256 of all of
it: of those three and, in the order of their names, of each tensor's name, dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gruclip.errors import UserError
from gruclip.runs.files import sync_folder, told_by_name, write_whole

#: The entry of a safetensors file's metadata that holds all of ours, as JSON.
HEADER = "gruclip"


class Checkpoint(NamedTuple):
    tensors: dict[str, Tensor]
    progress: dict[str, Any]


class DamagedCheckpoint(UserError):
    """A checkpoint is not what was written: cut, altered, or another run's."""


def write_checkpoint(
    path: Path, identity: str, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], keep: bool
) -> None:
    """Write `tensors`, with `progress` as JSON in the header; `keep` what was there as `before(path)`."""
    with told_by_name(path):
        path.parent.mkdir(exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"identity": identity, "which": path.stem, "progress": progress}
    # One entry: safetensors writes several in an order that changes from one process to the next.
    content = save(whole, {HEADER: json.dumps({**header, "sha256": _digest(header, whole)})})
    if keep and path.exists():
        # By a second name for the same file, so that one of the two is there at every moment.
        second = path.with_name(f".{before(path).name}.partial")
        with told_by_name(path):
            with suppress(FileNotFoundError):
                second.unlink()
            os.link(path, second)
            os.replace(second, before(path))
            # Of two names for one file, as a kill between these lines can leave them, a rename removes neither.
            with suppress(FileNotFoundError):
                second.unlink()
            sync_folder(path.parent)
    write_whole(path, content)


def before(path: Path) -> Path:
    """Where the checkpoint that was written before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def read_checkpoint(path: Path, identity: str) -> Checkpoint:
    """Tensors and progress of a checkpoint of the run `identity`.

    Raises `DamagedCheckpoint` where the file is not what was written for this run, and `UserError` where there is none
    or it cannot be read.
    """
    try:
        path.open("rb").close()  # safetensors tells a missing permission from a missing file by its text only
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            header = json.loads((file.metadata() or {})[HEADER])
        progress, digest, found = header["progress"], header["sha256"], header["identity"]
        which, actual = header["which"], _digest(header, tensors)
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedCheckpoint(f"{path}: a link to nothing is in the place of the checkpoint") from None
        raise UserError(f"{path}: there is no such checkpoint; has the run finished an epoch?") from None
    except IsADirectoryError:
        raise DamagedCheckpoint(f"{path}: a folder is in the place of the checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); mend its permissions") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        cause = f"no {error} in its header" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DamagedCheckpoint(f"{path}: the checkpoint is damaged ({cause})") from None
    if digest != actual:
        raise DamagedCheckpoint(f"{path}: the checkpoint is damaged (its SHA-256 is not the one in its header)")
    if found != identity or which != path.stem.removesuffix(".before"):
        whose = "this run" if found == identity else f"another run ({found[:12]}, here {identity[:12]})"
        raise DamagedCheckpoint(f"{path}: the checkpoint is {which} of {whose}")
    return Checkpoint(tensors, progress)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    content = {name: header[name] for name in ("identity", "which", "progress")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
