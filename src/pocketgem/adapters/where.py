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
    if str(text) in (registered := registry.names()):
        return registry.folder_of(str(text))
    if str(text) in (came := shipped()):
        return SHIPPED / str(text)
    if paths and path.is_dir():
        return path  # whoever opens it says what is missing
    what = "no such adapter or folder" if paths else "no such adapter"
    raise InputError(f"{str(text)[:100]}: {what}; there are {', '.join([*registered, *came]) or 'none'}")


def shipped() -> list[str]:
    """Names of the adapters in this package."""
    return sorted(path.name for path in SHIPPED.iterdir() if (path / CONFIG).is_file()) if SHIPPED.is_dir() else []
