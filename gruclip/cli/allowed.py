"""What of Hydra's command line is gruclip's: settings and choices, and nothing that runs code or names other files.

Hydra takes much more: it unpickles jobs, instantiates classes by dotted paths, reads configurations from any folder,
and makes folders of its own. All of that is refused before Hydra sees it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from gruclip.errors import UserError

#: Options of Hydra's that read or run something else than gruclip's configuration.
REFUSED_OPTIONS = ("config_path", "config_name", "config_dir", "experimental_rerun")

LAUNCHERS = ("basic", "stacked", "slurm", "local", "joblib")
#: The package that a launcher needs, and the extra of gruclip's that has it.
NEEDS = {"slurm": ("submitit", "slurm"), "local": ("submitit", "slurm"), "joblib": ("joblib", "joblib")}
CHOICES = {"hydra/launcher": LAUNCHERS, "hydra/sweeper": ("grids",)}

#: A setting of a launcher, which takes plain values.
LAUNCHER_SETTING = re.compile(r"hydra\.launcher\.[a-z]\w*(\.\w+)*")
#: Beside the choices and the launcher's settings.
OTHERS = ("hydra.sweeper.grids",)

#: ``${oc.env:HOME}`` and its like, which call a function; and keys that name a class.
RESOLVER, INSTRUCTION = re.compile(r"\$\{[^}]*:"), re.compile(r"\b_(target|partial|recursive|convert|args)_\b")

GROUPS = ("experiment", "sweep", "dataset", "model", "optimizer", "schedule", "logger")

#: An option of a group, which is a file's name.
OPTION = re.compile(r"[\w-]+")


def check_command_line(argv: Sequence[str]) -> None:
    """Raise `UserError` for the first argument of ``gruclip train`` that is not gruclip's to take."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # its own prints a page
    options, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise UserError(f"{unknown[0]}: no such option; see gruclip train --help")
    if options.shell_completion:
        raise UserError("-sc: Hydra's completion is for programs of one command; gruclip has none")
    for name in REFUSED_OPTIONS:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: not an option of gruclip's; see gruclip train --help")
    check_overrides(options.overrides)
    for text in options.overrides:
        if not options.multirun and re.match(r"hydra[./](launcher|sweeper)\b", text):
            raise UserError(f"{text}: is for a sweep; add -m, as in gruclip train -m {text}")


def options_last(argv: Sequence[str]) -> list[str]:
    """The same command line with the options behind the settings: argparse takes settings from one place only."""
    parser = get_args_parser()
    takes = {name: action.nargs for action in parser._actions for name in action.option_strings}
    options, settings, rest = [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        options.append(argument)
        value = takes.get(argument, 0)
        if rest and (value is None or (value == "?" and not rest[0].startswith("-") and "=" not in rest[0])):
            options.append(rest.pop(0))
    return [*settings, *options]


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; see gruclip train --help")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `UserError` for the first override that is not of gruclip's settings and groups."""
    parser = OverridesParser.create()
    typed: dict[str, str] = {}
    for text in overrides:
        if RESOLVER.search(text):
            raise UserError(f"{text}: values are written out; a function such as ${{oc.env:HOME}} is not called")
        if INSTRUCTION.search(text):
            raise UserError(f"{text}: no setting names a class or a function")
        try:
            override = parser.parse_override(text)
        except HydraException:
            continue  # Hydra's own words for it are in `explain`
        _check(text, override)
        before = typed.setdefault(override.key_or_group, text)
        if before is not text and override.key_or_group in GROUPS:
            raise UserError(f"{before} and {text}: one option of the group {override.key_or_group}; leave one out")


def _check(text: str, override: Override) -> None:
    key = override.key_or_group
    if not key:
        raise UserError(f"{text}: without a name; write setting=value")
    if override.is_delete():
        raise UserError(f"{text}: a setting cannot be removed; write {key}=VALUE, or null where it may be")
    if override.package is not None:
        raise UserError(f"{text}: groups have their places; write {key}=OPTION")
    if key.partition(".")[0].partition("/")[0] == "hydra":
        _check_hydra(text, key)
    elif key in GROUPS:
        value = text.partition("=")[2]
        if value.startswith("[") and key != "logger":
            raise UserError(f"{text}: one option of the group {key} at a time; with -m, {key}=A,B tries several")
        for option in [] if value.startswith("{") else value.strip("[]").split(","):
            if not OPTION.fullmatch(option.strip()):
                raise UserError(f"{text}: not an option of the group {key}; gruclip train --help lists them")


def _check_hydra(text: str, key: str) -> None:
    if key in CHOICES:
        for value in text.partition("=")[2].split(","):
            if value not in CHOICES[key]:
                raise UserError(f"{key}={value}: should be one of {', '.join(CHOICES[key])}")
            name, extra = NEEDS.get(value, (None, None))
            if name and importlib.util.find_spec(f"hydra_plugins.hydra_{name}_launcher") is None:
                raise UserError(f"{key}={value}: needs hydra-{name}-launcher: pip install 'gruclip[{extra}]'")
    elif not LAUNCHER_SETTING.fullmatch(key) and key not in OTHERS:
        raise UserError(
            f"{text}: not a setting of gruclip's; of Hydra's there are {', '.join(CHOICES)} and hydra.launcher.SETTING"
        )
