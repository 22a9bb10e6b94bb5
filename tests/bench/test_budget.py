"""The budget's arithmetic against what the code does: operations and kernels counted, and the table in its page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gruclip.bench import budget
from gruclip.bench.budget import H100, PTB, Shape
from gruclip.bench.floor import gru_work, output_work
from gruclip.gru import gru_layer
from gruclip.kernels import compiled, fused, products, program
from gruclip.spectral import (
    SubspaceState,
    algorithm_for,
    clip_singular_values_deferred_,
    deferred,
    spectral_norm_deferred,
)
from gruclip.spectral.deferred import MIN_SIZE_PROGRAM
from gruclip.spectral.program import COLUMNS, ROOT, SIGN


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

    def launch(self, *args: Any, **kwargs: Any) -> None:
        """One of Triton's, of which the dispatcher knows nothing."""
        self.count += 1
        with _disable_current_modes():
            fused_launch(*args, **kwargs)


fused_launch = fused.launch


def kernels_of_a_layer(precision: str, steps: int) -> tuple[int, int]:
    """Forward and backward, with Triton's kernels."""
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(precision, torch.float32)
    held = torch.float64 if precision == "fp64" else torch.float32
    x, h = torch.randn(2, steps, 3, 8, dtype=held).requires_grad_(), torch.zeros(2, 3, 8, dtype=held)
    weight_ih, weight_hh = (torch.randn(2, 24, 8, dtype=dtype).requires_grad_() for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "INTERPRETED", True)
        patch.setattr(products, "has_bf16_products", lambda _: True)
        with Kernels() as forward:
            patch.setattr(fused, "launch", forward.launch)
            out = gru_layer(x, h, weight_ih, weight_hh, compute=dtype)
        total = out.sum()
        with Kernels() as backward:
            patch.setattr(fused, "launch", backward.launch)
            torch.autograd.grad(total, [x, weight_ih, weight_hh])
    return forward.count, backward.count


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp64"])
def test_the_kernels_of_a_layer_and_of_its_steps_are_those_that_it_starts(precision: str) -> None:
    four, five = (kernels_of_a_layer(precision, steps) for steps in (4, 5))
    for number, longer, of_step, of_layer in zip(
        four, five, budget.STEP_KERNELS[precision], budget.LAYER_KERNELS[precision], strict=True
    ):
        assert longer - number == of_step
        assert number - 4 * of_step == pytest.approx(of_layer, abs=1)


def test_the_projection_s_products_are_those_that_it_takes() -> None:
    weight, limit = torch.randn(1, 64, 64) / 8, torch.ones(1, dtype=torch.float64)
    clip, measure = budget.products_lines(64, 1, 1)
    for project, line in (
        (lambda: clip_singular_values_deferred_(weight, limit), clip),
        (lambda: spectral_norm_deferred(weight), measure),
    ):
        with FlopCounterMode(display=False) as counter:
            project()
        assert counter.get_total_flops() == line.operations
        with Kernels() as counted:
            project()
        assert counted.count == pytest.approx(line.kernels, rel=0.1)


class Passes(TorchDispatchMode):
    """Kernels, products' operations and bytes read and written, by what the arrays are: as `program_lines` has them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.found = n, {name: [0.0, 0.0, 0] for name in (line.name for line in budget.program_lines(n, 1))}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernels = Kernels()
        with kernels, FlopCounterMode(display=False) as flops:
            result = func(*args, **(kwargs or {}))
        if kernels.count:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            row = self.found[self._name(tensors, flops.get_total_flops())]
            row[0] += flops.get_total_flops()
            row[1] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            row[2] += kernels.count
        return result

    def launch(self, kernel: str, grid: Any, *args: Any, **options: Any) -> None:
        """One of Triton's, which is not run: what the program does is the same whatever comes of it."""
        tensors = {arg.data_ptr(): arg for arg in args if isinstance(arg, torch.Tensor)}
        runs, columns = args[0].shape[0], options.get("COLUMNS")
        operations = {
            "thin_product": 3 * 2 * options.get("rows", 0) * options.get("terms", 0) * (columns or 0),
            "column_gram": 2 * options.get("rows", 0) * (columns or 0) ** 2,
            "sign": 2 * 3 * options.get("count", 0) * program.SIDE**3,
            "coupled_roots": 2 * 4 * options.get("count", 0) * program.SIDE**3,
            "high_power": 2 * options.get("squarings", 0) * program.SIDE**3,
            "inverse_factor": 0,
        }[kernel]
        if options.get("EXACT"):
            operations, name = operations // 3, "W times 64, float64"
        elif kernel == "thin_product":
            name = "the filter" if columns == COLUMNS else "the bound"
        else:
            name = "64 x 64, float64"
        row = self.found[name]
        row[0] += runs * operations
        row[1] += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        row[2] += 1

    def _name(self, tensors: list[torch.Tensor], operations: int) -> str:
        shapes = [tuple(tensor.shape[-2:]) for tensor in tensors]
        if (self.n, self.n) in shapes:
            if not operations:
                return "whole matrices"
            return "W times 64 columns" if any(64 in shape for shape in shapes) else "W times 8"
        thin = any(self.n in shape for shape in shapes) and tensors[0].dtype in (torch.float32, torch.bool)
        return "thin arrays" if thin else "64 x 64, float64"


