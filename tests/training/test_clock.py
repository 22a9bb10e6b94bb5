"""Every second of an iteration is booked to what it was spent on: so are the shares that Figure 2 shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gruclip.config import RunConfig
from gruclip.data import load
from gruclip.training import engine as module
from gruclip.training.engine import Engine
from gruclip.training.projections import Projections

#: Made longer by so many seconds than all the rest takes.
SLOWLY = 0.5


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(SLOWLY)
        return function(*arguments, **named)

    return slow


def seconds_of_an_iteration(**optimizer: object) -> dict[str, float]:
    settings = {"model": {"hidden_size": 8}, "trainer": {"bptt": 5, "batch_size": 3}, "optimizer": optimizer}
    engine = Engine([RunConfig.from_dict(settings)], load("pydoc"), torch.device("cpu"))
    engine.begin_epoch([1])
    engine.step(0, with_radius=False)
    engine.redone()
    return engine.clock.read()


@pytest.mark.parametrize(("optimizer", "part"), [
    ({"name": "gradient_clipping", "threshold": 5.0}, "clipping"),
    ({"name": "combined_clipping", "threshold": 5.0, "delta": 0.2}, "clipping"),
    ({"name": "spectral_clipping", "delta": 0.2}, "metrics"),
    ({"name": "sgd"}, "metrics"),
])  # fmt: skip
def test_the_gradient_s_norm_is_what_gradient_clipping_costs_and_else_a_metric(
    optimizer: dict[str, object], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "gradient_norms", slowed(module.gradient_norms))
    seconds = seconds_of_an_iteration(**optimizer)
    assert {name for name, taken in seconds.items() if taken >= SLOWLY} == {part}


@pytest.mark.parametrize("method", ["project", "redo", "adapt"])
def test_what_is_done_for_a_projection_is_clipping_redone_ones_and_wider_subspaces_too(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Projections, method, slowed(getattr(Projections, method)))
    seconds = seconds_of_an_iteration(name="spectral_clipping", delta=0.2)
    assert {name for name, taken in seconds.items() if taken >= SLOWLY} == {"clipping"}
