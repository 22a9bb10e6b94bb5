"""What decides the result: initial weights, input scale, where dropout is and is not, which loss is differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gruclip.choices import CELLS
from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig
from gruclip.data import Lanes, load
from gruclip.gru import plain_gru
from gruclip.layers import clipped_block
from gruclip.model.cells import recurrent_layer
from gruclip.model.device import SMALL_MODEL, choose_threads
from gruclip.model.stacked import embed, initial_parameters, mask_seeds, masks_of, nll, zero_states
from gruclip.training.engine import Engine


def stacked(config: ModelConfig, outputs: int, words: bool, seed: int = 0) -> dict[str, Tensor]:
    """The parameters of one run with the leading axis, float64."""
    parameters = initial_parameters(config, outputs, torch.Generator().manual_seed(seed))
    return {
        name: tensor.double() if name == "input" and words else tensor.double().unsqueeze(0)
        for name, tensor in parameters.items()
    }


@pytest.mark.parametrize("cell", CELLS)
def test_initial_weights_have_variance_one_over_n_and_the_clipped_block_is_orthogonal(cell: str) -> None:
    n = 120
    config = ModelConfig(cell=cell, hidden_size=n, num_layers=2)
    parameters = initial_parameters(config, 300, torch.Generator().manual_seed(0))
    rows = clipped_block(cell, n)
    for name, weight in parameters.items():
        if name == "output_bias":
            assert not weight.any()
        elif not name.startswith("weight_hh"):
            assert weight.var().item() == pytest.approx(1 / n, rel=0.05)
        else:
            block = weight[rows].double()
            torch.testing.assert_close(block @ block.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-6)


def test_up_to_256_units_a_run_on_the_cpu_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    runs = [RunConfig(model=ModelConfig(hidden_size=n)) for n in (SMALL_MODEL, SMALL_MODEL + 1)]
    assert [choose_threads(run, torch.device("cpu")) for run in runs] == [1, 5]


def test_a_seed_gives_every_method_the_same_start() -> None:
    corpus = load("pydoc")
    optimizers = [OptimizerConfig("gradient_clipping", threshold=5.0), OptimizerConfig("spectral_clipping", delta=0.2)]
    model = ModelConfig(hidden_size=8)
    engines = [Engine([RunConfig(model=model, optimizer=o)], corpus, torch.device("cpu")) for o in optimizers]
    first, second = (engine.parameters for engine in engines)
    assert all(torch.equal(first[name], second[name]) for name in first)


def dropout_masks(
    config: ModelConfig, generators: list[torch.Generator], steps: int, batch: int, like: Tensor
) -> list[Tensor]:
    seeds = mask_seeds(config, generators, like.device)
    assert seeds is not None
    return masks_of(config, seeds, steps, batch, like)


def test_the_models_loss_is_the_papers_equations_written_out() -> None:
    config = ModelConfig(hidden_size=5, num_layers=2)
    parameters = stacked(config, 7, words=True)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(7, (1, 4, 3), generator=generator)
    targets = torch.randint(7, (1, 4, 3), generator=generator)
    masks = dropout_masks(config, [generator], 4, 3, parameters["output"])
    states = zero_states(config, 1, 3, parameters["output"])
    found, _ = nll(parameters, config, Lanes(tokens, targets, None, None), states, masks)

    x = 0.01 * parameters["input"][tokens]
    for layer in range(2):
        h0 = torch.zeros(1, 3, 5, dtype=torch.float64)
        x = plain_gru(x * masks[layer], h0, parameters[f"weight_ih_l{layer}"], parameters[f"weight_hh_l{layer}"])
    logits = (x * masks[2]) @ parameters["output"].unsqueeze(1) + parameters["output_bias"]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="sum")
    torch.testing.assert_close(found.squeeze(), expected, rtol=1e-12, atol=0)


def test_dropout_keeps_half_of_the_units_scales_them_by_two_and_differs_from_step_to_step_and_site_to_site() -> None:
    config = ModelConfig(hidden_size=200, num_layers=2)
    masks = dropout_masks(config, [torch.Generator().manual_seed(0)], 35, 20, torch.empty(()))
    assert len(masks) == 3  # the recurrent part's input, between its layers, before the output
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 2.0}
        assert mask.mean().item() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0][:, 0], masks[0][:, 1])


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_dropout_meets_its_rate(p: float) -> None:
    config = ModelConfig(hidden_size=200, dropout=p)
    masks = dropout_masks(config, [torch.Generator().manual_seed(0)], 35, 20, torch.empty(()))
    assert (masks[0] == 0).double().mean().item() == pytest.approx(p, abs=0.005)
    assert masks[0].mean().item() == pytest.approx(1.0, rel=0.03)


def test_a_runs_masks_do_not_depend_on_its_neighbours() -> None:
    config = ModelConfig(hidden_size=7)
    alone = dropout_masks(config, [torch.Generator().manual_seed(5)], 3, 2, torch.empty(()))
    together = dropout_masks(config, [torch.Generator().manual_seed(s) for s in (4, 5)], 3, 2, torch.empty(()))
    assert all(torch.equal(one[0], both[1]) for one, both in zip(alone, together, strict=True))


def test_each_run_of_a_stack_reads_its_own_words() -> None:
    table = torch.arange(6.0).view(6, 1)  # two runs, three words
    tokens = torch.tensor([[[0, 2]]])
    assert embed(table, tokens, runs=2).flatten().tolist() == [0.0, 2.0, 3.0, 5.0]


def test_the_gradient_is_of_the_sum_over_the_steps_of_the_mean_over_the_batch() -> None:
    corpus = load("pydoc")
    optimizer = OptimizerConfig("sgd", lr=1e-3)
    config = RunConfig(model=ModelConfig(hidden_size=4, dropout=0.0), optimizer=optimizer, precision="fp64")
    engine = Engine([config], corpus, torch.device("cpu"))
    engine.begin_epoch([1])
    before = engine.parameters["output_bias"].detach().clone()
    engine.step(0, with_radius=False)
    change = (engine.parameters["output_bias"].detach() - before)[0] / -1e-3
    # At the start every word is about as likely: its gradient is 35 / V less the mean number of times it is a target.
    length = corpus.splits["train"].numel() // 20
    targets = corpus.splits["train"][: 20 * length].view(20, length)[:, 1:36]
    counts = torch.bincount(targets.flatten(), minlength=corpus.num_outputs) / 20
    torch.testing.assert_close(change, 35 / corpus.num_outputs - counts.double(), rtol=0, atol=2e-3)


def test_the_loss_before_training_is_that_of_a_guess(data_root: object) -> None:
    config = RunConfig(dataset=DatasetConfig("jsb_chorales", str(data_root)), model=ModelConfig(hidden_size=8))
    engine = Engine([config], load("jsb_chorales", str(data_root)), torch.device("cpu"))
    assert engine.evaluate("valid")[0] == pytest.approx(88 * 0.693, rel=0.01)  # 61 nats a time step


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_resets_its_state_where_a_tune_begins(cell: str) -> None:
    n, generator = 4, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, state = normal(1, 6, 2, 3), normal(1, 2, CELLS[cell].vectors * n)
    weights = normal(1, len(CELLS[cell].gates) * n, 3), normal(1, len(CELLS[cell].gates) * n, n)
    keep = torch.ones(1, 6, 2, dtype=torch.float64)
    keep[0, 3, 1] = 0
    outputs, last = recurrent_layer(cell, x, state, *weights, keep=keep)
    untouched, _ = recurrent_layer(cell, x, state, *weights)
    fresh, fresh_last = recurrent_layer(cell, x[:, 3:], torch.zeros_like(state), *weights)
    torch.testing.assert_close(outputs[:, :, 0], untouched[:, :, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs[:, 3:, 1], fresh[:, :, 1], rtol=0, atol=1e-12)
    torch.testing.assert_close(last[:, 1], fresh_last[:, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_trains_and_is_clipped_below_its_limit(cell: str) -> None:
    limit = {"tanh_rnn": 1.0}.get(cell, 2.0)
    optimizer = OptimizerConfig("spectral_clipping", lr=0.5, delta=0.55 * limit)
    config = RunConfig(model=ModelConfig(cell=cell, hidden_size=12), optimizer=optimizer)
    engine = Engine([config], load("pydoc"), torch.device("cpu"))
    engine.begin_epoch([1])
    losses = [engine.step(iteration, with_radius=iteration == 14) for iteration in range(15)]
    assert losses[-1].loss.item() < losses[0].loss.item()
    assert all(metrics.spectral_norm.max().item() <= 0.45 * limit * (1 + 1e-5) for metrics in losses)
    assert losses[-1].spectral_radius is not None
    assert losses[-1].spectral_radius.max().item() < 1
