"""Hydra's and OmegaConf's errors in one line: what is wrong, the value, the remedy."""

from __future__ import annotations

import difflib
import re
import traceback

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from gruclip.config import RunConfig
from gruclip.errors import UserError

#: Settings whose values need not be words.
PATHS = ("output_dir", "dataset.root")


def explain(error: Exception) -> str | None:
    """One line for an error about what was typed; None for any other."""
    if isinstance(error.__cause__, UserError):  # of a launcher that Hydra made
        return str(error.__cause__)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        own = f"; your own is a file conf/{group}/{name}.yaml" if group in ("experiment", "sweep") else ""
        return f"{group}={name}: no such option; there are {', '.join(error.options)}{own}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; {_readable(str(error.override))}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: is no YAML ({error.problem}); mend it"
    if isinstance(error, UnicodeDecodeError | ReaderError) and _passed_by_hydra(error):
        return f"a file of the configuration is no text in UTF-8 ({error.reason}); save it as such"
    if unknown := re.search(r"(Sweeper|Launcher)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        return _no_such_setting(f"hydra.{unknown[1].lower()}.{unknown[2]}")
    if re.search(r"Config group override must be a string or a list", str(error)):
        return "an option of a group is no word (a number, true, null); write it in quotes, as in \"experiment='1'\""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return _first_lines(error) if _raised_by_hydra(error) else None
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", str(error)):
        return f"{several[1]}: several values; add -m to sweep over them"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, InterpolationKeyError) and (named := re.match(r"Interpolation key '(.+?)'", str(cause))):
        return f"{cause.full_key}=${{{named[1]}}}: there is no setting {named[1]}; write the value out"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        typed = re.match(r"Could not override '(.+?)'", str(error))
        return _no_such_setting(typed[1] if typed and "." in typed[1] else str(cause.full_key))
    return _first_lines(error)


def _readable(override: str) -> str:
    """What to write in the place of an override that Hydra's grammar does not take."""
    name, _, value = override.partition("=")
    if name not in PATHS:
        return "write setting=value, and with -m setting=value,value"
    if value.startswith("~"):
        return f"write {name}=$HOME{value[1:]}"
    return f"""write '{name}="{value}"'""" if not set(value) & set("\"'") else "take a path without quotes"


def _no_such_setting(name: str) -> str:
    if name.startswith("hydra.sweeper."):
        return f"{name}: no such setting of the sweeper; it has hydra.sweeper.grids"
    if name.startswith("hydra."):
        return f"{name}: no such setting of this launcher; its settings are in conf/hydra/launcher and conf/README.md"
    settings = list(RunConfig().flat())
    tops = list(dict.fromkeys(setting.partition(".")[0] for setting in settings))
    group, _, last = name.rpartition(".")
    siblings = [setting for setting in settings if group and setting.startswith(f"{group}.")]
    if siblings:
        return f"{name}: no such setting; there are {', '.join(siblings)}"
    # The setting of that name in some group, or a group.
    called = {setting.rpartition(".")[2]: setting for setting in settings} | (
        {} if group else {one: one for one in tops}
    )
    close = difflib.get_close_matches(last, called, n=1, cutoff=0.7)
    if close:
        return f"{name}: no such setting; did you mean {called[close[0]]}?"
    return f"{name}: no such setting; there are {', '.join(tops)}"


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "https://" not in line and "object_type=" not in line]
    return "; ".join(line.rstrip(".") for line in lines if line)


def _raised_by_hydra(error: Exception) -> bool:
    """Hydra has plain ValueErrors too, e.g. for ``dataset=null``."""
    return isinstance(error, ValueError) and _passed(error)[-1].startswith("hydra.")


def _passed_by_hydra(error: Exception) -> bool:
    """Whether Hydra was reading something."""
    return any(module.startswith("hydra.") for module in _passed(error))


def _passed(error: Exception) -> list[str]:
    """The modules of the error's traceback, that which raised it last."""
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)] or [""]
