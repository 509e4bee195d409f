"""What an adapter's name stands for: a folder, one that is registered, or one that ships with this package."""

from __future__ import annotations

from pathlib import Path

from pocketgem.adapters.peft import CONFIG
from pocketgem.adapters.registry import Registry, default_folder
from pocketgem.errors import InputError

SHIPPED = Path(__file__).parent / "shipped"


def where_is(text: str | Path, registry: Registry | None = None, *, paths: bool = True) -> Path:
    """The folder (or GGUF file) of an adapter: a path, a name in ``registry`` (None: the usual one), or a shipped one.

    paths: whether a path is taken at all; False for names that strangers give. Raises InputError that lists the names
    there are.
    """
    path = Path(text).expanduser()
    if paths and ((path / CONFIG).is_file() or path.is_file()):
        return path
    registry = Registry(default_folder()) if registry is None else registry
    names = {**{one: SHIPPED / one for one in shipped()}, **registry.folders()}
    if str(text) in names:
        return names[str(text)]
    if paths and path.is_dir():
        return path  # whoever opens it says what is missing
    known = ", ".join(sorted(names)) or "none"
    raise InputError(
        f"{str(text)[:100]}: no such adapter{' or folder' if paths else ''}; registered and shipped: {known}"
    )


def shipped() -> list[str]:
    """Names of the adapters in this package."""
    return sorted(path.name for path in SHIPPED.iterdir() if (path / CONFIG).is_file()) if SHIPPED.is_dir() else []
