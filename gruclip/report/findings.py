"""What an experiment is asked, the paper's four claims, and what its runs say, in a few sentences from the same tables.

Nothing is judged here that a table does not judge: `outputs/README.md` weighs the experiments against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from gruclip.report.recalled import paper_rate
from gruclip.report.render import Table
from gruclip.report.sections import METHOD_NAMES, SETTING, UNCOUNTED
from gruclip.report.stability import UNSEEN
from gruclip.report.statistics import SEEDS_FOR_INTERVAL, finished, successful
from gruclip.report.timing import PHASES
from gruclip.rules import plural


class Finding(NamedTuple):
    """A question, and what the runs say to it, a sentence each; none where they say nothing."""

    question: str
    answers: list[str]


def findings(runs: pd.DataFrame, tables: Mapping[str, list[Table]]) -> list[Finding]:
    """Of runs as `reading.read_runs` gives them and their tables by name; a table that they cannot give is missing."""
    rate = paper_rate(runs["dataset.name"].iloc[0])
    answers = {
        "Does the gradient explode where the spectral radius of J passes 1?": _explosions(tables, rate),
        "Does spectral clipping train where gradient clipping fails?": _success(runs, rate),
        "Does it reach a lower loss?": _lower(tables),
        "Does it cost little?": _cost(tables),
    }
    return [Finding(question, list(sentences)) for question, sentences in answers.items()]


def _explosions(tables: Mapping[str, list[Table]], rate: float | None) -> Iterator[str]:
    if "explosions" not in tables:
        return
    values = pd.concat([table.values for table in tables["explosions"]])
    for words, some in _by_rate(values, rate):
        for name, mine in some.groupby("optimizer.name", sort=False):
            sums = mine.sum(numeric_only=True)
            shares = [
                f"{sums[f'explosions.{side}']:,.0f} of {sums[f'iterations.{side}']:,.0f} iterations at a radius {where}"
                for side, where in (("below", "below 1"), ("above", "of 1 or more"))
                if sums[f"iterations.{side}"]
            ]
            told = f"it does in {' and '.join(shares)}" if shares else "no radius was measured"
            yield f"Under {METHOD_NAMES[name]} {words}, {plural(int(sums['runs']), 'run')}, {told}."
    yield from dict.fromkeys(
        note for table in tables["explosions"] for note in table.notes if note.startswith((UNCOUNTED, UNSEEN))
    )


def _success(runs: pd.DataFrame, rate: float | None) -> Iterator[str]:
    for words, some in _by_rate(finished(runs), rate):
        counts = []
        for name, mine in some.groupby("optimizer.name", sort=False):
            settings = mine.groupby(list(SETTING), dropna=False)["status"]
            whole = settings.agg(lambda statuses: (statuses == "success").all())
            counts.append(
                f"{METHOD_NAMES[name]} in {whole.sum()} of {len(whole)} settings "
                f"({len(successful(mine))} of {len(mine)} runs)"
            )
        yield f"Every seed succeeds {words}: {', '.join(counts)}."


def _by_rate(runs: pd.DataFrame, rate: float | None) -> Iterator[tuple[str, pd.DataFrame]]:
    at_rate = runs["optimizer.lr"] == rate
    parts = [(f"at the protocol's rate, {rate:g}", runs[at_rate]), ("at other rates", runs[~at_rate])] if rate else []
    for words, some in parts or [("at the rates tried", runs)]:
        if len(some):
            yield words, some


def _lower(tables: Mapping[str, list[Table]]) -> Iterator[str]:
    few = f"Open, for fewer than {SEEDS_FOR_INTERVAL} seeds or an interval that holds 0"
    for table in tables.get("differences", []):
        cells = table.cells
        reference = cells[cells["verdict"] == "reference"]
        if reference.empty:
            continue
        against = f"{reference['method'].iloc[0]}, {reference['setting'].iloc[0]}, at {reference['best rate'].iloc[0]}"
        parts = []
        for verdict, mine in cells[cells["verdict"] != "reference"].groupby("verdict", sort=False):
            numbers = verdict not in ("open", "never succeeds")
            named = [
                f"{row['setting'] or row['method']}{' ' + row['difference'] if numbers else ''}"
                for _, row in mine.iterrows()
            ]
            parts.append(f"{few if verdict == 'open' else str(verdict).capitalize()}: {'; '.join(named)}")
        yield f"{table.settings}, each at its best rate, against {against}. {'. '.join(parts) or 'Nothing to compare'}."


def _cost(tables: Mapping[str, list[Table]]) -> Iterator[str]:
    if "cost" not in tables:
        return
    values = pd.concat([table.values for table in tables["cost"]])
    shares = values["clipping"] / values[list(PHASES)].sum(axis=1)
    shares = shares[values["optimizer.delta"].notna()]
    if len(shares):
        yield f"The projection takes {shares.min():.1%} to {shares.max():.1%} of an iteration, by setting and machine."
