"""Which runs may stand in one table: those whose settings are equal, all but the ones the table is about."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gruclip.choices import CELLS, DATASET_NAMES, METHODS, OPTIMIZERS, WORD_DATASETS
from gruclip.config import IDENTITY_SETTINGS
from gruclip.errors import MissingRuns
from gruclip.report import recalled
from gruclip.rules import plural

METHOD = ("optimizer.name", "optimizer.threshold", "optimizer.delta")
IDENTITY = (*IDENTITY_SETTINGS, "data_sha256")
#: What the seeds of one setting have in common.
SETTING = tuple(name for name in IDENTITY if name != "seed")

#: How a table's line on the runs that it cannot count begins.
UNCOUNTED = "Not counted"

METHOD_NAMES = {name: method.name for name, method in METHODS.items()}

#: Settings that every caption states; any other is named where it departs from the protocol or between sections.
_STATED = (
    "dataset.name",
    "model.cell",
    "model.hidden_size",
    "model.num_layers",
    "optimizer.lr",
    "precision",
    "trainer.budget",
    "trainer.max_epochs",
    "trainer.short_epochs",
    "trainer.max_steps",
)


@dataclass(frozen=True)
class Section:
    """Runs of equal settings but for those in `free`; `differing` are the settings that part it from its neighbours."""

    runs: pd.DataFrame
    free: frozenset[str]
    differing: tuple[str, ...]
    told: tuple[str, ...] = ()  #: settings without whose values its caption would be another section's

    @property
    def dataset(self) -> str:
        return self.runs["dataset.name"].iloc[0]

    @property
    def is_words(self) -> bool:
        return self.dataset in WORD_DATASETS

    @property
    def loss(self) -> str:
        return "perplexity" if self.is_words else "loss"

    @property
    def loss_and_unit(self) -> str:
        return "Perplexity" if self.is_words else "Loss, in nats per time step"

    def number(self, value: float) -> str:
        """A perplexity or a loss in nats with the digits that the tables give it."""
        return f"{value:.1f}" if self.is_words else f"{value:.2f}"

    @property
    def departures(self) -> list[str]:
        """The settings that are not the protocol's (all of them equal in the section); none for the demo."""
        first, protocol = self.runs.iloc[0], recalled.PROTOCOL.get(self.dataset, {})
        return [name for name, value in protocol.items() if name not in self.free and first[name] != value]

    @property
    def is_whole(self) -> bool:
        """Whether the runs are as long as the protocol's."""
        first = self.runs.iloc[0]
        epochs, wanted = first["trainer.max_epochs"], recalled.EPOCHS.get(self.dataset)
        asked = pd.isna(epochs) if wanted is None else epochs == wanted
        return bool(first["trainer.budget"] == "full" and pd.isna(first["trainer.max_steps"]) and asked)

    @property
    def model(self) -> str:
        """Data, model and precision."""
        first = self.runs.iloc[0]
        cell = "" if "model.cell" in self.free else f"{first['model.cell']} "
        size = f"{first['model.num_layers']} x {first['model.hidden_size']}"
        return f"{DATASET_NAMES[self.dataset]}, {cell}{size}, {first['precision']}"

    @property
    def caption(self) -> str:
        """Data, model, precision, learning rate and length of the runs, and whatever else is out of the ordinary."""
        first = self.runs.iloc[0]
        rate = [] if "optimizer.lr" in self.free else [f"learning rate {first['optimizer.lr']:g}"]
        return ", ".join([self.model, *rate, _length(first), *self.others])

    @property
    def others(self) -> list[str]:
        """``name=value`` of the unstated settings that depart from the protocol or between sections."""
        first = self.runs.iloc[0]
        unstated = {*self.departures, *self.differing}.difference(_STATED).union(self.told)
        return [f"{name}={value(first[name], name in self.told)}" for name in IDENTITY if name in unstated]


def sections(runs: pd.DataFrame, free: Collection[str]) -> list[Section]:
    """The runs parted by every identity setting outside `free` (the seed is always free), in the order of `runs`."""
    fixed = [name for name in SETTING if name not in free]
    differing = tuple(name for name in fixed if runs[name].nunique(dropna=False) > 1)
    if not differing:
        return [Section(runs, frozenset(free), ())]
    groups = runs.groupby(list(differing), dropna=False, sort=False)
    return _told_apart([Section(group, frozenset(free), differing) for _, group in groups])


