"""The tools of a request as a reader of calls needs them: which names there are, and what their arguments look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SEPARATORS = (":", ".", "/")  # between a name and what a model invents before it


class Toolbox:
    """Declarations by name, as OpenAI has them (``{"function": {"name", "parameters"}}``) or without that wrapper.

    ``None`` for tools: none are known, and every call is taken as it stands.
    """

    def __init__(self, tools: Sequence[Mapping[str, object]] | None) -> None:
        self.anything = tools is None
        self._schemas: dict[str, Mapping[str, object]] = {}
        for tool in tools or ():
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
                schema = function.get("parameters")
                self._schemas[name] = schema if isinstance(schema, Mapping) else {}

    @property
    def empty(self) -> bool:
        """No tool may be called."""
        return not self.anything and not self._schemas

    def resolve(self, name: str) -> str | None:
        """The tool that is meant: of that name, or the only one that ends it behind a separator. None: no such tool."""
        if self.anything or name in self._schemas:
            return name
        meant = [own for own in self._schemas if any(name.endswith(mark + own) for mark in _SEPARATORS)]
        return meant[0] if len(meant) == 1 else None

    def may_begin(self, name: str) -> bool:
        """Whether a tool's name begins so."""
        return any(own.startswith(name) for own in self._schemas)

    def schema(self, name: str) -> Mapping[str, object]:
        """What the arguments of a tool must be; empty when nothing is known."""
        return self._schemas.get(name, {})

    def parameters(self, name: str) -> frozenset[str]:
        """The names of a tool's parameters."""
        properties = self.schema(name).get("properties")
        return frozenset(properties) if isinstance(properties, Mapping) else frozenset()
