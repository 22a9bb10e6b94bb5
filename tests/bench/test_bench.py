"""The benches: what they count, what their contestants compute, and what they leave. No time is asserted."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch

import gruclip.cli
from gruclip.bench import floor, gru, keras_peer, stack, step, sweep, transformer
from gruclip.bench.floor import Machine, Work, gru_work, output_work, precisions, product_rates
from gruclip.bench.output import number, timing_table
from gruclip.bench.peers import LanguageModel, MusicModel, PlainGRU, language_step, layer_step, music_epoch, torch_gru
from gruclip.bench.timing import Timing, interleave
from gruclip.data import MusicCorpus
from gruclip.errors import UserError
from gruclip.gru import GRU, plain_gru
from gruclip.runs.environment import processor_family

CPU = torch.device("cpu")
SMALL = ["--threads", "1", "--repetitions", "2"]
#: On one worker: to import Keras and JAX takes seconds.
IMPORTS_KERAS = pytest.mark.xdist_group("keras")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """The machine's rates from arrays that take no time."""
    monkeypatch.setattr(floor, "LARGE", (64, 64, 64))
    monkeypatch.setattr(floor, "BANDWIDTH_BYTES", 1 << 16)


def read(folder: Path, bench: str) -> dict:
    return json.loads((folder / f"{bench}.json").read_text())


# -- timing and floors ---------------------------------------------------------------------------------


def test_every_round_calls_every_contestant_once_and_none_always_in_the_wake_of_the_same_other():
    calls: list[str] = []
    timings = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=30, warmup=1)
    assert calls[:3] == list("abc")
    rounds = [calls[start : start + 3] for start in range(3, len(calls), 3)]
    assert len(rounds) == 30
    assert all(sorted(names) == list("abc") for names in rounds)
    assert {pair for names in rounds for pair in pairwise(names)} == set(permutations("abc", 2))
    assert {name: len(timing.seconds) for name, timing in timings.items()} == dict.fromkeys("abc", 30)


def test_a_timing_gives_its_median_mean_and_quartiles():
    timing = Timing((4.0, 1.0, 3.0, 2.0, 10.0))
    assert (timing.median, timing.mean, timing.quartiles) == (3.0, 4.0, (2.0, 4.0))
    assert Timing((2.0,)).quartiles == (2.0, 2.0)


def test_a_ratio_holds_round_against_round_so_that_a_disturbance_of_both_cancels():
    base = Timing((1.0, 100.0, 2.0))
    assert Timing((0.5, 50.0, 1.0)).ratio(base) == 0.5


def test_the_layer_s_products_are_nine_T_B_n_times_n_plus_k_multiply_adds():
    for steps, batch, inputs, n in ((35, 20, 650, 650), (3, 2, 5, 7), (4, 1, 4, 4)):
        operations = gru_work(steps, batch, inputs, n).operations
        assert operations == 2 * 9 * steps * batch * n * (n + inputs)


def test_the_output_layer_s_products_are_three_of_rows_by_n_by_words():
    assert output_work(700, 650, 10_000).operations == 2 * 3 * 700 * 650 * 10_000


def test_dropout_spares_its_share_of_the_products_that_read_inputs_and_none_of_the_recurrent_ones() -> None:
    assert output_work(70, 65, 100, dropout=0.5).operations == 3 * 70 * 65 * 100
    whole, half = (gru_work(7, 10, 65, 50, dropout=share).operations for share in (0.0, 0.5))
    assert whole - half == 2 * 70 * 65 * 3 * 50
    assert ((gru_work(7, 10, 65, 50, dropout=0.5) + output_work(70, 50, 9, dropout=0.5)) * 2).spared == 2 * (
        whole - half + 3 * 70 * 50 * 9
    )


