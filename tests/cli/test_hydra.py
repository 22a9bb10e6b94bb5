"""The configuration tree, and sweeps as unions of grids."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import hydra
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given
from hypothesis import strategies as st

from gruclip.choices import CELLS, DATASETS, OPTIMIZERS, OWN_DATASETS
from gruclip.cli.training import CONFIG_MODULE, CONFIG_NAME, planned_runs, register_plugins, to_run
from gruclip.config import RunConfig
from gruclip.errors import UserError
from hydra_plugins.gruclip.grids import Grid, union
from hydra_plugins.gruclip.jobs import planned_jobs, settings_of

CONF = Path(__file__).parents[2] / "conf"
CORPORA = tuple(name for name in DATASETS if name not in OWN_DATASETS)
EXPERIMENTS = ("demo", *CORPORA[1:])
MUSIC = CORPORA[2:]


@pytest.fixture(scope="module")
def loader() -> ConfigLoader:
    register_plugins()
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3", job_name="gruclip"):
        return GlobalHydra.instance().config_loader()


def compose(loader: ConfigLoader, *overrides: str) -> RunConfig:
    return to_run(loader.load_configuration(CONFIG_NAME, list(overrides), run_mode=RunMode.RUN))


# -- the tree -------------------------------------------------------------------------------------------


def test_a_bare_train_is_the_default_run_and_the_demo(loader: ConfigLoader) -> None:
    assert compose(loader) == RunConfig()
    assert compose(loader, "+experiment=demo") == RunConfig()


def test_ptb_is_the_protocol_of_table_1(loader: ConfigLoader) -> None:
    run = compose(loader, "+experiment=ptb")
    assert (run.dataset.name, run.model.hidden_size, run.model.num_layers) == ("ptb", 650, 1)
    assert (run.model.dropout, run.model.input_scale, run.model.cell) == (0.5, 0.01, "gru")
    assert (run.schedule.name, run.schedule.factor, run.schedule.hold_epochs) == ("exponential", 1.1, 10)
    assert (run.optimizer.lr, run.trainer.max_epochs, run.trainer.short_epochs) == (1, 75, 10)
    assert (run.trainer.bptt, run.trainer.batch_size) == (35, 20)


@pytest.mark.parametrize("experiment", MUSIC)
def test_music_is_the_protocol_of_table_2(experiment: str, loader: ConfigLoader) -> None:
    run = compose(loader, f"+experiment={experiment}")
    assert (run.dataset.name, run.model.hidden_size, run.model.num_layers) == (experiment, 200, 2)
    assert (run.schedule.name, run.schedule.factor, run.schedule.patience) == ("plateau", 1.25, 10)
    assert (run.optimizer.lr, run.schedule.min_lr) == (0.1, 1e-4)
    assert (run.trainer.max_epochs, run.trainer.short_epochs) == (None, 40)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_is_chosen_by_its_name_alone(experiment: str, optimizer: str, loader: ConfigLoader) -> None:
    run = compose(loader, f"+experiment={experiment}", f"optimizer={optimizer}")
    threshold = 15 if experiment in MUSIC else 5
    assert run.experiment == experiment
    assert run.optimizer.name == optimizer
    assert run.optimizer.threshold == (threshold if optimizer in ("gradient_clipping", "combined_clipping") else None)
    assert run.optimizer.delta == (0.2 if optimizer in ("spectral_clipping", "combined_clipping") else None)


def test_loggers_add_up_and_csv_is_among_them(loader: ConfigLoader) -> None:
    assert compose(loader, "logger=wandb").logger == ("csv", "wandb")
    assert compose(loader, "logger=[tensorboard,mlflow]").logger == ("csv", "tensorboard", "mlflow")


def test_every_file_starts_with_what_it_is() -> None:
    files = sorted(CONF.rglob("*.yaml"))
    assert len(files) > 30
    for file in files:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), file


# -- the union of grids ---------------------------------------------------------------------------------

TABLE: list[Grid] = [
    {"optimizer": ["optimizer=a"], "threshold": ["threshold=5", "threshold=10"], "seed": ["seed=0", "seed=1"]},
    {"optimizer": ["optimizer=b"], "delta": ["delta=0.2"], "seed": ["seed=0", "seed=1"]},
]


def test_a_sweep_is_the_union_of_the_products_of_its_grids() -> None:
    assert union(TABLE, {}, set()) == [
        ("optimizer=a", "threshold=5", "seed=0"),
        ("optimizer=a", "threshold=5", "seed=1"),
        ("optimizer=a", "threshold=10", "seed=0"),
        ("optimizer=a", "threshold=10", "seed=1"),
        ("optimizer=b", "delta=0.2", "seed=0"),
        ("optimizer=b", "delta=0.2", "seed=1"),
    ]


def test_what_is_typed_replaces_equal_keys() -> None:
    typed = {"seed": ["seed=7"], "threshold": ["threshold=20"]}
    assert union(TABLE, typed, set()) == [
        ("optimizer=a", "threshold=20", "seed=7"),
        ("optimizer=b", "delta=0.2", "seed=7"),
    ]


def test_a_key_of_no_grid_holds_for_all() -> None:
    jobs = union(TABLE, {"lr": ["lr=1", "lr=3"]}, set())
    assert len(jobs) == 12
    assert all(job[0] in ("lr=1", "lr=3") for job in jobs)


def test_a_group_typed_selects_the_grids_that_have_it() -> None:
    assert union(TABLE, {"optimizer": ["optimizer=b"]}, {"optimizer"}) == union(TABLE[1:], {}, set())
    with pytest.raises(UserError, match=r"^optimizer=c: not in this sweep, which has a, b$"):
        union(TABLE, {"optimizer": ["optimizer=c"]}, {"optimizer"})


def test_without_grids_a_sweep_is_the_product_of_what_is_typed() -> None:
    typed = {"seed": ["seed=0", "seed=1"], "lr": ["lr=1"]}
    assert union([], typed, set()) == [("seed=0", "lr=1"), ("seed=1", "lr=1")]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abc"),
            st.lists(st.integers(0, 2), min_size=1, max_size=3).map(lambda values: [str(value) for value in values]),
        ),
        max_size=4,
    )
)
def test_no_job_is_launched_twice(grids: list[Grid]) -> None:
    jobs = union(grids, {}, set())
    assert Counter(jobs).most_common(1)[0][1] == 1
    largest = max((math.prod(len(set(values)) for values in grid.values()) for grid in grids), default=1)
    assert len(jobs) >= largest


# -- the sweeps -----------------------------------------------------------------------------------------


def settings(runs: list[RunConfig], *names: str) -> set[tuple[object, ...]]:
    return {tuple(run.flat()[name] for name in names) for run in runs}


METHOD = ("optimizer.name", "optimizer.threshold", "optimizer.delta")


@pytest.mark.parametrize(
    ("sweep", "experiment", "thresholds"),
    [("table1", "ptb", (5, 10, 15, 20)), ("table2", "nottingham", (15, 30, 45, 60))],
)
def test_the_tables_are_the_papers_rows_and_below_them_ours(
    sweep: str, experiment: str, thresholds: tuple[int, ...]
) -> None:
    runs = planned_runs([f"+experiment={experiment}", f"+sweep={sweep}"])
    papers = {("gradient_clipping", threshold, None) for threshold in thresholds}
    papers |= {("spectral_clipping", None, delta) for delta in (0.2, 0.5, 0.8, 1.1, 1.4)}
    ours = {("combined_clipping", thresholds[0], delta) for delta in (0.2, 0.8)} | {("sgd", None, None)}
    assert settings(runs, *METHOD) == papers | ours
    assert settings(runs, "seed") == {(seed,) for seed in range(10)}
    assert len(runs) == 10 * len(papers | ours)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_learning_rates_span_two_decades_around_the_experiments_own(experiment: str, loader: ConfigLoader) -> None:
    runs = planned_runs([f"+experiment={experiment}", "+sweep=learning_rate"])
    rates = sorted(rate for (rate,) in settings(runs, "optimizer.lr"))
    assert len(rates) >= 7
    assert rates[len(rates) // 2] == compose(loader, f"+experiment={experiment}").optimizer.lr
    assert rates[-1] / rates[0] == pytest.approx(100)
    methods, seeds = settings(runs, *METHOD), settings(runs, "seed")
    assert {name for name, *_ in methods} >= {"gradient_clipping", "spectral_clipping", "combined_clipping"}
    assert len(runs) == len(methods) * len(rates) * len(seeds)


def test_the_cells_are_swept_over_fractions_of_their_limits() -> None:
    runs = planned_runs(["+experiment=demo", "+sweep=cells", "optimizer=spectral_clipping"])
    for name, cell in CELLS.items():
        deltas = {run.optimizer.delta for run in runs if run.model.cell == name}
        assert sorted(delta / cell.bias_free_limit for delta in deltas) == pytest.approx([0.1, 0.25, 0.4, 0.55, 0.7])


@pytest.mark.parametrize("experiment", ["ptb", "nottingham"])
@pytest.mark.parametrize("sweep", ["figure1", "figure2", "learning_rate", "quickstart"])
def test_a_sweeps_settings_win_over_the_experiments_in_whatever_order_they_are_typed(
    experiment: str, sweep: str, loader: ConfigLoader
) -> None:
    runs = planned_runs([f"+experiment={experiment}", f"+sweep={sweep}"])
    assert planned_runs([f"sweep={sweep}", f"experiment={experiment}"]) == runs
    typed = [f"+experiment={experiment}"]
    protocol = loader.load_configuration(CONFIG_NAME, typed, run_mode=RunMode.MULTIRUN).protocol
    asked = {"quickstart": 4} | {name: protocol[name].epochs for name in ("figure1", "figure2", "learning_rate")}
    assert settings(runs, "trainer.max_epochs") == {(asked[sweep],)}


def test_figure_1_computes_the_radius_often_and_shows_both_methods() -> None:
    runs = planned_runs(["+experiment=ptb", "+sweep=figure1"])
    assert settings(runs, *METHOD) == {("gradient_clipping", 20, None), ("spectral_clipping", None, 0.2)}
    assert settings(runs, "trainer.radius_every") == {(5,)}


def test_figure_2_keeps_its_timings_apart_and_has_the_full_svd() -> None:
    runs = planned_runs(["+experiment=nottingham", "+sweep=figure2"])
    assert settings(runs, "output_dir") == {("outputs/figure2",)}
    assert ("spectral_clipping", 0.2, "full") in settings(
        runs, "optimizer.name", "optimizer.delta", "optimizer.algorithm"
    )


def test_the_quickstart_has_each_method_at_several_settings() -> None:
    runs = planned_runs(["+sweep=quickstart"])
    assert Counter(run.optimizer.name for run in runs) == {
        "gradient_clipping": 6,
        "spectral_clipping": 6,
        "combined_clipping": 2,
    }


def test_each_of_several_experiments_has_grids_of_its_own() -> None:
    runs = planned_runs(["+experiment=demo,nottingham", "+sweep=learning_rate"])
    both = settings(runs, "experiment", "optimizer.lr")
    assert ("demo", 10) in both
    assert ("nottingham", 0.01) in both
    assert ("nottingham", 10) not in both


@pytest.mark.parametrize(
    "seeds",
    [
        *(f"protocol.learning_rate.seeds={seeds}" for seeds in ("range(3)", "0,1,2", "[0,1,2]", "'range(3)'")),
        "protocol={learning_rate:{seeds:[0]}},{learning_rate:{seeds:[1,2]}}",
    ],
)
def test_a_typed_value_of_the_protocol_is_the_grids(seeds: str) -> None:
    runs = planned_runs(["+sweep=learning_rate", seeds, "protocol.delta=0.3,0.4"])
    assert settings(runs, "seed") == {(0,), (1,), (2,)}
    combined = [run for run in runs if run.optimizer.name == "combined_clipping"]
    assert settings(combined, "optimizer.delta") == {(0.3,), (0.4,)}


def test_a_typed_setting_comes_after_the_sweep_files(loader: ConfigLoader) -> None:
    (run,) = planned_runs(["+sweep=quickstart", "optimizer=combined_clipping", "trainer.radius_every=7", "seed=4"])
    assert (run.trainer.radius_every, run.seed) == (7, 4)


def test_jobs_are_composed_as_hydra_composes_them(loader: ConfigLoader) -> None:
    typed = ["+experiment=musedata", "+sweep=learning_rate", "seed=0,1", "protocol.threshold=7", "dataset.root=a b"]
    config = loader.load_configuration(CONFIG_NAME, typed, run_mode=RunMode.MULTIRUN)
    jobs = planned_jobs(loader, config)
    sample = [*jobs[:: len(jobs) // 6], jobs[-1]]
    ours = [to_run(settings) for settings in settings_of(sample, loader, config)]
    assert ours == [to_run(loader.load_sweep_config(config, list(job))) for job in sample]
    assert {run.optimizer.threshold for run in ours if run.optimizer.name == "combined_clipping"} == {7}
