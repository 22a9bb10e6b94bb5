"""What a run shows while it trains: a live table where there is a terminal, a plain line an epoch where not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gruclip.rules import plural

REFRESH_SECONDS = 0.25

#: Without a terminal a run says after so long how fast it is, if its first epoch has not ended by then.
PACE_SECONDS = 10.0

#: Widths of the live table's columns beside the run's name, in characters.
COLUMNS = {"epoch": 5, "iteration": 13, "nats": 8, "gradient norm": 13, "spectral norm": 13, "left": 8}

#: What drawing raises where a terminal or a pipe is closed; SystemExit is rich's.
_GONE = (OSError, ValueError, SystemExit)

#: What a display can be told from another process.
SHOWN = ("note", "start", "step", "epoch", "finish")


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
    told_pace: bool = False

    def pace(self) -> float | None:
        """Seconds an iteration so far; None before the second one."""
        if self.first_step is None or self.step <= self.first_step:
            return None
        return (time.monotonic() - self.started) / (self.step - self.first_step)

    def seconds_left(self) -> float | None:
        """To the end at the pace so far; None where the end is not known."""
        pace = self.pace()
        return None if self.total_steps is None or pace is None else max(0.0, pace * (self.total_steps - self.step))

    def seconds_in_all(self) -> float:
        return time.monotonic() - self.started + (self.seconds_left() or 0.0)

    def remaining(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else clock(seconds)


def clock(seconds: float) -> str:
    """h:mm:ss"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Display:
    """Shows `total` runs, those under way together in one table. ``quiet`` shows nothing; `ended` is called with the
    folder of each run that has ended."""

    def __init__(
        self,
        total: int,
        quiet: bool = False,
        console: Console | None = None,
        ended: Callable[[Path], object] | None = None,
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet, self._ended = quiet, ended
        self.total, self.done = total, 0
        self.rows: dict[str, _Row] = {}
        self._taken: list[float] = []  #: seconds of the runs that were trained here to their end
        self._next_refresh = 0.0
        self._live: Live | None = None
        if self.console.is_terminal and not quiet:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._show(self._live.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._show(self._live.stop)

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw; where that fails the reader or the terminal is gone: show nothing any more, and let training go on."""
        try:
            draw()
        except _GONE:
            live, self.quiet, self._live = self._live, True, None
            if live is not None:
                with suppress(Exception, SystemExit):  # it may have stopped half-way in its start
                    live.stop()  # gives back what it had put in the place of stdout and stderr

    def show(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """What a `RemoteDisplay` was told."""
        if method not in SHOWN:
            raise AttributeError(method)
        getattr(self, method)(*arguments, **named)

    def note(self, text: str) -> None:
        if not self.quiet:
            self._show(lambda: self.console.print(text, markup=False, emoji=False, soft_wrap=True))

    def start(self, name: str, steps_per_epoch: int, total_steps: int | None) -> None:
        """A run begins or goes on; called again at each epoch."""
        if name not in self.rows:
            self.rows[name] = _Row(Path(name).name, steps_per_epoch, total_steps)
            length = "until its schedule ends" if total_steps is None else plural(total_steps, "iteration")
            self.note(f"[{self.done + len(self.rows)}/{self.total}] {name}: {length}")

    def step(self, name: str, *, epoch: int, step: int, loss: float, grad_norm: float, spectral_norm: float) -> None:
        """Called every iteration; draws at most four times a second."""
        row = self.rows[name]
        row.epoch, row.step, row.loss, row.grad_norm, row.spectral_norm = epoch, step, loss, grad_norm, spectral_norm
        if row.first_step is None:
            row.first_step, row.started = step, time.monotonic()
        if self._live is not None and time.monotonic() >= self._next_refresh:
            self._next_refresh = time.monotonic() + REFRESH_SECONDS
            live, table = self._live, self._table()
            self._show(lambda: live.update(table, refresh=True))
        elif self._live is None and not row.told_pace and time.monotonic() - row.started >= PACE_SECONDS:
            self._tell_pace(row)

    def _tell_pace(self, row: _Row) -> None:
        pace, remaining = row.pace(), row.remaining()
        if pace is not None:
            row.told_pace = True
            left = f", {remaining} left" if remaining else ""
            self.note(f"  {row.label}: {pace:.3g} s an iteration, {clock(pace * row.steps_per_epoch)} an epoch{left}")

    def epoch(self, name: str, row: Mapping[str, Any]) -> None:
        """An epoch has ended: its row of ``epochs.csv``."""
        remaining = self.rows[name].remaining()
        self.rows[name].told_pace = True
        self.note(
            f"  {self.rows[name].label}: epoch {row['epoch']}, train {row['train_loss']:.4f}, "
            f"valid {row['valid_loss']:.4f} nats, gradient norm {row['grad_norm_mean']:.3g} "
            f"(largest {row['grad_norm_max']:.3g}), values clipped {row['values_clipped']}"
            + (f", {remaining} left" if remaining else "")
        )

    def finish(self, name: str, status: str, message: str) -> None:
        row = self.rows.pop(name, None)
        self.done += 1
        if row is not None:
            self._taken.append(row.seconds_in_all())
        label = row.label if row is not None else name
        self.note(f"  {label}: {status}" + (f" ({message})" if message else ""))
        if self._ended is not None:
            self._ended(Path(name))

    def _remaining(self) -> str:
        """Time to the end of all runs, h:mm:ss, if those that wait take as long as the others; empty if not known."""
        left = [row.seconds_left() for row in self.rows.values()]
        known = [seconds for seconds in left if seconds is not None]
        if len(known) < len(left) or not left:
            return ""
        waiting = self.total - self.done - len(left)
        taken = [*self._taken, *(row.seconds_in_all() for row in self.rows.values())]
        return clock((sum(known) + waiting * sum(taken) / len(taken)) / len(left))

    def _table(self) -> Table:
        remaining = self._remaining()
        title = f"{self.done} of {self.total} runs done" + (f", {remaining} left" if remaining else "")
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=True)
        # The run's name gives way, the numbers do not.
        table.add_column("run", overflow="ellipsis", no_wrap=True, ratio=1)
        for heading, width in COLUMNS.items():
            table.add_column(heading, justify="right", no_wrap=True, min_width=width, max_width=width)
        for row in self.rows.values():
            iteration = f"{row.step}" + (f"/{row.total_steps}" if row.total_steps is not None else "")
            numbers = f"{row.loss:.4f}", f"{row.grad_norm:.3g}", f"{row.spectral_norm:.4f}"
            table.add_row(Text(row.label), str(row.epoch), iteration, *numbers, row.remaining())
        return table


class RemoteDisplay:
    """Hands everything to a `Display` in another process by `send`, `step` only as often as that draws."""

    def __init__(self, send: Callable[[str, tuple[Any, ...], dict[str, Any]], object]) -> None:
        self._send = send
        self._next = 0.0

    def step(self, *arguments: Any, **named: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH_SECONDS
            self._send("step", arguments, named)

    def __getattr__(self, method: str) -> Callable[..., None]:
        if method not in SHOWN:
            raise AttributeError(method)

        def show(*arguments: Any, **named: Any) -> None:
            self._send(method, arguments, named)

        return show


#: What a run shows itself on.
AnyDisplay = Display | RemoteDisplay