def test_the_program_s_lines_are_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "takes", lambda *_: False)
    monkeypatch.setattr(fused, "INTERPRETED", True)
    n, runs = 512, 2
    weight, limits = torch.randn(runs, n, n) / n**0.5, torch.tensor([1.0, torch.inf], dtype=torch.float64)
    state = SubspaceState(weight)
    passes = Passes(n)
    monkeypatch.setattr(fused, "launch", passes.launch)
    for polynomials in (ROOT, SIGN):
        program.coefficients(weight.device, tuple(polynomials))
    with passes:
        clip_singular_values_deferred_(weight, limits, state)
    for line in budget.program_lines(n, runs):
        operations, passed, kernels = passes.found[line.name]
        assert operations == pytest.approx(line.operations, rel=0.02), line.name
        assert passed == pytest.approx(line.bytes, rel=0.05), line.name
        assert kernels == pytest.approx(line.kernels, rel=0.02), line.name
    assert {line.precision for line in budget.program_lines(n, runs)} == {"fp32", "fp64", "tf32"}


@pytest.mark.parametrize("n", [200, MIN_SIZE_PROGRAM - 1, MIN_SIZE_PROGRAM, 650])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp64"])
def test_the_projection_s_lines_are_those_of_what_auto_takes(
    n: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "has_fast_float64", lambda _: True)

    class OnCard:
        shape, device = (2, n, n), torch.device("cuda")
        dtype = torch.float64 if precision == "fp64" else torch.float32

    lines = budget.budget(Shape(5, 2, n, 50), 2, precision, H100)
    names = {line.name for line in lines if line.phase == "clipping"}
    taken = {"program": budget.program_lines(n, 2), "products": budget.products_lines(n, 2, 0)}
    assert names == {line.name for line in taken[algorithm_for(OnCard(), "auto", followed=True)]}  # type: ignore[arg-type]


def test_a_run_s_products_are_38_gflop_and_those_of_the_floor() -> None:
    lines = budget.budget(PTB, 1, "bf16", H100)
    operations = sum(line.operations for line in lines if line.phase != "clipping")
    layer, output = gru_work(PTB.steps, PTB.batch, PTB.n, PTB.n), output_work(PTB.steps * PTB.batch, PTB.n, PTB.words)
    assert operations == (layer + output).operations
    assert operations == pytest.approx(38e9, rel=0.01)


def test_the_page_has_the_table_that_is_printed() -> None:
    assert budget.__doc__ is not None
    assert budget.table() in budget.__doc__
    page = Path(budget.__file__).with_name("gpu.md")
    assert budget.plan() in page.read_text()


def test_time_grows_with_the_runs_but_for_what_the_start_of_kernels_takes() -> None:
    shape = Shape(5, 2, 16, 50)
    at_once = dataclasses.replace(H100, kernel=0.0)
    (one, many, more), (_, many_at_once, more_at_once) = (
        [sum(budget.phases(budget.budget(PTB, runs, "bf16", card), card).values()) for runs in (1, 45, 90)]
        for card in (H100, at_once)
    )
    assert one > many / 45
    assert many < more < 2 * many
    # But for what a multiprocessor does for its matrix, whatever the others do.
    assert more_at_once == pytest.approx(2 * many_at_once, rel=0.02)
    # A small model's iteration is the start of its kernels.
    tiny = budget.budget(shape, 1, "fp32", H100)
    assert sum(budget.phases(tiny, H100).values()) == pytest.approx(sum(line.kernels for line in tiny) * H100.kernel)


def test_below_the_program_s_size_runs_that_are_not_clipped_are_measured_and_cost_less() -> None:
    shape = Shape(35, 20, 200, 10_000)
    seconds = [
        budget.phases(budget.budget(shape, 500, "bf16", H100, clipped), H100)["clipping"] for clipped in (0, 250, 500)
    ]
    assert seconds == sorted(seconds)
    assert seconds[0] == pytest.approx(500 * 16 * 24 * 200**2 / 3.35e12)
