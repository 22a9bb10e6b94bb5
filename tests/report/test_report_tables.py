"""The tables are exactly what the runs wrote, no run hidden."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from made_runs import DEMO, NOTTINGHAM, PTB, config, frame, perplexity, summary, write_run

from gruclip.cli import arguments
from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.report import reading, sections, tables

EXPECTED = """\
**Table 1.** Penn Treebank, gru 1 x 650, fp32, learning rate 1, 75 epochs. Success: the validation loss at every \
epoch's end at or below its value before training. Exploded: a gradient norm, before clipping, that is not finite \
or above 100 times its median over the preceding 200 iterations; the largest is over all finished runs. Perplexity: \
mean ± standard deviation (n - 1) over the successful runs.

| method            | setting                | success | exploded | largest gradient norm | validation perplexity | \
test perplexity | paper (recalled, unchecked): success | paper (recalled, unchecked): test perplexity |
|-------------------|------------------------|---------|----------|-----------------------|-----------------------|-\
----------------|--------------------------------------|----------------------------------------------|
| gradient clipping | threshold 5            | 2/3     | 1/3      | 546                   | 112.0 ± 2.8           | \
108.0 ± 2.8     | 100 %                                | 106.9                                        |
| gradient clipping | threshold 10           | 0/2     | 2/2      | inf                   | N/A                   | \
N/A             | 40 %                                 | 100.4                                        |
| spectral clipping | delta 0.2              | 2/2     | 0/2      | 14.1                  | 102.0 ± 1.4           | \
98.0 ± 1.4      | 100 %                                | 97.6                                         |
| spectral clipping | delta 1.4              | 1/1     | 0/1      | 9                     | 105.0                 | \
102.0           | 100 %                                | 102.1                                        |
| combined clipping | threshold 5, delta 0.2 | 0/0     | 0/0      | N/A                   | N/A                   | \
N/A             |                                      |                                              |
| SGD               |                        | 0/1     | 1/1      | nan                   | N/A                   | \
N/A             |                                      |                                              |