def _told_apart(parts: list[Section]) -> list[Section]:
    """The sections, those of equal captions with what parts them: settings that a caption states of other runs, as
    max_epochs, which it leaves out of those that max_steps ends."""
    places: dict[str, list[int]] = {}
    for place, part in enumerate(parts):
        places.setdefault(part.caption, []).append(place)
    for same in (one for one in places.values() if len(one) > 1):
        values = pd.DataFrame([parts[place].runs.iloc[0] for place in same])[list(parts[0].differing)]
        told = tuple(name for name in values if values[name].nunique(dropna=False) > 1)
        for place in same:
            parts[place] = replace(parts[place], told=told)
    return parts


def known(parts: Sequence[Section], columns: Collection[str]) -> list[Section]:
    """The sections of which some run has all of these columns."""
    return [part for part in parts if part.runs[list(columns)].notna().all(axis=1).any()]


def uncounted(part: Section, counted: pd.DataFrame, what: str) -> list[str]:
    """A line on the finished runs of a section that a table cannot count: it names the settings they are of."""
    left = by_method(part.runs.drop(counted.index))
    runs = [f"{label(mine.iloc[0])} ({plural(len(mine), 'run')})" for mine in left]
    return [f"{UNCOUNTED}, for they came without {what}: {', '.join(runs)}."] if runs else []


def rate_sweeps(runs: pd.DataFrame) -> list[Section]:
    """The sections in which something was run at more than one learning rate; `MissingRuns` where there is none."""
    sweeps = [part for part in sections(runs, (*METHOD, "optimizer.lr")) if part.runs["optimizer.lr"].nunique() > 1]
    if not sweeps:
        rate = f"{runs['optimizer.lr'].iloc[0]:g}"
        experiment = runs["experiment"].iloc[0]
        raise MissingRuns(
            f"optimizer.lr={rate}: the only rate among these {len(runs)} runs; "
            f"make a sweep over rates with: gruclip reproduce lr +experiment={experiment}"
        )
    return sweeps


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the paper's order: method, then ascending threshold, then ascending delta."""
    rank = frame["optimizer.name"].map({name: rank for rank, name in enumerate(OPTIMIZERS)})
    order = frame.assign(rank=rank).sort_values(
        ["rank", "optimizer.threshold", "optimizer.delta"], na_position="first", kind="stable"
    )
    return frame.loc[order.index]


def by_method(frame: pd.DataFrame, *others: str) -> Iterator[pd.DataFrame]:
    """The rows of each method with its parameters, and of each value of the `others`, `in_order`."""
    for _, mine in in_order(frame).groupby([*METHOD, *others], dropna=False, sort=False):
        yield mine


def setting(row: Mapping[str, Any] | pd.Series) -> str:
    """A method's parameters, e.g. "threshold 5, delta 0.2"; empty for plain SGD."""
    parts = [(name, row[f"optimizer.{name}"]) for name in ("threshold", "delta")]
    return ", ".join(f"{name} {value:g}" for name, value in parts if pd.notna(value))


def label(row: Mapping[str, Any] | pd.Series) -> str:
    """A method's parameters, or its name where it has none: what tells it from the others in a sentence."""
    return setting(row) or METHOD_NAMES[row["optimizer.name"]]


def delta_fraction(row: Mapping[str, Any]) -> float:
    """Delta as a fraction of the cell's stability limit; NaN for a method that has no delta."""
    return row["optimizer.delta"] / CELLS[row["model.cell"]].bias_free_limit


def _length(run: pd.Series) -> str:
    budget = "" if run["trainer.budget"] == "full" else f" (trainer.budget={run['trainer.budget']})"
    kind = {"full": "", "short": "short runs of ", "smoke": "smoke runs of "}[run["trainer.budget"]]
    epochs_first = run["epochs"] >= run["max_epochs"] and run["steps"] < run["max_steps"]
    if pd.notna(run["trainer.max_steps"]) and not epochs_first:
        return f"cut at {plural(int(run['trainer.max_steps']), 'iteration')} (trainer.max_steps){budget}"
    if pd.notna(run["max_steps"]) and not epochs_first:
        return f"{kind}{plural(int(run['max_steps']), 'iteration')}{budget}"
    if pd.notna(run["max_epochs"]):
        epochs = "epoch" if run["max_epochs"] == 1 else "epochs"
        return f"{kind}{'at most ' * (run['schedule.name'] == 'plateau')}{run['max_epochs']:.0f} {epochs}{budget}"
    return f"{kind}epochs until the learning rate is below {run['schedule.min_lr']:g}{budget}"


def value(setting: Any, exactly: bool = False) -> str:
    """A setting's value as a caption and a file's name give it; of a checksum the first eight digits."""
    if isinstance(setting, str):
        return setting[:8] if len(setting) == 64 and not exactly else setting
    if pd.isna(setting):
        return "null"
    short = f"{setting:g}"
    return str(setting) if exactly and float(short) != setting else short
