"""The picture of a tune: keys over time steps."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gruclip.data.midi import LOWEST
from gruclip.report import style


def piano_roll(roll: Tensor, prompt_steps: int, title: str, path: Path) -> list[Path]:
    """Draw a piano roll (time steps, 88) to `path` with ``.png``; the first `prompt_steps` were given."""
    sounding = roll.any(0).nonzero().flatten()
    low, high = (int(sounding.min()), int(sounding.max())) if len(sounding) else (27, 63)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        steps, keys = (axis.tolist() for axis in torch.nonzero(roll, as_tuple=True))
        given = [step < prompt_steps for step in steps]
        colours = ["#999999" if one else "#0072B2" for one in given]
        axes.bar(steps, 0.8, 1.0, [key + LOWEST - 0.4 for key in keys], align="edge", color=colours, linewidth=0)
        axes.set_xlim(0, len(roll))
        axes.set_ylim(low + LOWEST - 1.5, high + LOWEST + 1.5)
        axes.set_xlabel("time step" + (f" (grey: the {prompt_steps} that were given)" if prompt_steps else ""))
        axes.set_ylabel("MIDI note number")

    return style.save(draw, title, 2.0, path, ("png",))