def test_works_add_and_multiply():
    work = Work(Counter({(2, 3, 4): 1}), 10.0)
    both = (work + Work(Counter({(2, 3, 4): 2, (1, 1, 1): 1}), 5.0)) * 3
    assert both == Work(Counter({(2, 3, 4): 9, (1, 1, 1): 3}), 45.0)


def test_the_floor_takes_the_best_product_of_its_precision_and_the_slower_of_products_and_memory():
    rates = {"fp32": {(1, 1, 1): {"torch": 1e9, "oneDNN": 4e9}, (2, 2, 2): {"torch": 2e9}}, "bf16": {}}
    lowest = Machine(rates, bandwidth=1e6).floor(Work(Counter({(100, 100, 100): 2000}), 3e6), "fp32")
    assert (lowest.products, lowest.memory, lowest.seconds) == (1.0, 3.0, 3.0)


def test_a_product_is_measured_by_every_kernel_that_computes_it():
    rates = product_rates([(8, 16, 8)], torch.float32, rounds=1)
    assert set(rates[8, 16, 8]) == {"torch", "oneDNN", "compiled"}
    assert set(product_rates([(8, 16, 8)], torch.bfloat16, rounds=1)[8, 16, 8]) == {"torch"}


def test_a_gpu_has_bf16_products_whatever_its_host_has(monkeypatch):
    monkeypatch.setattr(floor, "has_bf16_products", lambda device: device.type == "cuda")
    assert floor.notes(torch.device("cuda")) == []
    assert floor.notes() == [floor.NO_BF16]


def test_a_timing_table_shows_the_ratio_to_the_base_and_keeps_every_round():
    timings = {"base": Timing((0.2, 0.2)), "ours": Timing((0.05, 0.1))}
    table = timing_table("T", "c", timings, "base")
    assert table.cells["ratio to base"].tolist() == ["1.00", "0.38"]
    assert table.cells["median, ms"].tolist() == ["200", "75.0"]
    assert table.values["rounds"].tolist() == [[0.2, 0.2], [0.05, 0.1]]


def test_numbers_have_three_digits_and_no_exponent():
    assert [number(x) for x in (0.012345, 1.0, 45.678, 1234.5)] == ["0.0123", "1.00", "45.7", "1234"]


# -- contestants ---------------------------------------------------------------------------------------


def test_the_contestants_of_the_layer_bench_that_are_the_paper_s_cell_compute_the_same_gradient():
    torch.manual_seed(0)
    ours, plain = GRU(6, 6, bias=False), PlainGRU(6, 6)
    plain.load_state_dict(ours.state_dict())
    gradients = []
    for layer in (ours, plain):
        torch.manual_seed(1)
        gradients.append(layer_step(layer, steps=5, batch=3, n=6)())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_bf16_contestant_is_the_layer_up_to_bfloat16():
    torch.manual_seed(0)
    ours = GRU(64, 64, bias=False)
    x, h = torch.randn(5, 3, 64), torch.zeros(1, 3, 64)
    exact, rounded = ours(x, h)[0], gru.Bf16GRU(ours)(x, h)[0]
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0, atol=0.02)


@IMPORTS_KERAS
def test_keras_gru_with_reset_before_is_the_paper_s_cell():
    assert keras_peer.is_installed(), "needs keras and jax: pip install 'gruclip[bench]'"
    keras, _ = keras_peer._keras()
    layer = keras_peer.gru(keras, 4)
    x = np.random.default_rng(0).standard_normal((2, 5, 3), dtype=np.float32)
    out = np.asarray(layer(x)[0])
    # Keras' gates stand in the order z, r, n, and its matrices are transposed.
    z, r, n = (slice(4 * i, 4 * i + 4) for i in range(3))
    weights = [
        torch.cat([torch.from_numpy(np.array(w))[:, gate].T for gate in (r, z, n)]).unsqueeze(0)
        for w in layer.get_weights()
    ]
    states = plain_gru(torch.from_numpy(x).transpose(0, 1).unsqueeze(0), torch.zeros(1, 2, 4), *weights)[0]
    np.testing.assert_allclose(out, states.transpose(0, 1).numpy(), atol=1e-5)


