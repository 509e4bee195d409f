"""Rewrites a template so that what Jinja would compile to bare Python goes through the sandbox's methods.

Filters, calls, attributes and arithmetic reach the sandbox by themselves. Loops, macros, ``~``, list literals, slices
and comparisons do not: here each is wrapped in, or preceded by, a call of an attribute of the environment, which no
template can name or replace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.visitor import NodeTransformer

MAX_COMPARISONS = 8  # in one chain, a < b < c ...; it pays once

# A chat template is one file: these load others, or switch HTML escaping on.
_REFUSED = (
    nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block,
    nodes.ScopedEvalContextModifier, nodes.EvalContextModifier,
)  # fmt: skip

_REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock)
Body = TypeVar("Body", nodes.For, nodes.Macro, nodes.CallBlock)


def metered(template: nodes.Template) -> nodes.Template:
    """``template``, with every step on the meter. Raises jinja2's TemplateSyntaxError for what is not supported."""
    for refused in template.find_all(_REFUSED):
        raise TemplateSyntaxError(f"{type(refused).__name__} is not supported in a chat template", refused.lineno)
    for name in template.find_all(nodes.Name):
        if name.name in ("varargs", "kwargs"):  # lists that the calls of a macro would build behind the meter's back
            raise TemplateSyntaxError(f"{name.name} is not supported in a chat template", name.lineno)
    rewritten = _Metering().visit(template)
    rewritten.set_environment(template.environment)
    if not isinstance(rewritten, nodes.Template):
        raise TypeError("a visitor turned a template into something else")
    return rewritten


class _Metering(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _call("literal", [node], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _call("literal", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _call("literal", [node], node.lineno) if node.ctx == "load" else node  # `for a, b in` is not a value

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        values = [bound or nodes.Const(None, lineno=node.lineno) for bound in bounds]
        return _call("sliced", [node.node, *values], node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        if len(node.ops) > MAX_COMPARISONS:
            raise TemplateSyntaxError(f"a chain of more than {MAX_COMPARISONS} comparisons", node.lineno)
        self.generic_visit(node)
        return nodes.And(_call("compared", [], node.lineno), node, lineno=node.lineno)

    def _ticking(self, node: Body) -> Body:
        literal = sum(len(data) for data in _literal_text(node.body))
        self.generic_visit(node)
        tick = _call("tick", [nodes.Const(literal, lineno=node.lineno)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


def _literal_text(body: Iterable[nodes.Node]) -> Iterator[str]:
    """The text that one pass through ``body`` can print, without the loops inside, which pay for their own."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, nodes.TemplateData):
            yield node.data
        elif not isinstance(node, _REPEATED):
            waiting.extend(node.iter_child_nodes())


def _call(name: str, args: list[nodes.Expr], line: int) -> nodes.Expr:
    method = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(method, args, [], None, None, lineno=line)
