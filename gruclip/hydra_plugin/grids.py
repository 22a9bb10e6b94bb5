"""A sweep as a union of grids, under what was typed: plain functions from names and values to lists of jobs."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import ListConfig

from gruclip.errors import UserError

#: What may be chosen for a key, each as the override that chooses it: ``{"seed": ["seed=0", "seed=1"]}``.
Grid = dict[str, list[str]]


def parse(overrides: Sequence[str], parser: OverridesParser) -> Grid:
    """The values of each override, those of a sweep one by one. Raises `UserError` for a sweep without a list."""
    grid: Grid = {}
    for override in parser.parse_overrides(list(overrides)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            value = override.get_value_element_as_str()
            grid[override.key_or_group] = [key if override.is_delete() else f"{key}={value}"]
        elif override.is_discrete_sweep():
            grid[override.key_or_group] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not grid[override.key_or_group]:
                raise UserError(f"{override.input_line}: no values; give some, e.g. {key}=1,2,3")
        else:
            raise UserError(f"{override.input_line}: an interval is no grid; give the values, e.g. {key}=1,2,3")
    return grid


def grid_overrides(grid: Mapping[str, object]) -> list[str]:
    """A sweep file's grid as overrides; a list is a sweep, and so is a word of Hydra's such as ``range(10)``."""
    lists = {key: value if isinstance(value, list | ListConfig) else [value] for key, value in grid.items()}
    return [f"{key}={','.join(map(str, values))}" for key, values in lists.items()]


def union(grids: Sequence[Grid], typed: Grid, groups: Collection[str]) -> list[tuple[str, ...]]:
    """The jobs of all grids, each the overrides of one run, without repetition.

    What is typed replaces a grid's values of the same key; where it is a key of other grids only, it is theirs and
    leaves this grid alone; a key of no grid holds for all. Of a group in `groups` (``optimizer``) what is typed
    selects: a grid keeps the choices typed, and is left out where it has none of them.
    """
    swept = {key for grid in grids for key in grid}
    everywhere = {key: values for key, values in typed.items() if key not in swept}
    jobs: dict[tuple[str, ...], None] = {}
    for grid in grids or [{}]:
        own = {key: _under(typed, key, values, key in groups) for key, values in grid.items()}
        jobs |= dict.fromkeys(itertools.product(*(everywhere | own).values()))
    if not jobs:
        key = next(key for key in typed if key in groups and key in swept)
        choices = dict.fromkeys(value.partition("=")[2] for grid in grids for value in grid.get(key, []))
        raise UserError(f"{', '.join(typed[key])}: not in this sweep, which has {', '.join(choices)}")
    return list(jobs)


def _under(typed: Grid, key: str, values: list[str], is_group: bool) -> list[str]:
    if key not in typed:
        return values
    return [value for value in values if value in typed[key]] if is_group else typed[key]
