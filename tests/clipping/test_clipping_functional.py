"""`clip_singular_values`: its value, and its derivative against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

from gruclip import clip_singular_values
from gruclip.errors import NonFiniteError, UserError


def with_values(rows: int, columns: int, values: list[float], seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values and random vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    middle = torch.zeros(rows, columns, dtype=torch.float64)
    middle.diagonal().copy_(torch.tensor(values, dtype=torch.float64))
    return left @ middle @ right.mT


SPECTRA = {
    "square": (4, 4, [3.0, 1.5, 0.7, 0.2]),
    "wide": (3, 5, [2.0, 1.3, 0.4]),
    "tall": (5, 3, [2.0, 0.9, 0.4]),
    "all above": (3, 4, [4.0, 3.0, 2.0]),
    "all below": (4, 3, [0.9, 0.5, 0.1]),
    "repeated on both sides": (4, 4, [2.0, 2.0, 0.5, 0.5]),
    "zeros": (4, 4, [3.0, 1.2, 0.0, 0.0]),
    "a column": (4, 1, [2.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_its_derivative_is_the_slope_of_its_value_backward_and_forward(name: str) -> None:
    weight = with_values(*SPECTRA[name]).requires_grad_()
    limit = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(clip_singular_values, (weight, limit), check_forward_ad=True)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 6), log_scale=st.floats(-6, 6), share=st.floats(0, 1.5),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_its_value_and_derivative_are_those_of_the_decomposition(rows, columns, log_scale, share, seed) -> None:
    """Against the singular value decomposition and a central difference of it, over shapes and scales."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0**log_scale
    weight, along = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    values = torch.linalg.svdvals(weight)
    limit = max(float(values[0]) * share, 1e-3 * scale)
    # Where a value crosses the limit within the difference, there is no derivative to compare.
    step = 1e-6
    assume(float((values - limit).abs().min()) > 1e3 * step * float(torch.linalg.vector_norm(along)))

    def exact(matrix: Tensor) -> Tensor:
        left, middle, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ torch.diag(middle.clamp(max=limit)) @ right

    weight.requires_grad_()
    clipped = clip_singular_values(weight, limit, algorithm="full")
    assert torch.linalg.vector_norm(clipped - exact(weight.detach())) <= 1e-12 * torch.linalg.vector_norm(weight)
    (back,) = torch.autograd.grad(clipped, weight, along)
    slope = (exact(weight.detach() + step * along) - exact(weight.detach() - step * along)) / (2 * step)
    # Self-adjoint: the gradient along H is the derivative along H.
    rounding = 1e-12 * torch.linalg.vector_norm(weight.detach()) / step
    assert torch.linalg.vector_norm(back - slope) <= 1e-3 * torch.linalg.vector_norm(along) + rounding