def test_every_language_model_learns_words_that_repeat():
    torch.manual_seed(0)
    lanes = (torch.arange(41) % 4).unsqueeze(1).expand(41, 2).contiguous()
    loops = {
        "torch": language_step(LanguageModel(5, 8, torch_gru, dropout=0.0), lanes, steps=10),
        "plain": language_step(LanguageModel(5, 8, PlainGRU, dropout=0.0), lanes, steps=10),
    }
    for name, loop in loops.items():
        losses = [loop() for _ in range(150)]
        assert losses[0] == pytest.approx(np.log(5), abs=0.5), name
        assert losses[-1] < 0.2, name


@IMPORTS_KERAS
def test_the_keras_step_learns_words_that_repeat():
    assert keras_peer.is_installed(), "needs keras and jax: pip install 'gruclip[bench]'"
    lanes = np.tile((np.arange(41) % 4)[:, None], (1, 2))
    loop = keras_peer.language_step(lanes, vocabulary=5, steps=10, n=16)
    losses = [loop() for _ in range(150)]
    assert losses[0] == pytest.approx(np.log(5), abs=0.5)
    # With dropout 0.5 it does not come as low as without.
    assert np.mean(losses[-10:]) < 0.6


@IMPORTS_KERAS
def test_the_step_s_contestants_are_all_there_and_train():
    corpus = step.random_words(5, 2, 50)
    ours = step.engines(lambda p: step.run_config("ptb", step.ModelConfig(hidden_size=16), 1.0, 5, 2, p), corpus)
    contestants = step.language_contestants(corpus, ours, steps=5, batch=2, n=16)
    assert {step.EXAMPLE, "Keras on JAX", *(f"gruclip, {precision}" for precision in precisions())} <= set(contestants)
    for name, contestant in contestants.items():
        assert contestant() == pytest.approx(np.log(50), abs=1.0), name


def made_tunes(lengths: tuple[int, ...]) -> MusicCorpus:
    generator = torch.Generator().manual_seed(0)
    tunes = [(torch.rand(length, 88, generator=generator) < 0.05).to(torch.uint8) for length in lengths]
    return MusicCorpus("nottingham", "made", {"train": tunes, "valid": tunes, "test": tunes})


def test_the_padded_music_loop_counts_every_time_step_once_and_no_padding():
    # Without a gradient step the loss of the even model is 88 log 2 a time step, however tunes are padded.
    corpus = made_tunes((3, 11, 7, 5))
    model = MusicModel(88, 6, dropout=0.0)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    loss = music_epoch(model, corpus, batch_size=3, steps=4, lr=0.0)()
    assert loss == pytest.approx(88 * np.log(2), rel=1e-6)


def test_a_window_that_is_longer_than_a_lane_is_refused() -> None:
    with pytest.raises(UserError, match="--shape 30,2,8: T should be at most 13, what nottingham has for B lanes"):
        step.music_tables(made_tunes((3, 11, 7, 5)), (30, 2, 8), rounds=1)


def test_an_epoch_of_music_brings_both_contestants_down():
    corpus = made_tunes((40, 30, 50, 40))
    (table, *_) = step.music_tables(corpus, (10, 2, 16), rounds=1)
    assert table.cells[""].tolist() == [step.TORCH_MUSIC, *(f"gruclip, {precision}" for precision in precisions())]
    epoch = music_epoch(MusicModel(88, 16), corpus, batch_size=2, steps=10, lr=0.01)
    first, *_, last = [epoch() for _ in range(4)]
    assert last < first


