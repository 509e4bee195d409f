"""The head of a request as the guard looks at it."""

from __future__ import annotations

from starlette.types import Scope


class Head:
    """The head of a request, read once."""

    def __init__(self, scope: Scope) -> None:
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.target: bytes = scope.get("raw_path", b"") + scope.get("query_string", b"")
        self.host = self.one(b"host") or ""
        self.origin = self.one(b"origin")
        client = scope.get("client")
        self.address: str = client[0] if client else "unknown"

    def one(self, name: bytes) -> str | None:
        """A header's value; None where it is not there. Two different ones fit nothing."""
        found = [value.decode("latin-1").strip() for key, value in self.headers if key == name]
        return found[0] if len(found) == 1 else (", ".join(found) if found else None)

    @property
    def length(self) -> int | None:
        """Bytes of the body, where its sender said."""
        text = self.one(b"content-length")
        return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def is_visit(self) -> bool:
        """Whether a person follows a link to the page, from wherever."""
        return self.method == "GET" and self.path == "/" and self.one(b"sec-fetch-mode") == "navigate"