@pytest.mark.parametrize(
    ("values", "limit"),
    [([1.0, 1.0, 1.0], 1.0), ([2.0, 1.0, 1.0], 1.0), ([0.0, 0.0, 0.0], 1.0), ([1.0, 1.0, 0.0], 1.0)],
)
def test_where_values_are_the_limit_the_derivative_is_that_of_matrices_inside(values, limit) -> None:
    weight = torch.diag(torch.tensor(values, dtype=torch.float64)).requires_grad_()
    nearby = torch.diag(torch.tensor([value if value != limit else limit - 1e-9 for value in values]).double())
    along = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [
        torch.autograd.grad(clip_singular_values(matrix, limit), matrix, along)[0]
        for matrix in (weight, nearby.requires_grad_())
    ]
    assert torch.isfinite(gradients[0]).all()
    assert torch.allclose(*gradients, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_was_clipped_once_is_at_the_limit_whatever_rounding_left(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    inside = clip_singular_values(torch.randn(32, 32, dtype=dtype, generator=generator), 1.0)
    left, values, right = torch.linalg.svd(inside.double())
    at_the_limit = int((values > 1 - 1e-6).sum())
    assert at_the_limit > 20
    moved = inside + (left[:, -1:] @ right[-1:] * 2).to(dtype)  # one value more, above it
    turned, _, along = torch.linalg.svd(moved.double())
    for one in range(1, at_the_limit + 1):
        step = (turned[:, one, None] * along[one]).to(dtype)
        _, slope = torch.func.jvp(lambda weight: clip_singular_values(weight, 1.0), (moved,), (step,))
        assert float(turned[:, one] @ slope.double() @ along[one]) == pytest.approx(1, abs=1e-5)


def test_each_matrix_of_a_batch_has_its_own_limit_and_gradient() -> None:
    weight = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    limits = torch.tensor([[0.5, 1.0], [2.0, 100.0], [1.5, 0.1]], dtype=torch.float64)
    whole, of_limits = weight.clone().requires_grad_(), limits.clone().requires_grad_()
    clip_singular_values(whole, of_limits).square().sum().backward()
    for index in [(i, j) for i in range(3) for j in range(2)]:
        alone, limit = weight[index].clone().requires_grad_(), limits[index].clone().requires_grad_()
        clip_singular_values(alone, limit).square().sum().backward()
        assert torch.allclose(whole.grad[index], alone.grad, atol=1e-10)
        assert torch.allclose(of_limits.grad[index], limit.grad, atol=1e-10)
    assert torch.equal(whole.grad[1, 1], 2 * weight[1, 1])


def test_the_weight_stays_as_it_is_whatever_its_layout() -> None:
    weight = (3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(3))).mT
    before = weight.clone()
    clipped = clip_singular_values(weight, 1.0)
    assert torch.equal(weight, before)
    assert float(torch.linalg.matrix_norm(clipped.double(), 2)) <= 1 + 2e-6
    # A row repeated without memory of its own is no matter for a copy.
    assert clip_singular_values(torch.ones(1, 3).expand(4, 3), 1.0).shape == (4, 3)


def test_it_composes_with_the_transforms_of_torch_func() -> None:
    weight = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    limits = torch.linspace(0.5, 2, 5, dtype=torch.float64)

    def loss(matrix: Tensor, limit: Tensor | float = 1.0) -> Tensor:
        return clip_singular_values(matrix, limit).pow(3).sum()

    each = torch.stack([clip_singular_values(one, float(limit)) for one, limit in zip(weight, limits, strict=True)])
    mapped = torch.func.vmap(clip_singular_values, (2, 0))(weight.movedim(0, 2), limits)
    assert torch.allclose(mapped, each)
    gradients = torch.stack([torch.func.grad(loss)(one) for one in weight])
    assert torch.allclose(torch.func.vmap(torch.func.grad(loss))(weight), gradients)
    assert torch.allclose(jacfwd(loss)(weight[0]), gradients[0])
    along = torch.ones_like(limits)
    of_limits = torch.func.grad(lambda one: torch.func.vmap(loss)(weight, one).sum())(limits)
    assert torch.allclose(of_limits.sum(), torch.func.jvp(lambda one: loss(weight, one), (limits,), (along,))[1])


def test_a_compiled_function_gives_the_same() -> None:
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), requires_grad=True)

    def loss(matrix: Tensor) -> Tensor:
        return (clip_singular_values(2 * matrix, 1.0) + 1).square().sum()

    compiled = torch.compile(loss, backend="eager")
    assert torch.equal(compiled(weight), loss(weight))
    assert torch.equal(*(torch.autograd.grad(one(weight), weight)[0] for one in (compiled, loss)))


def test_second_derivatives_are_refused_by_name() -> None:
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(6), requires_grad=True)
    (once,) = torch.autograd.grad(clip_singular_values(weight, 0.5).square().sum(), weight, create_graph=True)
    with pytest.raises(UserError, match="clip_singular_values has first derivatives only"):
        once.sum().backward()


def directional(function: Any) -> Any:
    return lambda weight: torch.func.jvp(function, (weight,), (torch.ones_like(weight),))[1]


def cubes(weight: Tensor) -> Tensor:
    return clip_singular_values(weight, 1.2).pow(3).sum()


