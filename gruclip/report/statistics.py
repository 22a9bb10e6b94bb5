"""Numbers over runs. Failed and diverged runs count against the success rate and enter no mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: From this many successful seeds on an interval is given, below it the points themselves.
SEEDS_FOR_INTERVAL = 5


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that came to an end: success, failed or diverged."""
    return runs[runs["status"] != "unfinished"]


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
    values: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean: the same values give the same interval."""
    draws = np.random.default_rng(seed).choice(values, size=(resamples, len(values)))
    low, high = np.quantile(draws.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
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


def best_rate(rates: pd.DataFrame) -> float | None:
    """The learning rate of `rates` (`summarise` by rate) with the highest success rate, then the lowest mean
    validation loss, then the lowest of equals. The test loss has no part in it. None where no run succeeded.
    """
    ran = rates[rates["succeeded"] > 0]
    if ran.empty:
        return None
    order = ran.assign(failures=1 - ran["succeeded"] / ran["finished"])
    return float(order.sort_values(["failures", "valid_loss", "optimizer.lr"])["optimizer.lr"].iloc[0])


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
