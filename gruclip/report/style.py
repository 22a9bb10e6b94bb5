"""How every figure looks: one column of print wide, 7 pt type, the same colour for a method everywhere."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gruclip.errors import UserError
from gruclip.runs.files import write_whole

WIDTH = 3.3  #: inches, one column
#: Formats, and what keeps the date out of their files.
FORMATS: dict[str, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}

#: Okabe and Ito's colours, which those who do not see red and green apart can tell.
COLOURS = {
    "gradient_clipping": "#D55E00",
    "spectral_clipping": "#0072B2",
    "combined_clipping": "#009E73",
    "sgd": "#999999",
}

_SETTINGS: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 0.9,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "gruclip",
}


def save(draw: Callable[[Figure], None], title: str, height: float, path: Path, formats: Sequence[str]) -> list[Path]:
    """Draw a figure of one column's width and `height` inches and write it to `path` with each format's ending.

    No date goes into a file, so that the same runs give the same picture.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown:
        raise UserError(f"format {unknown[0]}: no such format of a figure; there are {', '.join(FORMATS)}")
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.suptitle("\n".join(textwrap.fill(line, 54) for line in title.splitlines()))
        draw(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [path.parent / f"{path.name}.{kind}" for kind in formats]
        for file, kind in zip(files, formats, strict=True):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, metadata=FORMATS[kind])
            write_whole(file.resolve(), drawn.getvalue())  # what a link names, and not in the link's place
    return files
