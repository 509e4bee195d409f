"""What a sweep may try: a YAML (or JSON) file that says for fields of the recipe which values they may have.

rank: {choices: [4, 8, 16]}
learning_rate: {log_range: [1e-5, 1e-3]}       log_range: as likely in each power of ten
alpha: {range: [8, 64], step: 8}               step: optional
steps: 60                                      one value, for all trials
modules: {choices: ["q_proj,v_proj", "q_proj,k_proj,v_proj,o_proj"]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pocketgem.errors import FormatError, InputError, PromptError
from pocketgem.tune.recipe import Recipe

MOST_BYTES = 1 << 20
MOST_CHOICES = 1000
KINDS = ("choices", "range", "log_range")
Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """One of these."""

    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values to check: if these are good, all are."""
        return self.values

    @property
    def count(self) -> int | None:
        return len(self.values)


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, both taken in. whole: integers. step: between values, None for all of them."""

    low: float
    high: float
    whole: bool
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[Value, ...]:
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def count(self) -> int | None:
        """How many values there are, None where they cannot be counted."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1


@dataclass(frozen=True)
class Space:
    """``fixed``: what all trials have in common. ``free``: what they differ in, by the recipe's field."""

    fixed: Recipe
    free: Mapping[str, Choices | Range]

    @property
    def count(self) -> int | None:
        """How many different trials there are, None where they cannot be counted."""
        counts = [dimension.count for dimension in self.free.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def recipe(self, values: Mapping[str, Value]) -> Recipe:
        """One trial's. Raises PromptError for numbers that do not go together."""
        return replace(self.fixed, **values)  # type: ignore[arg-type]  # by names that were checked


def read_space(path: Path, *, seed: int = 1) -> Space:
    """The file, checked. seed: of all trials, unless the file says one. Raises InputError that names the key."""
    data = _parsed(path)
    defaults = Recipe(seed=seed)
    known = {field.name: getattr(defaults, field.name) for field in fields(Recipe)}
    fixed: dict[str, Any] = {}
    free: dict[str, Choices | Range] = {}
    for key, said in data.items():
        where = f"{path}: {key}"
        if key not in known:
            raise InputError(f"{where} is no field of a recipe; there are {', '.join(known)}")
        found = _dimension(said, known[key], where) if isinstance(said, Mapping) else _value(said, known[key], where)
        for value in found.ends if isinstance(found, Choices | Range) else (found,):
            _check(key, value, where)
        if isinstance(found, Choices | Range):
            free[key] = found
        else:
            fixed[key] = found
    if not free:
        raise InputError(f"{path}: nothing to try; give a field choices, a range or a log_range")
    return Space(replace(defaults, **fixed), free)


def _parsed(path: Path) -> Mapping[str, object]:
    import yaml

    if not path.is_file():
        raise InputError(f"{path}: no such file; give a file that says what to try (docs/sweep.md)")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: more than {MOST_BYTES >> 20} MiB; that is no file of what to try")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise FormatError(f"{path}: a field of the recipe on each line is expected, such as rank: {{choices: [4, 8]}}")
    return data


def _dimension(said: Mapping[object, object], like: object, where: str) -> Choices | Range:
    kinds = [kind for kind in KINDS if kind in said]
    if strangers := [str(key)[:40] for key in said if key not in (*KINDS, "step")]:
        raise InputError(f"{where} has {strangers[0]!r}; it may have {', '.join(KINDS)} and step")
    if len(kinds) != 1:
        raise InputError(f"{where} must have one of {', '.join(KINDS)}")
    values = said[kinds[0]]
    if not isinstance(values, list):
        raise InputError(f"{where}: {kinds[0]} must be a list")
    if kinds[0] == "choices":
        if "step" in said:
            raise InputError(f"{where}: step is for a range")
        return _choices(values, like, where)
    return _range(values, said.get("step"), like, where, log=kinds[0] == "log_range")


def _choices(values: Sequence[object], like: object, where: str) -> Choices:
    if not 1 <= len(values) <= MOST_CHOICES:
        raise InputError(f"{where}: {len(values)} choices, expected 1 to {MOST_CHOICES}")
    found = tuple(_value(value, like, where) for value in values)
    if len(set(found)) < len(found):
        raise InputError(f"{where}: a choice stands there twice")
    return Choices(found)


def _range(values: Sequence[object], step: object, like: object, where: str, *, log: bool) -> Range:
    if isinstance(like, bool) or not isinstance(like, int | float):
        raise InputError(f"{where} is no number; give choices")
    if len(values) != 2:
        raise InputError(f"{where}: a range has two ends, such as [1, 10]")
    low, high = (_number(value, like, where) for value in values)
    if not low < high:
        raise InputError(f"{where}: the range must rise, {low:g} is not below {high:g}")
    if log and (low <= 0 or step is not None):
        raise InputError(f"{where}: a log_range begins above 0 and has no step")
    width = None if step is None else _number(step, like, where)
    if width is not None and not 0 < width <= high - low:
        raise InputError(f"{where}: step must be above 0 and within the range")
    return Range(low, high, isinstance(like, int), log, width)


def _value(said: object, like: object, where: str) -> Value:
    """What is said in the file, of the kind that the field has. Raises InputError."""
    if isinstance(like, tuple):
        names = said.split(",") if isinstance(said, str) else said
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise InputError(f"{where}: names are expected, such as q_proj,v_proj")
        return tuple(name.strip() for name in names)
    if isinstance(like, bool) or isinstance(said, bool):
        if not (isinstance(like, bool) and isinstance(said, bool)):
            raise InputError(f"{where}: {str(said)[:40]!r} is given where {_kind(like)} is expected")
        return said
    return _number(said, like, where) if isinstance(like, int | float) else str(said)[:200]


def _number(said: object, like: int | float, where: str) -> int | float:
    """YAML takes 1e-5 for a text, since its numbers must have a point."""
    try:
        number = float(said) if isinstance(said, int | float | str) and not isinstance(said, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (isinstance(like, int) and not number.is_integer()):
        raise InputError(f"{where}: {str(said)[:40]!r} is given where {_kind(like)} is expected")
    return int(number) if isinstance(like, int) else number


def _kind(like: object) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(type(like), "a text")


def _check(key: str, value: Value, where: str) -> None:
    try:
        replace(Recipe(), **{key: value})  # type: ignore[arg-type]  # by names that were checked
    except PromptError as error:
        raise InputError(f"{where}: {error}") from None
