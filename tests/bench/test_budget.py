"""The budget's arithmetic against what the code does: operations and kernels counted, and the table in its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gruclip.bench import budget
from gruclip.bench.budget import H100, PTB, Shape
from gruclip.gru import gru_layer
from gruclip.spectral import clip_singular_values_deferred_, spectral_norm_deferred


class Kernels(TorchDispatchMode):
    """Counts the operations that compute or copy something: each is a kernel on a GPU, or more."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = {leaf.data_ptr() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        name = func.name().split("::")[1].split(".")[0]
        # Views and memory that is only handed out start nothing.
        views = func.is_view or name.startswith(("empty", "new_empty", "_reshape_alias", "_unsafe_view", "lift_fresh"))
        self.count += bool(made) and not views
        return result


def kernels_of_a_step(precision: str) -> tuple[int, int]:
    """Of the recurrence alone, forward and backward: what one more step takes."""
    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    counts = []
    for steps in (4, 5):
        x, h = torch.randn(2, steps, 3, 8).requires_grad_(), torch.zeros(2, 3, 8)
        weight_ih, weight_hh = (torch.randn(2, 24, 8, dtype=compute).requires_grad_() for _ in range(2))
        if precision != "bf16":
            weight_ih, weight_hh = weight_ih.float(), weight_hh.float()
        with Kernels() as forward:
            out = gru_layer(x, h, weight_ih, weight_hh, compute=compute)
        total = out.sum()
        with Kernels() as backward:
            torch.autograd.grad(total, x)
        counts.append((forward.count, backward.count))
    return counts[1][0] - counts[0][0], counts[1][1] - counts[0][1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_kernels_of_a_step_are_those_that_the_layer_starts(precision: str) -> None:
    assert kernels_of_a_step(precision) == budget.STEP_KERNELS[precision]


def test_the_projection_s_products_are_those_that_it_takes() -> None:
    weight, limit = torch.randn(1, 64, 64) / 8, torch.ones(1, dtype=torch.float64)
    for project, products, kernels in (
        (lambda: clip_singular_values_deferred_(weight, limit), budget.CLIP_PRODUCTS, budget.CLIP_KERNELS),
        (lambda: spectral_norm_deferred(weight), budget.MEASURE_PRODUCTS, budget.MEASURE_KERNELS),
    ):
        with FlopCounterMode(display=False) as counter:
            project()
        assert counter.get_total_flops() == products * 2 * 64**3
        with Kernels() as counted:
            project()
        assert counted.count == pytest.approx(kernels, rel=0.1)


def test_a_run_s_products_are_38_gflop_and_those_of_the_floor() -> None:
    lines = budget.budget(PTB, 1, "bf16", H100)
    operations = sum(line.operations for line in lines if line.phase != "clipping")
    assert operations == budget.products_of_an_iteration(PTB)
    assert operations == pytest.approx(38e9, rel=0.01)


def test_the_page_has_the_table_that_is_printed() -> None:
    assert budget.__doc__ is not None
    assert budget.table() in budget.__doc__
    page = Path(budget.__file__).with_name("gpu.md")
    assert budget.plan() in page.read_text()


def test_time_grows_with_the_runs_but_for_what_the_start_of_kernels_takes() -> None:
    shape = Shape(5, 2, 16, 50)
    one, many, more = (
        sum(budget.phases(budget.budget(PTB, runs, "bf16", H100), H100).values()) for runs in (1, 45, 90)
    )
    assert one > many / 45
    assert more == pytest.approx(2 * many, rel=0.01)
    # A small model's iteration is the start of its kernels.
    tiny = budget.budget(shape, 1, "fp32", H100)
    assert sum(budget.phases(tiny, H100).values()) == pytest.approx(sum(line.kernels for line in tiny) * H100.kernel)


def test_runs_that_are_not_clipped_are_measured_and_cost_less() -> None:
    seconds = [
        budget.phases(budget.budget(PTB, 18, "bf16", H100, clipped), H100)["clipping"] for clipped in (0, 10, 18)
    ]
    assert seconds == sorted(seconds)
    assert seconds[0] == pytest.approx(18 * 15 * 2 * 650**3 / 60e12)