@pytest.mark.parametrize(
    "second",
    [
        jacfwd(jacfwd(cubes)),
        jacrev(jacfwd(cubes)),
        jacfwd(jacrev(cubes)),
        jacrev(jacrev(cubes)),
        torch.func.grad(directional(cubes)),
        directional(directional(cubes)),
        directional(torch.func.grad(cubes)),
    ],
    ids=["ff", "rf", "fr", "rr", "grad of jvp", "jvp of jvp", "jvp of grad"],
)
def test_second_derivatives_of_any_kind_are_refused(second: Any) -> None:
    """In forward mode they came out wrong, or as NaN where values are equal."""
    for weight in (torch.randn(4, 3, generator=torch.Generator().manual_seed(7)).double(), 3 * torch.eye(3).double()):
        with pytest.raises(UserError, match="clip_singular_values has first derivatives only"):
            second(weight)


def test_of_many_directions_the_matrix_is_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda one, **kwargs: (shapes.append(one.shape), svd(one, **kwargs))[1])
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    both = [jacobian(lambda one: clip_singular_values(one, 0.7))(weight) for jacobian in (jacfwd, jacrev)]
    assert torch.allclose(*both)
    assert shapes
    assert set(shapes) == {(4, 3)}


@pytest.mark.parametrize(
    ("weight", "limit", "complaint"),
    [
        (torch.eye(2, dtype=torch.float16), 1.0, r"float16: should be float32 or float64"),
        (torch.eye(2), -1.0, r"limit=-1\.0: should be a positive number"),
        (torch.eye(2), torch.ones(3), r"limit=tensor.*that broadcasts to \(\)"),
        (torch.eye(2), "much", r"limit='much': should be a number"),
        (torch.eye(2), True, r"limit=True: should be a number"),
        (torch.eye(2), 1j, r"limit=1j: should be a number"),
        (torch.eye(2), torch.tensor(1j), r"limit=tensor.*: should be a number"),
        (torch.eye(2), torch.tensor(1.0, device="meta"), r"limit=tensor.*: should be a number"),
        (torch.eye(2), 10**400, r"limit=1000*: should be a number"),
        (torch.eye(2).to_sparse(), 1.0, "should be dense"),
        (torch.ones(3), 1.0, r"should be matrices"),
        (torch.eye(2, device="meta"), 1.0, "is on the meta device"),
    ],
)
def test_what_is_no_matrix_or_limit_is_refused(weight, limit, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        clip_singular_values(weight, limit)


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        clip_singular_values(torch.full((2, 2), torch.nan), 1.0)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
@pytest.mark.parametrize("batch", [5, 6, 7])  # of which one is the number of directions, 2 x 3
def test_the_jacobians_of_a_batch_are_those_of_its_matrices(jacobian: Any, batch: int) -> None:
    weights = 2 * torch.randn(batch, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    limits = torch.linspace(0.5, 1.5, batch, dtype=torch.float64)
    both = jacobian(clip_singular_values, argnums=(0, 1))
    alone = [both(weight, limit) for weight, limit in zip(weights, limits, strict=True)]
    expected = [torch.stack(parts) for parts in zip(*alone, strict=True)]
    for found, right in zip(vmap(both)(weights, limits), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    # The weight, or the limit, alone differs.
    same = torch.stack([jacobian(clip_singular_values)(weights[0], limit) for limit in limits])
    torch.testing.assert_close(vmap(jacobian(clip_singular_values), (None, 0))(weights[0], limits), same)
    same = torch.stack([jacobian(clip_singular_values)(weight, limits[0]) for weight in weights])
    torch.testing.assert_close(vmap(jacobian(clip_singular_values), (0, None))(weights, limits[0]), same)
    # And a map of maps.
    twice = vmap(vmap(both, (0, None)), (None, 0))(weights, limits)[0]
    torch.testing.assert_close(twice.diagonal(dim1=0, dim2=1).movedim(-1, 0), expected[0])