Unfinished, in no number of this table: `combined_clipping,threshold=5,delta=0.2,lr=1,seed=0`, \
`gradient_clipping,threshold=5,lr=1,seed=3`.
"""


def written_runs(output_dir: Path) -> None:
    """Successful, failed, diverged, exploded and unfinished runs, and one that has only begun."""

    def write(name: str, parameter: float, seed: int, status: str, *losses: float, **values: Any) -> None:
        nats = [perplexity(value) for value in losses]
        write_run(output_dir, config(PTB, name, parameter, seed=seed), summary(status, *nats, **values))

    write("gradient_clipping", 10, 0, "failed", 400, 390, exploded=True, max_grad_norm=8e6)
    write("gradient_clipping", 10, 1, "diverged", exploded=True, max_grad_norm="inf")
    write("gradient_clipping", 5, 0, "success", 110, 106, max_grad_norm=546.25)
    write("gradient_clipping", 5, 1, "success", 114, 110, max_grad_norm=54, exploded=True)
    write("gradient_clipping", 5, 2, "failed", 700, 690, max_grad_norm=60)
    write("gradient_clipping", 5, 3, "unfinished", max_grad_norm=1e9)
    write("spectral_clipping", 1.4, 0, "success", 105, 102.04, max_grad_norm=9)
    write("spectral_clipping", 0.2, 0, "success", 101, 97, max_grad_norm=14)
    write("spectral_clipping", 0.2, 1, "success", 103, 99, max_grad_norm=14.1)
    write("sgd", 0, 0, "diverged", exploded=True, max_grad_norm="nan")
    combined = config(PTB, "combined_clipping", optimizer__threshold=5, optimizer__delta=0.2)
    write_run(output_dir, combined, None)


def test_table_1_of_a_hand_written_folder_is_exactly_this(tmp_path: Path) -> None:
    written_runs(tmp_path)
    assert tables.table("1", reading.read_runs(tmp_path, "ptb"), "md") == EXPECTED


def test_recalled_values_stand_only_beside_the_experiment_they_belong_to() -> None:
    for base in (PTB, NOTTINGHAM):
        assert "recalled, unchecked" in _table([(config(base, "sgd"), summary())])
    assert "recalled" not in _table([(config(DEMO, "sgd"), summary())])
    assert "recalled" not in _table([(config(NOTTINGHAM, "sgd", dataset__name="musedata"), summary())])
    assert "recalled" not in _table([(config(PTB, "sgd", model__cell="lstm"), summary())])
    assert "recalled" not in _table([(config(PTB, "sgd", optimizer__lr=0.3), summary())])


@pytest.mark.parametrize(
    "shorter", [{"trainer__budget": "short"}, {"trainer__max_steps": 9}, {"trainer__max_epochs": 3}], ids=str
)
def test_recalled_values_do_not_stand_beside_shorter_runs(shorter: dict[str, Any]) -> None:
    for base in (PTB, NOTTINGHAM):
        assert "recalled" not in _table([(config(base, "sgd", **shorter), summary())])


def test_every_recalled_value_of_table_2_is_printed() -> None:
    deltas, thresholds = (0.2, 0.5, 0.8, 1.1, 1.4), (15, 30, 45, 60)
    runs = [(config(NOTTINGHAM, "spectral_clipping", delta), summary()) for delta in deltas]
    runs += [(config(NOTTINGHAM, "gradient_clipping", threshold), summary()) for threshold in thresholds]
    last = [line.split("|")[-2].strip() for line in _table(runs).splitlines() if line.startswith(("| gr", "| sp"))]
    assert last == ["3.57", "3.61", "3.88", "5.26 ± 3", "3.46", "3.47", "3.59", "4.58", "4.64"]


def test_music_is_in_nats_per_time_step_and_called_table_2() -> None:
    runs = [(config(NOTTINGHAM, "sgd", seed=seed), summary(valid=3.5 + seed, test=4.0)) for seed in range(2)]
    text = _table(runs)
    assert text.startswith("**Table 2.** Nottingham, gru 2 x 200, fp32, learning rate 0.1, epochs until the learning")
    assert "Loss, in nats per time step: mean" in text
    assert "| 4.00 ± 0.71" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trainer__budget": "short"}, "short runs of 10 epochs (trainer.budget=short)"),
        ({"trainer__budget": "smoke"}, "smoke runs of 20 iterations (trainer.budget=smoke)"),
        ({"trainer__max_steps": 400}, "cut at 400 iterations (trainer.max_steps)"),
        ({"model__dropout": 0.0}, "75 epochs, model.dropout=0."),
        ({"schedule__name": "constant"}, "75 epochs, schedule.name=constant."),
    ],
)
def test_a_caption_says_what_is_not_the_protocols(settings: dict[str, Any], words: str) -> None:
    assert words in _table([(config(PTB, "sgd", **settings), summary())])


def test_short_runs_have_a_table_of_their_own() -> None:
    full = [(config(PTB, "sgd", seed=seed), summary(test=perplexity(100))) for seed in range(2)]
    short = [(config(PTB, "sgd", trainer__budget="short"), summary(test=perplexity(200)))]
    text = _table(full + short)
    assert text.count("**Table 1.**") == 2
    assert "100.0 ± 0.0" in text
    assert "200.0 " in text


def test_no_two_tables_have_the_same_caption() -> None:
    """Runs that max_steps ends state it, and not the epochs that they would have had."""
    runs = [
        (config(PTB, "sgd", trainer__max_steps=20, trainer__max_epochs=epochs, optimizer__lr=rate), summary())
        for epochs in (1, 2, 75)
        for rate in (0.5, 1.0)
    ]
    parts = sections.sections(frame(runs), ["optimizer.name"])
    captions = [part.caption for part in parts]
    assert len(set(captions)) == len(runs)
    assert [caption.count("trainer.max_epochs=") for caption in captions] == [1] * len(runs)
    close = [(config(PTB, "sgd", optimizer__lr=rate), summary()) for rate in (0.1, 0.1000000001)]
    assert len({part.caption for part in sections.sections(frame(close), ["optimizer.name"])}) == 2
    (whole,) = sections.sections(frame(runs[:1]), ["optimizer.name"])
    assert "max_epochs" not in whole.caption


def test_a_corpus_of_ones_own_has_no_protocol_to_be_judged_by() -> None:
    own = {"experiment": "mine", "dataset": {"name": "text", "root": "somewhere"}}
    runs = frame(
        [(config(own, "sgd", optimizer__lr=rate, seed=seed), summary()) for rate in (0.5, 1) for seed in (0, 1)]
    )
    assert [table.caption.split(", ")[3] for table in tables.TABLES["1"](runs)] == [
        "learning rate 0.5",
        "learning rate 1",
    ]
    (rates,) = tables.TABLES["lr"](runs)
    assert "protocol" not in rates.caption
    assert list(rates.cells) == [
        "method", "setting", "best rate", "success there", "test perplexity there", "succeeds at rates",
    ]  # fmt: skip
    assert rates.notes == ["The best rate is at the edge of those tried: SGD."]


def test_table_1_is_at_the_protocols_rate_and_says_where_the_others_are() -> None:
    rates = (0.1, 0.3, 1.0)
    text = _table([(config(PTB, "sgd", optimizer__lr=rate), summary(test=perplexity(100 * rate))) for rate in rates])
    assert text.count("**Table 1.**") == 1
    assert "| 100.0 " in text
    assert text.endswith("Runs at other learning rates (0.1, 0.3) are in `gruclip table lr`.\n")


def test_runs_without_the_protocols_rate_are_shown_all_the_same() -> None:
    text = _table([(config(PTB, "sgd", optimizer__lr=rate), summary()) for rate in (0.1, 0.3)])
    assert text.count("**Table 1.**") == 2
    assert "other learning rates" not in text


EXPECTED_LR = """\
**Learning rates.** Python's pydoc topics, gru 1 x 200, fp32, 5 epochs. Best rate: of the rates with 5 finished runs \
or more, else with the most, that of the highest success rate, then of the lowest mean validation loss; the protocol's \
rate is 1. Success: the validation loss at every epoch's end at or \
below its value before training. Perplexity: mean over the successful runs with its 95 % bootstrap interval; of \
fewer than 5 successful runs the values themselves. A method succeeds at a rate where all its finished runs do; a \
range holds every rate tried within it.

