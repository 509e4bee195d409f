"""The page at ``/`` and its files: from the package, into memory once, with a policy that lets nothing else in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

from pocketgem.serve.faults import Fault
from pocketgem.serve.wiring import Serving

FOLDER, INDEX = "page", "index.html"
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "json": "application/json",
    "webmanifest": "application/manifest+json",
    "woff2": "font/woff2",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class StaticFile:
    content: bytes
    media_type: str


class Pages:
    """The files by name. Only these can be asked for: no name becomes a path."""

    def __init__(self, found: Mapping[str, StaticFile] | None = None) -> None:
        self.files = static_files() if found is None else found

    async def index(self, serving: Serving, request: Request) -> Response:
        return self._answer(INDEX)

    async def file(self, serving: Serving, request: Request) -> Response:
        """Raises Fault 404."""
        return self._answer(request.path_params["name"])

    def _answer(self, name: str) -> Response:
        file = self.files.get(name)
        if file is None:
            raise Fault(404, "there is no such file")
        return Response(file.content, headers=HEADERS, media_type=file.media_type)


def static_files() -> dict[str, StaticFile]:
    """What lies in the package's folder of the page, with names relative to it."""
    return dict(_walk(files("pocketgem.serve") / FOLDER, ""))


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found: list[tuple[str, StaticFile]] = []
    for item in folder.iterdir():
        name, ending = f"{prefix}{item.name}", item.name.rpartition(".")[2]
        if item.is_dir():
            found += _walk(item, f"{name}/")
        elif ending in MEDIA_TYPES:
            found.append((name, StaticFile(item.read_bytes(), MEDIA_TYPES[ending])))
    return found
