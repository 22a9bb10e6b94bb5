"""What an experiment is asked, the paper's four claims, and what its runs say, in a few sentences from the same tables.

Nothing is judged here that a table does not judge: `outputs/README.md` weighs the experiments against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from gruclip.report.recalled import paper_rate
from gruclip.report.render import Table
from gruclip.report.sections import METHOD_NAMES
from gruclip.report.statistics import SEEDS_FOR_INTERVAL, finished, successful
from gruclip.report.timing import PHASES


class Finding(NamedTuple):
    """A question, and what the runs say to it, a sentence each; none where they say nothing."""

    question: str
    answers: list[str]


def findings(runs: pd.DataFrame, tables: Mapping[str, list[Table]]) -> list[Finding]:
    """Of runs as `collect.read_runs` gives them and their tables by name; a table that they cannot give is missing."""
    return [
        Finding(
            "Does the gradient explode where the spectral radius of J passes 1?",
            _said(_explosions, tables, "explosions"),
        ),
        Finding("Does spectral clipping train where gradient clipping fails?", list(_success(runs))),
        Finding("Does it reach a lower loss?", _said(_lower, tables, "differences")),
        Finding("Does it cost little?", _said(_cost, tables, "cost")),
    ]


def _said(answer: Callable[[list[Table]], Iterator[str]], tables: Mapping[str, list[Table]], name: str) -> list[str]:
    return list(answer(tables[name])) if name in tables else []


def _explosions(tables: list[Table]) -> Iterator[str]:
    values = pd.concat([table.values for table in tables])
    for name, mine in values.groupby("optimizer.name", sort=False):
        sums = mine.sum(numeric_only=True)
        sides = (("below", "below 1"), ("above", "of 1 or more"))
        shares = [
            f"{sums[f'explosions.{side}']:,.0f} of {sums[f'iterations.{side}']:,.0f} iterations at a radius {words}"
            for side, words in sides
            if sums[f"iterations.{side}"]
        ]
        yield f"Under {METHOD_NAMES[name]}, {sums['runs']:.0f} runs at all rates, it does in {' and '.join(shares)}."


def _success(runs: pd.DataFrame) -> Iterator[str]:
    ended = finished(runs)
    rate = paper_rate(runs["dataset.name"].iloc[0])
    at_rate = ended["optimizer.lr"] == rate
    for words, some in ((f"at the protocol's rate, {rate:g}", ended[at_rate]), ("at other rates", ended[~at_rate])):
        counts = [
            f"{METHOD_NAMES[name]} {len(successful(mine))} of {len(mine)}"
            for name, mine in some.groupby("optimizer.name", sort=False)
        ]
        if counts:
            yield f"Runs that succeed {words}: {', '.join(counts)}."


def _lower(tables: list[Table]) -> Iterator[str]:
    few = f"Open, for fewer than {SEEDS_FOR_INTERVAL} seeds or an interval that holds 0"
    for table in tables:
        cells = table.cells
        reference = cells[cells["verdict"] == "reference"]
        if reference.empty:
            continue
        against = f"{reference['method'].iloc[0]}, {reference['setting'].iloc[0]}, at {reference['best rate'].iloc[0]}"
        parts = []
        for verdict in ("lower loss", "higher loss", "open"):
            named = [
                f"{row['setting']}{'' if verdict == 'open' else ' ' + row['difference']}"
                for _, row in cells[cells["verdict"] == verdict].iterrows()
            ]
            if named:
                parts.append(f"{few if verdict == 'open' else verdict.capitalize()}: {'; '.join(named)}")
        yield f"{table.settings}, each at its best rate, against {against}. {'. '.join(parts) or 'Nothing to compare'}."


def _cost(tables: list[Table]) -> Iterator[str]:
    values = pd.concat([table.values for table in tables])
    shares = values["clipping"] / values[list(PHASES)].sum(axis=1)
    shares = shares[values["optimizer.delta"].notna()]
    if len(shares):
        yield f"The projection takes {shares.min():.1%} to {shares.max():.1%} of an iteration, by setting and machine."