| method            | setting      | best rate | success there | test perplexity there | succeeds at rates | \
success at rate 1 | test perplexity at rate 1 |
|-------------------|--------------|-----------|---------------|-----------------------|-------------------|--------\
-----------|---------------------------|
| gradient clipping | threshold 5  | 0.3       | 2/2           | 105.0, 107.0          | 0.1 to 0.3        | 1/2    \
           | 100.0                     |
| gradient clipping | threshold 20 | none      | N/A           | N/A                   | none              | not \
run           | not run                   |
| spectral clipping | delta 0.2    | 1         | 5/5           | 97.0 [95.2, 98.8]     | 0.1, 1            | 5/5    \
           | 97.0 [95.2, 98.8]         |

Unfinished, in no number of this table: `spectral_clipping,delta=0.2,lr=0.3,seed=9`.
"""


def test_the_table_of_learning_rates_of_a_made_frame_is_exactly_this() -> None:
    # by method, parameter and rate: the seeds' test perplexities, 0 where a run failed
    perplexities: dict[tuple[str, float], dict[float, tuple[float, ...]]] = {
        ("gradient_clipping", 5): {0.1: (120, 122), 0.3: (105, 107), 1: (100, 0), 3: (0, 0)},
        ("gradient_clipping", 20): {0.1: (0, 0), 0.3: (0, 0)},
        ("spectral_clipping", 0.2): {0.1: (130,) * 6, 1: (95, 96, 97, 98, 99), 3: (99, 0, 0, 0, 0, 0)},
    }
    runs = [
        (
            config(DEMO, *method, seed=seed, optimizer__lr=rate),
            summary("success", perplexity(value), perplexity(value)) if value else summary("failed"),
        )
        for method, by_rate in perplexities.items()
        for rate, values in by_rate.items()
        for seed, value in enumerate(values)
    ]
    runs.append((config(DEMO, "spectral_clipping", 0.2, seed=9, optimizer__lr=0.3), summary("unfinished")))
    assert tables.table("lr", frame(runs)) == EXPECTED_LR


def test_a_table_of_learning_rates_needs_several() -> None:
    with pytest.raises(UserError, match=r"^optimizer.lr=1: the only rate .* gruclip reproduce lr \+experiment=demo$"):
        tables.table("lr", frame([(config(DEMO, "sgd"), summary())]))


def test_cells_stand_in_one_table_with_delta_as_a_fraction_of_each_ones_limit() -> None:
    runs = [
        (config(DEMO, "spectral_clipping", delta, model__cell=cell), summary())
        for cell, delta in (("tanh_rnn", 0.4), ("gru", 0.8), ("gru", 0.2), ("lstm", 0.8))
    ]
    runs.append((config(DEMO, "gradient_clipping", 5, model__cell="gru"), summary()))
    text = tables.table("cells", frame(runs))
    columns = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines() if line.startswith("| ")]
    assert columns == [
        ["cell", "method", "setting", "delta / limit"],
        ["gru", "gradient clipping", "threshold 5", ""],
        ["gru", "spectral clipping", "delta 0.2", "0.1"],
        ["gru", "spectral clipping", "delta 0.8", "0.4"],
        ["lstm", "spectral clipping", "delta 0.8", "0.4"],
        ["tanh_rnn", "spectral clipping", "delta 0.4", "0.4"],
    ]


def test_latex_escapes_what_latex_would_read() -> None:
    runs = frame([(config(PTB, "gradient_clipping", 5, trainer__max_steps=9), summary("unfinished"))])
    text = tables.table("1", runs, "tex")
    assert r"(trainer.max\_steps)" in text
    assert r"gradient\_clipping,threshold=5" in text
    assert text.count(r"\begin{tabular}{lllllll}") == 1
    assert r"100 \%" in tables.table("1", frame([(config(PTB, "gradient_clipping", 5), summary())]), "tex")


def test_csv_holds_values_and_the_settings_that_part_the_tables() -> None:
    runs = [(config(PTB, "sgd", seed=seed), summary(test=perplexity(100 + 2 * seed))) for seed in range(2)]
    runs.append((config(PTB, "sgd", precision="bf16"), summary("diverged", max_grad_norm="nan")))
    full, half = csv.DictReader(tables.table("1", frame(runs), "csv").splitlines())
    assert (full["precision"], full["succeeded"], full["test_mean"], full["test_std"]) == (
        "fp32",
        "2",
        "101",
        "1.41421",
    )
    assert full["test"] == "100 102"
    assert (half["precision"], half["succeeded"], half["test_mean"], half["max_grad_norm"]) == ("bf16", "0", "", "nan")
    unfinished = [(config(PTB, "sgd"), summary()), (config(PTB, "gradient_clipping", 5), summary("unfinished"))]
    row, _ = csv.DictReader(tables.table("1", frame(unfinished), "csv").splitlines())
    assert (row["finished"], row["max_grad_norm"], row["test"]) == ("0", "", "")


@pytest.mark.parametrize(
    ("which", "format", "message"),
    [
        ("3", "md", f"table 3: no such table; there are {', '.join(arguments.TABLES)}"),
        ("1", "html", "format html: no such format of a table; there are md, tex, csv"),
        ("2", "md", "table 2: is of music, these runs are of ptb; take gruclip table 1"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused(which: str, format: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        tables.table(which, frame([(config(PTB, "sgd"), summary())]), format)
    assert str(refused.value) == message


def test_the_command_line_knows_every_table() -> None:
    assert set(arguments.TABLES) == set(tables.TABLES)


def _table(runs: list[tuple[RunConfig, dict[str, Any]]]) -> str:
    made = frame(runs)
    return tables.table("1" if made["dataset.name"].iloc[0] in ("ptb", "pydoc") else "2", made)
