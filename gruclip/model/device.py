"""Where a run computes and in which numbers: its device, its threads, the dtype of its products."""

from __future__ import annotations

import torch

from gruclip.config import RunConfig
from gruclip.errors import ConfigError

#: Of the products' operands. ``fp64`` computes everything in it, ``tf32`` is float32 that a GPU's products round.
COMPUTE_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}

#: Hidden size up to which a run on the CPU takes one thread.
SMALL_MODEL = 256


def round_products(precision: str) -> None:
    """Use TF32 for a GPU's float32 products, cuDNN's among them, only if `precision` is tf32, and sum bf16 products in
    float32: torch's defaults are TF32 in cuDNN, and partial sums in bf16."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    matmul.allow_bf16_reduced_precision_reduction = False


def choose_device(config: RunConfig) -> torch.device:
    """The device that a configuration asks for; `ConfigError` where it, or the precision on it, is unavailable."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ConfigError("device=cuda: torch finds no CUDA device here; take device=cpu or auto")
    device = torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
    if config.precision == "tf32" and device.type == "cpu":
        raise ConfigError("precision=tf32: not on the CPU, which supports fp32, bf16 and fp64")
    return device


def choose_threads(config: RunConfig, device: torch.device) -> int:
    """Threads of one run's products, a rule of its shape alone: one for a small model, whatever trains beside it.

    Two threads make an iteration of 200 units hardly faster, and a stack of such runs uses the cores better with
    a process for each. Since the number of threads can change the last bits of a sum, it must not depend on
    whether a run is alone.
    """
    if device.type == "cpu" and config.model.hidden_size <= SMALL_MODEL:
        return 1
    return torch.get_num_threads()
