"""Where a stranger's template runs: only listed operations exist, and each one pays before it works.

Jinja's own sandbox stops a template from reaching Python, but not from running for ever or filling the memory. Here

- every value a template can build and every loop, call, filter, operator and comparison goes through a method of
  ``Sandbox`` that spends from a ``Budget`` first, so the time between two looks at the clock is short and bounded;
- attributes, methods, filters, tests and globals are those that chat templates use: what is not listed is refused.

The rewriting of the syntax tree that leads loops, literals and comparisons here is in ``metering.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace

from pocketgem.text.budget import Budget, LimitError, Limits
from pocketgem.text.filters import FILTERS, GLOBALS, TESTS, pay_for_method

MAX_DEPTH = 64  # lists and mappings inside each other
MAX_NUMBER = 1 << 64
SLOT = 8  # what one entry of a list costs, in characters: its bytes, about

_TEXT = {
    "split", "rsplit", "splitlines", "partition", "rpartition", "strip", "lstrip", "rstrip", "startswith", "endswith",
    "removeprefix", "removesuffix", "upper", "lower", "title", "capitalize", "replace", "join", "find", "rfind",
    "index", "rindex", "count", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "isnumeric",
    "isdecimal",
}  # fmt: skip
_LOOP = {
    "index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem",
    "cycle", "changed",
}  # fmt: skip
_ATTRIBUTES: tuple[tuple[type, set[str]], ...] = (
    (str, _TEXT),
    (dict, {"get", "items", "keys", "values"}),
    (list, {"index", "count"}),
    (tuple, {"index", "count"}),
    (LoopContext, _LOOP),
    (Cycler, {"next", "reset", "current"}),
)


class PlainNamespace(Namespace):
    """Jinja's ``namespace``, without private names and without printing what it holds (which may be itself)."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no `self`, so that a template may use that name
        Namespace.__init__(args[0])
        for name, value in dict(*args[1:], **kwargs).items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a namespace cannot have an attribute {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class Generation(Extension):
    """``{% generation %}``, with which training marks the model's turns, changes nothing in a prompt."""

    tags = {"generation"}  # noqa: RUF012  (typed so in the base class)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of Hugging Face's chat templates, metered. ``started`` gives one rendering its own budget."""

    budget: Budget
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        # Not optimized: an optimizer evaluates constant expressions while compiling, where no budget is running.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[Generation, loopcontrols])
        self.finalize = _printed
        self.filters = {name: _metered(function) for name, function in FILTERS.items()}
        self.tests = {name: self.tests[name] for name in TESTS}
        kept = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals = {**kept, **GLOBALS, "namespace": PlainNamespace, "dict": dict}

    def started(self, limits: Limits) -> Sandbox:
        """A copy that shares everything but the budget."""
        copy = self.overlay()
        copy.budget = Budget(limits)
        return copy

    # What the rewritten template calls.

    def tick(self, literal: int) -> None:
        """One turn of a loop or macro whose body holds ``literal`` characters of text."""
        self.budget.spend(1 + literal)

    def compared(self) -> bool:
        """Before a comparison, which costs nothing, or milliseconds if it is of two long lists."""
        self.budget.spend()
        self.budget.look_at_clock()
        return True

    def joined(self, *values: object) -> str:
        """``a ~ b``."""
        return "".join(map(self.text, values))

    def literal(self, value: Any) -> Any:
        """A list, tuple or mapping that the template wrote."""
        self.measure(value)
        return value

    def sliced(self, value: Any, *bounds: Any) -> Any:
        """``value[a:b:c]``."""
        self.measure(value)
        return value[slice(*bounds)]

    # What Jinja calls.

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.budget.spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.spend()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(type(obj) is kind and attr in names for kind, names in _ATTRIBUTES)

    def wrap_str_format(self, value: Any) -> None:
        """``str.format`` is not listed, so it gets no twin that would be called past the list."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = obj.__self__ if type(obj) in (MethodType, BuiltinMethodType) else None
        if owner is self:  # what `metering` wrote; it pays by itself, and is called at every turn of every loop
            return obj(*args)
        self.budget.spend()
        if isinstance(owner, str):
            args = pay_for_method(self, owner, obj.__name__, args)
        result = super().call(context, obj, *args, **kwargs)
        makes_new = obj is dict or (isinstance(owner, (str, dict)) and obj.__name__ != "get")
        return self.owned(result) if makes_new else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._pay_for_operator(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > MAX_NUMBER:
            raise LimitError("it makes a number of more than 64 bits")
        return result

    # What everything above pays with.

    def text(self, value: object) -> str:
        """``value`` as a template prints it; only plain data can be printed."""
        if not isinstance(value, str):
            self.measure(value)
            value = str(value)
        self.budget.spend(len(value))
        return value

    def owned(self, value: Any) -> Any:
        """The result of a filter or method: paid for, and a list if it was an iterator or a view."""
        if not isinstance(value, (str, int, float, list, tuple, dict, Undefined)) and hasattr(value, "__iter__"):
            value = list(value)
        self.measure(value)
        return value

    def measure(self, value: object) -> int:
        """Spends and returns the size of ``value``, each shared part counted as often as a walk would reach it."""
        size, waiting = 0, [(value, 0)]
        while waiting:
            item, depth = waiting.pop()
            if isinstance(item, (list, tuple, dict)):
                if depth == MAX_DEPTH:
                    raise LimitError(f"it puts lists into lists, more than {MAX_DEPTH} deep")
                cost = SLOT * (1 + len(item))
                waiting.extend((child, depth + 1) for child in item)
                waiting.extend((child, depth + 1) for child in (item.values() if isinstance(item, dict) else ()))
            elif isinstance(item, str):
                cost = len(item)
            elif isinstance(item, (int, float, Undefined, type(None))):
                cost = 1
            else:
                raise SecurityError(f"a {type(item).__name__} can neither be printed nor put into a list")
            self.budget.spend(cost)
            size += cost
        return size

    def _pay_for_operator(self, operator: str, left: Any, right: Any) -> None:
        self.budget.spend()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("'...' % values is not supported")
        if operator == "**" and not (isinstance(right, (int, float)) and abs(right) <= 64):
            raise LimitError("it takes a power of more than 64")
        for value, other in ((left, right), (right, left)):
            if isinstance(value, (str, list, tuple)):
                size = self.measure(value)
                self.budget.spend(size * max(0, other) if operator == "*" and isinstance(other, int) else size)


@pass_context
def _printed(context: Context, value: object) -> str:
    return _sandbox(context).text(value)


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _sandbox(context).budget.spend()
        return _sandbox(context).owned(function(context, value, *args, **kwargs))

    return metered


def _sandbox(context: Context) -> Sandbox:
    if not isinstance(context.environment, Sandbox):
        raise SecurityError("a filter of the sandbox was called outside it")
    return context.environment
