"""What a run shows while it trains: a live table where there is a terminal, a plain line an epoch where not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

REFRESH_SECONDS = 0.25

#: Widths of the live table's columns beside the run's name, in characters.
COLUMNS = {"epoch": 5, "iteration": 13, "nats": 8, "gradient norm": 13, "spectral norm": 13, "left": 8}


@dataclass
class _Row:
    """The latest numbers of one run."""

    label: str
    steps_per_epoch: int
    total_steps: int | None
    first_step: int | None = None
    started: float = field(default_factory=time.monotonic)
    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    spectral_norm: float = 0.0

    def remaining(self) -> str:
        """Time to the end at the pace so far, h:mm:ss; empty where the end is not known."""
        if self.total_steps is None or self.first_step is None or self.step <= self.first_step:
            return ""
        pace = (time.monotonic() - self.started) / (self.step - self.first_step)
        seconds = max(0, round(pace * (self.total_steps - self.step)))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class Display:
    """Shows `total` runs, those under way together in one table. ``quiet`` shows nothing."""

    def __init__(self, total: int, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.total, self.done = total, 0
        self.rows: dict[str, _Row] = {}
        self._next_refresh = 0.0
        self._live: Live | None = None
        if self.console.is_terminal and not quiet:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, emoji=False, soft_wrap=True)

    def start(self, name: str, steps_per_epoch: int, total_steps: int | None) -> None:
        """A run begins or goes on; called again at each epoch."""
        if name not in self.rows:
            self.rows[name] = _Row(Path(name).name, steps_per_epoch, total_steps)
            length = "until its schedule ends" if total_steps is None else f"{total_steps} iterations"
            self.note(f"[{self.done + len(self.rows)}/{self.total}] {name}: {length}")

    def step(self, name: str, *, epoch: int, step: int, loss: float, grad_norm: float, spectral_norm: float) -> None:
        """Called every iteration; draws at most four times a second."""
        row = self.rows[name]
        row.epoch, row.step, row.loss, row.grad_norm, row.spectral_norm = epoch, step, loss, grad_norm, spectral_norm
        if row.first_step is None:
            row.first_step, row.started = step, time.monotonic()
        if self._live is not None and time.monotonic() >= self._next_refresh:
            self._next_refresh = time.monotonic() + REFRESH_SECONDS
            self._live.update(self._table(), refresh=True)

    def epoch(self, name: str, row: Mapping[str, Any]) -> None:
        """An epoch has ended: its row of ``epochs.csv``."""
        remaining = self.rows[name].remaining()
        self.note(
            f"  {self.rows[name].label}: epoch {row['epoch']}, train {row['train_loss']:.4f}, "
            f"valid {row['valid_loss']:.4f} nats, gradient norm {row['grad_norm_mean']:.3g} "
            f"(largest {row['grad_norm_max']:.3g}), values clipped {row['values_clipped']}"
            + (f", {remaining} left" if remaining else "")
        )

    def finish(self, name: str, status: str, message: str) -> None:
        row = self.rows.pop(name, None)
        self.done += 1
        label = row.label if row is not None else name
        self.note(f"  {label}: {status}" + (f" ({message})" if message else ""))

    def _table(self) -> Table:
        table = Table(
            title=f"run {self.done + 1} of {self.total}", title_justify="left", box=None, pad_edge=False, expand=True
        )
        # The run's name gives way, the numbers do not.
        table.add_column("run", overflow="ellipsis", no_wrap=True, ratio=1)
        for heading, width in COLUMNS.items():
            table.add_column(heading, justify="right", no_wrap=True, min_width=width, max_width=width)
        for row in self.rows.values():
            iteration = f"{row.step}" + (f"/{row.total_steps}" if row.total_steps is not None else "")
            numbers = f"{row.loss:.4f}", f"{row.grad_norm:.3g}", f"{row.spectral_norm:.4f}"
            table.add_row(Text(row.label), str(row.epoch), iteration, *numbers, row.remaining())
        return table
