"""Numbers over runs. Failed and diverged runs count against the success rate and enter no mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtrit

from gruclip.errors import MissingRuns

#: From this many successful seeds on an interval is given, below it the points themselves.
SEEDS_FOR_INTERVAL = 5

#: How captions tell what `best` does.
BEST_RATE = (
    f"of the rates with {SEEDS_FOR_INTERVAL} finished runs or more, else with the most, that of the highest success "
    "rate, then of the lowest mean validation loss"
)


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that came to an end: success, failed or diverged."""
    return runs[runs["status"] != "unfinished"]


def some_finished(runs: pd.DataFrame, what: str) -> pd.DataFrame:
    """`finished`, for `what` shows nothing else; `MissingRuns` where there is none."""
    ended = finished(runs)
    if ended.empty:
        raise MissingRuns(f"{what}: none of these {len(runs)} runs has finished; train them to their end")
    return ended


def successful(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["status"] == "success"]


def reported(runs: pd.DataFrame, split: str) -> np.ndarray:
    """The runs' losses on `split` ("valid" or "test") as the tables report them, one per run.

    Perplexity, exp(nats per token), for words; nats per time step for music. Losses are finite: for successful runs.
    """
    nats = runs[f"{split}_loss"].to_numpy(float)
    return np.where(runs["unit"] == "nats per token", np.exp(nats), nats)


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); NaN for the mean of none and for the deviation of fewer than two."""
    mean = float(np.mean(values)) if len(values) else np.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 100_000, seed: int = 0
) -> tuple[float, float]:
    """The expanded percentile bootstrap interval of the mean of two values or more; of the same values the same one.

    Its quantiles lie further out than the level's, so that of normal values it is as wide as Student's t makes it
    (Hesterberg, The American Statistician 69, 2015, section 5.3). Of five normal values the plain percentiles hold the
    mean in 84 % of cases instead of 95, these in 92 and of ten values in 94 (`tests/report/test_report_statistics.py`).
    """
    count = len(values)
    student = stdtrit(count - 1, (1 + level) / 2)
    tail = ndtr(-math.sqrt(count / (count - 1)) * student)
    draws = np.random.default_rng(seed).choice(values, size=(resamples, count))
    low, high = np.quantile(draws.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def summarise(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row for each combination of the columns `by`, over runs that otherwise differ in their seed alone.

    ``finished``, ``unfinished``, ``succeeded`` and ``exploded`` count runs, the latter two among the finished ones;
    ``max_grad_norm`` is the largest of the finished runs, NaN where one met a NaN. ``valid_mean``, ``valid_std``,
    ``test_mean``, ``test_std`` are of the successful runs as `reported`, ``valid_loss`` is their mean validation loss
    in nats, and ``test`` holds their test losses in the order of the seeds.
    """
    rows = []
    for key, group in runs.sort_values("seed", kind="stable").groupby(list(by), dropna=False, sort=False):
        ended, good = finished(group), successful(group)
        valid, test = reported(good, "valid"), reported(good, "test")
        valid_mean, valid_std = mean_and_std(valid)
        test_mean, test_std = mean_and_std(test)
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "finished": len(ended),
                "unfinished": len(group) - len(ended),
                "succeeded": len(good),
                "exploded": int(ended["exploded"].astype(bool).sum()),
                "max_grad_norm": np.max(ended["max_grad_norm"].to_numpy(float)) if len(ended) else np.nan,
                "valid_mean": valid_mean,
                "valid_std": valid_std,
                "test_mean": test_mean,
                "test_std": test_std,
                "valid_loss": mean_and_std(good["valid_loss"].to_numpy(float))[0],
                "test": test,
            }
        )
    return pd.DataFrame(rows)


def often_enough(finished: pd.Series) -> pd.Series:
    """Which of these numbers of finished runs let a setting be chosen: from five on, or the highest where that is less.

    What one seed did is no measure for what others did.
    """
    return (finished > 0) & (finished >= min(finished.max(), SEEDS_FOR_INTERVAL))


def best(summaries: pd.DataFrame) -> pd.Series | None:
    """The row of `summaries` (`summarise`) of those run `often_enough` with the highest success rate, then the lowest
    mean validation loss, then the lowest learning rate. The test loss has no part in it. None where no run succeeded.
    """
    ran = summaries[often_enough(summaries["finished"]) & (summaries["succeeded"] > 0)]
    if ran.empty:
        return None
    order = ran.assign(failures=1 - ran["succeeded"] / ran["finished"])
    return ran.loc[order.sort_values(["failures", "valid_loss", "optimizer.lr"], kind="stable").index[0]]


def is_at_edge(rates: pd.DataFrame, rate: float | None) -> bool:
    """Whether a rate is the lowest or the highest of those tried, so that the best one may lie beyond."""
    tried = rates.loc[rates["finished"] > 0, "optimizer.lr"]
    return tried.nunique() > 1 and rate in (tried.min(), tried.max())


def edge_notes(settings: Sequence[str]) -> list[str]:
    """A line on the settings whose best rate `is_at_edge`."""
    return [f"The best rate is at the edge of those tried: {'; '.join(settings)}."] if settings else []


def succeeding_rates(rates: pd.DataFrame) -> list[tuple[float, float]]:
    """Stretches (lowest, highest) of neighbouring rates tried at which all finished runs succeed.

    A rate whose runs are all unfinished ends a stretch: nothing is known of it.
    """
    stretches: list[tuple[float, float]] = []
    open_stretch = False
    for _, rate in rates.sort_values("optimizer.lr").iterrows():
        succeeds = rate["finished"] > 0 and rate["succeeded"] == rate["finished"]
        if succeeds:
            low = stretches.pop()[0] if open_stretch else rate["optimizer.lr"]
            stretches.append((low, rate["optimizer.lr"]))
        open_stretch = succeeds
    return stretches
