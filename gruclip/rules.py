"""What a setting may be: rules in words, and a configuration built from a mapping with every value's type checked."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from gruclip.errors import ConfigError


def plural(number: int, noun: str) -> str:
    """In words: 1 run, 2 runs."""
    return f"{number} {noun}" + "s" * (number != 1)


class Rule(NamedTuple):
    """What a value should be, in words, and whether one is."""

    right: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """`ConfigError`, naming the setting, where the value is not as it should be."""
        if not self.holds(value):
            raise ConfigError(f"{name}={value}: should be {self.right}")


def _as_float(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name}={str(value)[:20]}...: should be a number below 1e308") from None


def one_of(names: Collection[str]) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names)


def at_least(least: int, most: int = 10**9) -> Rule:
    return Rule(f"a whole number of at least {least}, at most {most:,}", lambda value: least <= value <= most)


#: Room for a product with whatever stands beside it in float64.
POSITIVE = Rule("a positive number from 1e-300 to 1e300", lambda value: 1e-300 <= value <= 1e300)
NOT_BELOW_ONE = Rule("a number of at least 1, at most 1e30", lambda value: 1 <= value <= 1e30)
#: A folder's name below another one: no separator, nothing hidden, nothing that a terminal acts upon.
#: And no name of a file that kept runs are in, for which its runs would be taken.
PLAIN_NAME = Rule(
    "a plain name of at most 100 letters, digits, and . _ + - within, not ending in .csv",
    lambda value: re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}(?<!\.csv)", value, re.ASCII) is not None,
)
PATH = Rule(
    "a folder's path of at most 1,000 printable characters",
    lambda value: 0 < len(value) <= 1000 and value.isprintable(),
)
PLAIN_PATH = Rule(f"{PATH.right}, ~ written out", lambda value: PATH.holds(value) and not value.startswith("~"))
SHARE = Rule("a number from 0 up to, not including, 1", lambda value: 0 <= value < 1)
SEED = Rule("a whole number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)


def setting(default: Any, meaning: str, rule: Rule | None = None) -> Any:
    """A field of a dataclass with its default, what it means, and what it may be; None, where its type has it, may."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "rule": rule})


def check_rules(settings: Any, prefix: str = "") -> None:
    """`ConfigError` for the first setting of a dataclass, in its order, whose value its rule does not allow."""
    for field in dataclasses.fields(settings):
        name, value, rule = f"{prefix}{field.name}", getattr(settings, field.name), field.metadata.get("rule")
        if dataclasses.is_dataclass(value):
            check_rules(value, f"{name}.")
        elif rule is not None and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                rule.check(name, one)


_hints = functools.cache(typing.get_type_hints)  # asked for every run that is read


def build(cls: Any, settings: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass of settings from a mapping; `ConfigError` for an unknown name and a value of another type."""
    hints = _hints(cls)
    unknown = [name for name in settings if name not in hints]
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]}: no such setting; there are {', '.join(hints)}")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{name}={value!r}: should be a group of settings")
            values[name] = build(hints[name], value, f"{prefix}{name}.")
        else:
            values[name] = _convert(f"{prefix}{name}", value, hints[name])
    return cls(**values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` asks for, so that lr=1 and lr=1.0 are one run and "ten" is refused."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, str | Iterable):
        return tuple(str(item) for item in ([value] if isinstance(value, str) else value))
    # NumPy's numbers, too: from Python a sweep is often written with these.
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is float and number:
        return _as_float(name, value)
    if hint is int and number and (isinstance(value, numbers.Integral) or _as_float(name, value).is_integer()):
        return int(value)
    if hint is str and isinstance(value, str | os.PathLike):
        return str(os.fspath(value))  # NumPy's words are strings of their own
    kind = {float: "a number", int: "a whole number", str: "a word"}.get(hint, "a list of words")
    raise ConfigError(f"{name}={value}: should be {kind}")
