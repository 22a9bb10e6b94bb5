"""`clip_updates`: what each step of any optimizer adds to a matrix stays inside the limit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from gruclip import SpectralClipping, clip_updates
from gruclip.errors import NonFiniteError, UserError

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.01),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.3),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 12, 3), nn.Flatten(), nn.Linear(60, 40), nn.Tanh(), nn.Linear(40, 7))


def backward(module: nn.Module, seed: int) -> Tensor:
    x = torch.randn(6, 4, 7, generator=torch.Generator().manual_seed(seed))
    loss = module(x).square().sum()
    module.zero_grad()
    loss.backward()
    return loss


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in module.named_parameters()}


def projected(change: Tensor, limit: float) -> Tensor:
    left, middle, right = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    return (left @ torch.diag(middle.clamp(max=limit)) @ right).reshape(change.shape)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_step_of_any_optimizer_is_its_own_projected(make) -> None:
    """Beside the optimizer alone from the same weights and state: vectors get all of it, matrices the projection."""
    module, limit = model(), 0.3
    optimizer = make(module.parameters())
    clipping = clip_updates(optimizer, limit)
    for seed in range(4):
        alone = copy.deepcopy(module)
        reference = make(alone.parameters())
        reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = weights(module)
        for one, by in ((module, optimizer), (alone, reference)):
            backward(one, seed)
            by.step()
        for name, meant in weights(alone).items():
            got = module.get_parameter(name).detach()
            if meant.dim() == 1:
                assert torch.equal(got, meant)
                continue
            change = got.double() - before[name].double()
            rounding = torch.finfo(torch.float32).eps * float(torch.linalg.vector_norm(before[name]))
            assert float(torch.linalg.matrix_norm(change.flatten(1), 2)) <= limit * (1 + 2e-6) + rounding
            exact = projected(meant.double() - before[name].double(), limit)
            size = float(torch.linalg.vector_norm(meant - before[name]))
            assert float(torch.linalg.vector_norm(change - exact)) <= 4e-6 * max(size, limit) + 2 * rounding
        # What the optimizer carries is that of its own steps.
        for mine, its in zip(optimizer.state.values(), reference.state.values(), strict=True):
            assert all(torch.equal(mine[key], its[key]) for key in mine if torch.is_tensor(mine[key]))
    assert all(line.total_clipped > 0 for line in clipping.report())


def test_an_update_inside_the_limit_is_left_bit_for_bit() -> None:
    module, alone = model(), model()
    for one, clipped in ((module, True), (alone, False)):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.01)
        if clipped:
            clip_updates(optimizer, 100.0)
        for seed in range(3):
            backward(one, seed)
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), alone.parameters(), strict=True))


def test_lbfgs_with_its_closure_changes_no_matrix_by_more() -> None:
    module = model()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=1.0, max_iter=4)
    clip_updates(optimizer, 0.05)
    for _ in range(3):
        before = weights(module)
        optimizer.step(lambda: backward(module, 1))
        for name, old in before.items():
            if old.dim() > 1:
                change = (module.get_parameter(name).detach().double() - old.double()).flatten(1)
                assert float(torch.linalg.matrix_norm(change, 2)) <= 0.05 * (1 + 1e-5)


class Decayed(torch.optim.SGD):
    """Its step calls that of its base class, and then changes more."""

    def step(self, closure=None):
        loss = super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.data.mul_(0.5)
        return loss


def test_an_optimizer_whose_step_calls_that_of_its_base_class_moves_no_matrix_further() -> None:
    torch.optim.SGD([torch.zeros(2)])  # from now on torch calls the hooks in the step of the base class, too
    module = model()
    optimizer = Decayed(module.named_parameters(), lr=0.5)
    clipping = clip_updates(optimizer, 0.1)
    for seed in range(4):
        before = weights(module)
        backward(module, seed)
        if seed == 2:
            with pytest.raises(ZeroDivisionError):  # leaves a step begun
                optimizer.step(lambda: 1 / 0)
        optimizer.step()
        for name in ("2.weight", "4.weight"):
            moved = module.get_parameter(name).detach() - before[name]
            assert float(torch.linalg.matrix_norm(moved.double(), 2)) == pytest.approx(0.1, rel=1e-5)
        assert all(line.last_clipped > 0 for line in clipping.report())


def test_a_limit_may_follow_the_learning_rate_and_differ_between_groups() -> None:
    module = model()
    groups = [
        {"params": [module[2].weight], "limit": 0.2},
        {"params": [module[4].weight], "limit": math.inf, "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    clipping = clip_updates(optimizer, lambda group: group["limit"] * group["lr"])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for rate in (0.5, 0.25):
        before = weights(module)
        backward(module, 0)
        module[2].weight.grad.mul_(100)
        optimizer.step()
        schedule.step()
        change = module[2].weight.detach() - before["2.weight"]
        assert float(torch.linalg.matrix_norm(change, 2)) == pytest.approx(0.2 * rate, rel=1e-5)
        assert [line.limit for line in clipping.report()] == [0.2 * rate, math.inf]
    assert clipping.report()[1].total_clipped == 0


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4),
    ],
    ids=["to a rate of 0", "from a rate of 0"],
)
def test_a_limit_in_units_of_a_rate_of_zero_lets_nothing_move(schedule) -> None:
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    scheduler = schedule(optimizer)
    clip_updates(optimizer, limit=lambda group: 0.1 * group["lr"])
    still = 0
    for seed in range(6):
        before, rate = weights(module), optimizer.param_groups[0]["lr"]
        backward(module, seed)
        optimizer.step()
        scheduler.step()
        for name, tensor in weights(module).items():
            if tensor.dim() > 1:
                moved = torch.linalg.matrix_norm((tensor - before[name]).double().flatten(1), 2)
                assert moved <= 0.1 * rate * (1 + 2e-6) + 1e-6 * rate
        still += rate == 0
    assert still


def test_where_nothing_may_move_what_moved_is_put_back_and_counted() -> None:
    layer = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.SGD(layer.named_parameters(), lr=1.0)
    clipping, before = clip_updates(optimizer, limit=lambda group: 0.0), layer.weight.detach().clone()
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert [line.last_clipped for line in clipping.report()] == [3]


def test_select_goes_by_the_optimizer_s_names_or_by_places_and_new_groups_are_seen() -> None:
    module = model()
    named = torch.optim.SGD(module.named_parameters(), lr=0.1)
    assert [line.name for line in clip_updates(named, 1.0, select="[24].*").report()] == ["2.weight", "4.weight"]
    numbered = torch.optim.SGD([module[0].weight, module[0].bias], lr=0.1)
    clipping = clip_updates(numbered, 1e-3)
    assert [line.name for line in clipping.report()] == ["0.0"]
    numbered.add_param_group({"params": [module[2].bias, module[2].weight]})
    backward(module, 0)
    numbered.step()
    assert [(line.name, line.last_clipped > 0) for line in clipping.report()] == [("0.0", True), ("1.1", True)]
    only = clip_updates(torch.optim.SGD(module.parameters(), lr=0.1), 1.0, select=lambda name, one: one.shape[0] == 7)
    assert [line.name for line in only.report()] == ["0.4"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_gradient_scaling_skips_changes_nothing(fused) -> None:
    module = model()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=fused)
    clipping = clip_updates(optimizer, 1e-3)
    scaler = torch.amp.GradScaler("cpu")
    for bad in (True, False):
        before = weights(module)
        optimizer.zero_grad()
        scaler.scale(module(torch.ones(2, 4, 7)).sum()).backward()
        if bad:
            module[2].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(old, module.get_parameter(name)) for name, old in before.items()) == bad
        assert (sum(line.last_clipped for line in clipping.report()) == 0) == bad


@pytest.mark.parametrize("weights_first", [False, True])
def test_weights_are_clipped_after_updates_whatever_was_attached_first(weights_first) -> None:
    module = nn.Linear(30, 30)
    optimizer = torch.optim.SGD(module.parameters(), lr=100.0)
    weight_clipping = SpectralClipping(module, limit=0.9)
    if weights_first:
        weight_clipping.attach(optimizer)
    clip_updates(optimizer, 0.5)
    if not weights_first:
        weight_clipping.attach(optimizer)
    for _ in range(3):
        module.zero_grad()
        (-module.weight.square().sum()).backward()
        optimizer.step()
        assert float(torch.linalg.matrix_norm(module.weight.detach().double(), 2)) <= 0.9 * (1 + 2e-6)


def test_training_continued_from_a_saved_state_gives_the_same_bits() -> None:
    def training(seeds: range, saved: tuple[dict, ...] | None = None) -> tuple[dict, ...]:
        torch.manual_seed(3)
        module = nn.Sequential(nn.Flatten(), nn.Linear(28, 200), nn.Tanh(), nn.Linear(200, 150))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        clipping = clip_updates(optimizer, 0.1)
        for part, held in zip((module, optimizer, clipping), saved or (), strict=False):
            part.load_state_dict(held)
        for seed in seeds:
            backward(module, seed)
            optimizer.step()
        return copy.deepcopy((module.state_dict(), optimizer.state_dict(), clipping.state_dict()))

    whole, parts = training(range(6)), training(range(3, 6), training(range(3)))
    assert all(torch.equal(parts[0][name], tensor) for name, tensor in whole[0].items())
    counts = [{key: int(one) for key, one in saved[2].items() if key.endswith("_clipped")} for saved in (whole, parts)]
    assert counts[0] == counts[1]
    assert max(counts[0].values()) > 0


def test_a_state_of_other_parameters_is_refused() -> None:
    saved = clip_updates(torch.optim.SGD(model().parameters(), lr=1.0), 1.0).state_dict()
    clipping = clip_updates(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), 1.0)
    with pytest.raises(UserError, match=r"state_dict is of other parameters than 0\.0, or of an older version"):
        clipping.load_state_dict(saved)


def test_detached_it_clips_no_more_and_attaching_twice_is_refused() -> None:
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    clipping = clip_updates(optimizer, 1e-3)
    with pytest.raises(UserError, match=r"clipped already; detach\(\) first"):
        clipping.attach()
    clipping.detach()
    before = module[2].weight.detach().clone()
    backward(module, 0)
    optimizer.step()
    assert float(torch.linalg.matrix_norm(module[2].weight.detach() - before, 2)) > 1e-2
    clipping.attach().detach()


def test_an_update_that_is_not_finite_is_named_and_none_is_clipped() -> None:
    module = model()
    optimizer = torch.optim.SGD(module.named_parameters(), lr=1.0)
    clip_updates(optimizer, 1e-3)
    backward(module, 0)
    module[2].weight.grad[3, 4] = torch.nan
    before = module[0].weight.detach() - module[0].weight.grad
    with pytest.raises(NonFiniteError, match=r"the update of 2\.weight holds NaN or infinity; no update was clipped"):
        optimizer.step()
    assert torch.equal(module[0].weight, before)


@pytest.mark.parametrize(
    ("module", "options", "complaint"),
    [
        (nn.Linear(2, 2), {"limit": 0.0}, r"limit=0\.0: should be a positive number"),
        (nn.Linear(2, 2), {"limit": lambda group: -group["lr"]}, r"limit\(group\)=-1\.0 of a group with lr=1\.0"),
        (nn.Linear(2, 2), {"limit": lambda group: "much"}, r"limit\(group\)='much': should be a number"),
        (nn.Linear(2, 2), {"limit": "much"}, "limit='much': should be a number"),
        (nn.Linear(2, 2), {"limit": 1.0, "select": "weight"}, "select='weight': picks no parameter"),
        (nn.Linear(2, 2), {"limit": 1.0, "algorithm": "svd"}, "algorithm='svd'"),
        (nn.Linear(2, 2).bfloat16(), {"limit": 1.0}, r"0\.0 of torch\.bfloat16: rounding the weight moves it as far"),
        (nn.Linear(2, 2, device="meta"), {"limit": 1.0}, r"0\.0: is on the meta device"),
        (nn.LayerNorm(4), {"limit": 1.0}, "the optimizer has no parameter of two axes or more"),
    ],
)
def test_what_cannot_be_clipped_is_refused_at_once(module, options, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        clip_updates(torch.optim.SGD(module.parameters(), lr=1.0), **options)
