"""The jobs of a sweep, from what was typed: the overrides of each run, and the configuration they give."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Iterator, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from gruclip.errors import ConfigError
from hydra_plugins.gruclip.grids import grid_overrides, parse, union
from hydra_plugins.gruclip.settings import CONFIG_NAME

#: What decides which grids there are, or what is in them: each of several choices has grids of its own. So
#: ``protocol.learning_rate.seeds=range(3)``, which Hydra reads as three choices, is three seeds.
DECIDING = re.compile(r"experiment|sweep|protocol(\..*)?")


def planned_jobs(loader: ConfigLoader, config: DictConfig) -> list[tuple[str, ...]]:
    """The overrides of each run of the sweep that `config`, composed for a multirun, describes."""
    parser = OverridesParser.create(config_loader=loader)
    typed = parse(config.hydra.overrides.task, parser)
    deciding = {key: choices for key, choices in typed.items() if DECIDING.fullmatch(key)}
    jobs: dict[tuple[str, ...], None] = {}
    for decision in itertools.product(*deciding.values()):
        decided = typed | {key: [choice] for key, choice in zip(deciding, decision, strict=True)}
        fixed = [choices[0] for choices in decided.values() if len(choices) == 1]
        composed = loader.load_configuration(
            CONFIG_NAME, [*config.hydra.overrides.hydra, *fixed], run_mode=RunMode.MULTIRUN
        )
        if not all(isinstance(grid, DictConfig) for grid in _listed(composed.hydra.sweeper.grids)):
            raise ConfigError(f"hydra.sweeper.grids={composed.hydra.sweeper.grids}: should be a list of mappings")
        grids = [parse(grid_overrides(grid), parser) for grid in composed.hydra.sweeper.grids]
        groups = {key for key in decided if loader.get_group_options(key)}
        jobs |= dict.fromkeys(union(grids, decided, groups))
    return list(jobs)


def _listed(grids: object) -> Sequence[object]:
    return list(grids) if isinstance(grids, ListConfig) else [grids]


def settings_of(jobs: Sequence[Sequence[str]], loader: ConfigLoader, config: DictConfig) -> Iterator[DictConfig]:
    """The configuration of each job, without Hydra's own part, as Hydra composes it.

    Composing takes Hydra a tenth of a second, and a sweep has hundreds of jobs: it composes once for each choice
    of groups, and plain values are set in a copy, which pickle makes eight times as fast as `copy.deepcopy`.
    """
    parser = OverridesParser.create(config_loader=loader)
    parsed = {text: parser.parse_override(text) for text in dict.fromkeys(itertools.chain(*jobs))}
    plain = {text: _is_plain(override, loader) for text, override in parsed.items()}
    composed: dict[tuple[str, ...], bytes] = {}
    for job in jobs:
        choices = tuple(text for text in job if not plain[text])
        if choices not in composed:
            settings = loader.load_sweep_config(config, list(choices))
            with open_dict(settings):
                del settings["hydra"]
            composed[choices] = pickle.dumps(settings)
        settings = pickle.loads(composed[choices])
        for text in job:
            if plain[text]:
                OmegaConf.update(settings, parsed[text].key_or_group, parsed[text].value())
        yield settings


def _is_plain(override: Override, loader: ConfigLoader) -> bool:
    """Whether an override sets one value of an existing setting."""
    key = override.key_or_group
    changes = override.type is OverrideType.CHANGE and not isinstance(override.value(), dict)
    return changes and not key.startswith("hydra") and not loader.get_group_options(key)
