"""What a run shows: a live table where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from rich.console import Console

from gruclip.training import display as module
from gruclip.training.display import Display

EPOCH = {
    "epoch": 1,
    "lr": 1.0,
    "train_loss": 5.25,
    "valid_loss": 5.5,
    "grad_norm_mean": 1.2345,
    "grad_norm_max": 98.7,
    "values_clipped": 12,
}
RUN = "outputs/ptb/spectral_clipping,delta=0.2,seed=3"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    # The default of a row's start was bound when its class was made.
    monkeypatch.setattr(module._Row.__dataclass_fields__["started"], "default_factory", clock.monotonic)
    return clock


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, highlight=False)


def text(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())


def step(display: Display, number: int, run: str = RUN, epoch: int = 1) -> None:
    display.step(run, epoch=epoch, step=number, loss=5.4321, grad_norm=2.5, spectral_norm=1.8)


def test_without_a_terminal_a_run_is_a_line_at_its_start_at_each_epoch_and_at_its_end(clock):
    out = console(terminal=False)
    with Display(total=2, console=out) as display:
        display.start(RUN, steps_per_epoch=100, total_steps=200)
        for number in range(1, 101):
            step(display, number)
            clock.now += 1
        display.epoch(RUN, EPOCH)
        display.start(RUN, steps_per_epoch=100, total_steps=200)
        display.finish(RUN, "success", "")
    assert text(out).splitlines() == [
        f"[1/2] {RUN}: 200 iterations",
        "  spectral_clipping,delta=0.2,seed=3: 1 s an iteration, 0:01:40 an epoch, 0:03:09 left",
        "  spectral_clipping,delta=0.2,seed=3: epoch 1, train 5.2500, valid 5.5000 nats, gradient norm 1.23 "
        "(largest 98.7), values clipped 12, 0:01:41 left",
        "  spectral_clipping,delta=0.2,seed=3: success",
    ]


def test_a_run_says_once_and_without_a_terminal_alone_how_fast_it_is_if_its_first_epoch_takes_long(clock):
    pace = re.compile(r"an iteration, .* an epoch")
    for seconds, terminal, told in ((0.04, False, 0), (0.5, False, 1), (40.0, False, 1), (0.5, True, 0)):
        out = console(terminal)
        with Display(total=1, console=out) as display:
            display.start(RUN, 100, None)
            for number in range(1, 101):
                step(display, number)
                clock.now += seconds
            display.epoch(RUN, EPOCH)
            for number in range(101, 201):
                step(display, number, epoch=2)
                clock.now += seconds
        assert len(pace.findall(text(out))) == told, (seconds, terminal)
        assert terminal or "left" not in text(out)  # its end is not known


def test_the_time_left_is_of_this_session_s_pace_so_that_a_continued_run_tells_it_right(clock):
    display = Display(total=1, console=console(terminal=False))
    display.start(RUN, 100, 1000)
    assert display.rows[RUN].remaining() == ""
    step(display, 900)
    assert display.rows[RUN].remaining() == ""
    clock.now += 20
    step(display, 910)
    assert display.rows[RUN].remaining() == "0:03:00"


def test_a_run_without_a_known_end_shows_no_time_left(clock):
    out = console(terminal=False)
    display = Display(total=1, console=out)
    display.start(RUN, 100, None)
    step(display, 1)
    clock.now += 10
    step(display, 2)
    display.epoch(RUN, EPOCH)
    assert ": until its schedule ends" in text(out)
    assert "left" not in text(out)


def test_a_run_that_diverged_says_where(clock):
    out = console(terminal=False)
    display = Display(total=1, console=out)
    display.start(RUN, 100, 200)
    display.finish(RUN, "diverged", "loss nan at iteration 17")
    assert (
        text(out).splitlines()[-1].strip() == "spectral_clipping,delta=0.2,seed=3: diverged (loss nan at iteration 17)"
    )


def test_runs_are_counted_whether_they_follow_each_other_or_train_side_by_side(clock):
    out = console(terminal=False)
    display = Display(total=3, console=out)
    display.start("a/one", 10, 10)
    display.finish("a/one", "success", "")
    display.start("a/two", 10, 10)
    display.start("a/three", 10, 10)
    assert re.findall(r"\[\d/3\] a/\w+", text(out)) == ["[1/3] a/one", "[2/3] a/two", "[3/3] a/three"]


def test_in_a_terminal_the_table_shows_every_run_that_is_under_way(clock):
    out = console(terminal=True)
    with Display(total=2, console=out) as display:
        display.start(RUN, 100, 200)
        display.start("outputs/ptb/sgd", 100, None)
        step(display, 1)
        clock.now += 3
        step(display, 41, epoch=2)
        clock.now += 3
        step(display, 7, run="outputs/ptb/sgd")
        shown = text(out)
    assert "epoch" in shown
    row = next(line for line in reversed(shown.splitlines()) if "delta=0.2" in line)
    assert row.split()[1:] == ["2", "41/200", "5.4321", "2.5", "1.8000", "0:00:24"]
    assert next(line for line in reversed(shown.splitlines()) if line.startswith("sgd")).split()[1:3] == ["1", "7"]


def test_the_time_to_the_end_of_all_runs_is_shared_by_those_that_are_trained_side_by_side(clock):
    display = Display(total=6, console=console(terminal=False))
    for run in ("one", "two"):
        display.start(run, 100, 100)
        step(display, 1, run=run)
    clock.now += 10
    step(display, 11, run="one")  # 89 seconds left, of 99
    step(display, 11, run="two")
    # Two with 89 seconds and four that will take 99 each, two at a time.
    assert display._remaining() == "0:04:47"


def test_the_table_is_drawn_at_most_four_times_a_second(clock):
    out = console(terminal=True)
    with Display(total=1, console=out) as display:
        display.start(RUN, 100, 200)
        updates = []
        assert display._live is not None
        display._live.update = lambda table, refresh: updates.append(clock.now)  # type: ignore[method-assign]
        for number in range(1, 101):
            step(display, number)
            clock.now += 0.01
    assert len(updates) == 4


def test_without_a_terminal_no_iteration_is_printed(clock):
    out = console(terminal=False)
    with Display(total=1, console=out) as display:
        display.start(RUN, 100, 200)
        step(display, 1)
        display.epoch(RUN, EPOCH)
        before = text(out)
        for number in range(2, 50):
            step(display, number)
            clock.now += 1
    assert text(out) == before


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing_at_all(terminal, clock):
    out = console(terminal)
    with Display(total=1, quiet=True, console=out) as display:
        display.start(RUN, 100, 200)
        step(display, 1)
        display.epoch(RUN, EPOCH)
        display.note("finished before, skipped")
        display.finish(RUN, "success", "")
    assert text(out) == ""


def test_names_are_printed_as_they_are(clock):
    out = console(terminal=True)
    with Display(total=1, console=out) as display:
        display.start("outputs/[bold]a:smile:b", 10, 10)
        step(display, 1, run="outputs/[bold]a:smile:b")
        shown = text(out)
    line, *table = shown.splitlines()
    assert line == "[1/1] outputs/[bold]a:smile:b: 10 iterations"
    assert any(row.startswith("[bold]a:smile:b ") for row in table)


def test_the_terminal_is_left_in_order_when_training_is_interrupted(clock):
    out = console(terminal=True)
    display = Display(total=1, console=out)
    with contextlib.suppress(KeyboardInterrupt), display:
        display.start(RUN, 100, 200)
        step(display, 1)
        raise KeyboardInterrupt
    # The cursor, hidden while the table is live, is shown again.
    file = out.file
    assert isinstance(file, io.StringIO)
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")