# -- the commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "family", "model", "named"),
    [
        ("AuthenticAMD", 25, 1, "family 25 model 1 (Zen 3)"),
        ("AuthenticAMD", 25, 17, "family 25 model 17 (Zen 4)"),
        ("AuthenticAMD", 26, 2, "family 26 model 2 (Zen 5)"),
        ("AuthenticAMD", 26, 255, "family 26 model 255"),
        ("GenuineIntel", 6, 207, "family 6 model 207"),
    ],
)
def test_a_processor_is_named_by_its_family_where_its_name_says_nothing(vendor, family, model, named):
    assert processor_family({"vendor_id": vendor, "cpu family": str(family), "model": str(model)}) == named
    assert processor_family({"CPU implementer": "0x41"}) == ""


def test_bench_gru_prints_a_table_and_writes_it_with_the_machine(tmp_path, capsys):
    assert gru.main([*SMALL, "--shapes", "3,2,8", "4,2,8", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "**Layer, T=3, B=2, n=8.**" in printed
    content = read(tmp_path, "gru")
    assert content["environment"]["threads"] == 1
    assert processor_family() == content["environment"]["processor_family"]
    assert processor_family() in printed.splitlines()[0]
    assert set(content["tables"]) == {"Layer, T=3, B=2, n=8", "Layer, T=4, B=2, n=8", "Products"}
    rows = {row["contestant"]: row for row in content["tables"]["Layer, T=3, B=2, n=8"]}
    ours = {f"gruclip.GRU, {precision}" for precision in precisions()}
    assert set(rows) == {gru.BASE, "plain cell, autograd", "Keras on JAX"} | ours
    assert all(len(row["rounds"]) == 2 and row["floor_products"] > 0 for row in rows.values())
    assert (tmp_path / "gru.md").read_text() in printed


def test_bench_step_shows_where_the_time_goes(tmp_path, capsys):
    shape = ["--shape", "5,2,16", "--vocabulary", "50"]
    assert step.main([*SMALL, *shape, "--out", str(tmp_path)]) == 0
    tables = read(tmp_path, "step_ptb")["tables"]
    assert set(tables) == {"Training step, T=5, B=2, n=16, 50 words", "Parts", "Products"}
    assert {"forward", "backward", "update", "clipping"} <= set(tables["Parts"][0])


def test_bench_transformer_trains_inside_the_limit_and_times_the_clipping_apart(tmp_path, monkeypatch):
    trainings: list[transformer.Training] = []
    original = transformer.Training.step

    def watched(training: transformer.Training) -> float:
        matrices = [part.weight for part in training.model.modules() if type(part).__name__.endswith("Linear")]
        for layer in training.model.layers.layers:
            matrices += layer.self_attn.in_proj_weight.chunk(3)
        assert len(matrices) == 13
        assert all(torch.linalg.matrix_norm(one.detach().double(), 2) <= 0.8 * (1 + 2e-6) for one in matrices)
        trainings.append(training)
        return original(training)

    monkeypatch.setattr(transformer.Training, "step", watched)
    options = ["--shape", "5,3,16", "--limit", "0.8", "--lr", "0.01", "--warmup", "2", "--out", str(tmp_path)]
    assert transformer.main(["--threads", "1", "--repetitions", "3", *options]) == 0
    assert len(trainings) == 5
    times, counts = read(tmp_path, "transformer")["tables"].values()
    assert [row["contestant"] for row in times] == [transformer.STEP, transformer.CLIPPING]
    assert all(len(row["rounds"]) == 3 for row in times)
    assert len(counts) == 9
    assert all(row["clipped"] > 0 for row in counts)


def test_bench_stack_shows_what_a_run_takes_as_the_stack_grows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stack, "PRODUCT_SIZE", {"cpu": 64, "cuda": 64})
    arguments = ["--shape", "5,2,16", "--vocabulary", "50", "--sizes", "2", "1", "--device", "cpu"]
    assert stack.main([*SMALL, *arguments, "--out", str(tmp_path)]) == 0
    rows, budgets = read(tmp_path, "stack")["tables"].values()
    for row, cells in zip(rows, budgets, strict=True):
        assert set(row["budget"]) == {"forward", "backward", "metrics", "update", "clipping"} <= set(row["measured"])
        assert cells["update, ms"].startswith(f"{number(1e3 * row['measured']['update'])} / ")
        assert sum(row["measured"].values()) == pytest.approx(row["seconds"], rel=0.5)
    assert [row["runs"] for row in rows] == [1, 2]
    operations = (gru_work(5, 2, 16, 16) + output_work(10, 16, 50)).operations
    assert all(row["rate"] == pytest.approx(operations * row["runs"] / row["seconds"]) for row in rows)
    assert stack.ON_CPU in capsys.readouterr().out


def test_bench_sweep_trains_the_runs_by_each_launcher(tmp_path, data_root, monkeypatch, capsys):
    monkeypatch.setenv("GRUCLIP_DATA", str(data_root))
    small = ["--runs", "2", "--steps", "1", "--experiment", "jsb_chorales", "--launchers", "basic", "stacked"]
    assert sweep.main(["--threads", "1", "--repetitions", "1", *small, "--out", str(tmp_path)]) == 0
    (table,) = read(tmp_path, "sweep")["tables"].values()
    assert [row["contestant"] for row in table] == ["basic", "stacked"]


def test_a_sweep_that_fails_says_how(monkeypatch):
    arguments = sweep.arguments_of("basic", runs=1, steps=1, experiment="demo", threads=1)
    with pytest.raises(UserError, match=r"exit code 2: gruclip: optimizer.lr=-1"):
        sweep.sweep([*arguments, "optimizer.lr=-1"], sweep.environment_of("basic", 1), runs=1)


def test_joblib_has_as_many_processes_as_the_others_have_threads():
    assert "hydra.launcher.n_jobs=3" in sweep.arguments_of("joblib", 4, 1, "demo", threads=3)
    assert sweep.environment_of("joblib", 3)["OMP_NUM_THREADS"] == "1"
    assert sweep.environment_of("stacked", 3)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gru", "--threads", "0"], "argument --threads: 0: should be a whole number of at least 1"),
        (["gru", "--shapes", "3,2"], "argument --shapes: 3,2: should be three whole numbers T,B,n"),
        (["projection", "--fractions", "2"], "argument --fractions: 2: should be a number from 0 to 1"),
        (["projection", "--record"], "argument --record: expected at least one argument"),
        (["projection", "--grid", "0"], "argument --grid: 0: should be a whole number of at least 1"),
        (["projection", "--grid", "8", "--late"], "--late: does nothing beside --grid; leave it out"),
        (["projection", "--grid", "8", "--repetitions", "2"], "--repetitions: does nothing beside --grid"),
        (["projection", "--keep", "3"], "--keep: does nothing without --record; leave it out"),
        (["projection", "--sizes", "--fractions", "--out", "/nowhere"], "nothing is left to be measured; give one"),
        (["stack", "--sizes", "0"], "argument --sizes: 0: should be a whole number of at least 1"),
        (["transformer", "--shape", "5,3,15"], "--shape 5,3,15: n should be a multiple of 4, the heads"),
        (["transformer", "--shape", "100000,1,4"], "--shape 100000,1,4: T should be less than the text's"),
        (["step", "--data", "."], "--data: does nothing on random words; leave it out"),
        (["step", "--experiment", "nottingham", "--vocabulary", "9"], "--vocabulary: does nothing on nottingham"),
        (["step", "--experiment", "imdb"], "argument --experiment: invalid choice: 'imdb'"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments, message, capsys):
    assert gruclip.cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_extra_that_is_not_installed_is_left_out_and_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keras_peer, "is_installed", lambda: False)
    assert gru.main([*SMALL, "--shapes", "3,2,8", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert keras_peer.MISSING in printed
    assert "| Keras on JAX" not in printed


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file/x: cannot be written"):
        gru.main([*SMALL, "--shapes", "3,2,8", "--out", str(tmp_path / "file" / "x")])
