"""The filters, tests, globals and string methods of chat templates: the listed ones, each paying before it works.

Left out on purpose, beside what no chat template uses: filters that pad, format or round (one number makes a gigabyte),
``attr`` (a second door to attributes), ``safe``'s and ``escape``'s HTML markup, ``random``, and ``lipsum``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol, cast

import jinja2.exceptions
from jinja2 import filters as jinja
from jinja2.runtime import Context

from pocketgem.text.budget import Budget, LimitError

TESTS = (
    "defined", "undefined", "none", "boolean", "true", "false", "string", "number", "integer", "float", "mapping",
    "sequence", "iterable", "callable", "odd", "even", "divisibleby", "lower", "upper", "sameas", "in", "filter",
    "test", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le",
)  # fmt: skip
MAX_INDENT = 16
MAX_TIME_FORMAT = 64
SORTING = 32  # what placing one entry in order costs, in characters
TITLE = 16  # what a character of a title costs: each word becomes objects
_QUADRATIC = {"strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"}  # in text and argument, at worst


class Meter(Protocol):
    """The part of the sandbox that filters pay with."""

    budget: Budget

    def text(self, value: object) -> str: ...
    def measure(self, value: object) -> int: ...


def pay_for_method(meter: Meter, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Spends what ``text.name(*args)`` will cost, and returns the arguments to call it with."""
    if name == "join" and len(args) == 1:
        parts = _listed(meter, args[0])
        meter.budget.spend(meter.measure(parts) + len(text) * len(parts))
        return (parts,)
    if name == "replace" and len(args) >= 2:
        _pay_for_replacing(meter, text, meter.text(args[0]), meter.text(args[1]))
    if name in _QUADRATIC and args and isinstance(args[0], str):
        meter.budget.spend(len(text) * len(args[0]))
    meter.budget.spend(4 * len(text))  # splitting makes an object of each part
    return args


def _listed(meter: Meter, value: Iterable[Any]) -> list[Any]:
    if isinstance(value, str):
        meter.budget.spend(8 * len(value))  # an object for each character
    return list(value)


def _pay_for_replacing(meter: Meter, text: str, old: str, new: str) -> None:
    meter.budget.spend(len(text))
    meter.budget.spend(text.count(old) * len(new))


def _meter(context: Context) -> Meter:
    return cast(Meter, context.environment)  # the sandbox puts only itself there


def _on_text(function: Callable[..., str]) -> Callable[..., str]:
    return lambda context, value, *args: function(_meter(context).text(value), *args)


def _on_value(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda context, value, *args, **named: function(value, *args, **named)


def _in_environment(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda context, value, *args, **named: function(context.environment, value, *args, **named)


def _in_order(function: Callable[..., Any]) -> Callable[..., Any]:
    def ordered(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        entries = value if isinstance(value, Mapping) else _listed(_meter(context), value)
        _meter(context).budget.spend(SORTING * len(entries))
        return function(context, entries, *args, **named)

    return ordered


def _join(context: Context, value: Iterable[Any], d: object = "", attribute: str | None = None) -> str:
    meter = _meter(context)
    if attribute is not None:
        value = jinja.sync_do_map(context, value, attribute=attribute)
    parts, between = [meter.text(part) for part in value], meter.text(d)
    meter.budget.spend(len(between) * len(parts))
    return between.join(parts)


def _replace(context: Context, s: object, old: object, new: object, count: int | None = None) -> str:
    meter = _meter(context)
    text, before, after = meter.text(s), meter.text(old), meter.text(new)
    _pay_for_replacing(meter, text, before, after)
    return text.replace(before, after, -1 if count is None else count)


def _indent(context: Context, s: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _meter(context).text(s)
    size = width if isinstance(width, int) else len(width)
    _meter(context).budget.spend(max(0, size) * (text.count("\n") + 2))
    return str(jinja.do_indent(text, width, first, blank))


def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face defines it: HTML is not escaped, and letters of all languages stay themselves."""
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise LimitError(f"tojson with an indent of {indent}")
    size = _meter(context).measure(value)
    _meter(context).budget.spend(size * 12 if indent is None else size * 64)  # escapes; lines of up to 64 x 16 spaces
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _trim(context: Context, value: object, chars: str | None = None) -> str:
    text = _meter(context).text(value)
    _meter(context).budget.spend(len(text) * len(chars or ""))
    return text.strip(chars)


def _title(context: Context, value: object) -> str:
    text = _meter(context).text(value)
    _meter(context).budget.spend(TITLE * len(text))
    return jinja.do_title(text)


def _list(context: Context, value: Iterable[Any]) -> list[Any]:
    return _listed(_meter(context), value)


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _on_text(getattr(jinja, f"do_{name}")) for name in ("upper", "lower", "capitalize")},
    **{name: _on_value(getattr(jinja, f"do_{name}")) for name in ("default", "int", "float", "reverse", "items")},
    **{name: _in_environment(getattr(jinja, f"do_{name}")) for name in ("last",)},
    **{name: _in_order(_in_environment(getattr(jinja, f"do_{name}"))) for name in ("sort", "unique", "min", "max")},
    **{name: getattr(jinja, f"sync_do_{name}") for name in ("map", "select", "reject", "selectattr", "rejectattr")},
    "dictsort": _in_order(_on_value(jinja.do_dictsort)),
    "first": _in_environment(jinja.sync_do_first),
    "d": _on_value(jinja.do_default),
    "length": _on_value(len),
    "count": _on_value(len),
    "abs": _on_value(abs),
    "string": _on_text(str),
    "safe": _on_text(str),
    "trim": _trim,
    "title": _title,
    "list": _list,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "tojson": _tojson,
}


def _raise_exception(message: object) -> None:
    raise jinja2.exceptions.TemplateRuntimeError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > MAX_TIME_FORMAT or re.search(r"%[^a-zA-Z%]*\d", format):  # glibc pads '%999d' to 999 characters
        raise LimitError(f"strftime_now with the format {format[:40]!r}")
    return datetime.now().strftime(format)


GLOBALS: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
