"""What an adapter was made for and does: the base it changes tensor by tensor, what came with it, a probe of it.

``manifest.json`` lies beside the weights. It is written where the base is at hand, and compared with a base when the
adapter is put on (``drift.py``), without the base it was made for.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketgem.adapters.base import Base, Facts, kind_of
from pocketgem.adapters.effect import measured, probe_ids
from pocketgem.adapters.peft import MOST_RANK, Adapter
from pocketgem.adapters.probe import Probe, record
from pocketgem.adapters.sketch import COUNT
from pocketgem.checkpoint.durable import write_file
from pocketgem.checkpoint.load import Checkpoint, read_json
from pocketgem.checkpoint.types import Progress
from pocketgem.config.fields import MAX_SIZE, Fields
from pocketgem.errors import FormatError, WeightsError
from pocketgem.model.gemma import Gemma
from pocketgem.text.tokenizer import Tokenizer

MANIFEST = "manifest.json"
FORMAT, VERSION = "pocketgem adapter manifest", 1
KINDS = ("lora", "rslora", "dora")
MOST_TARGETS = 1 << 15
MOST_PROBE = 4096  # tokens
_HASH = re.compile(r"[0-9a-f]{64}")
_MODULE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+){0,15}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # a plain name: no way out of the folder


@dataclass(frozen=True)
class Target:
    """A matrix that is changed: by which rank, and what the base has there."""

    rank: int
    base: Facts


@dataclass(frozen=True)
class Manifest:
    """All hashes are 64 hex digits; None where the base brought no such thing.

    identity   of the adapter's values      base_name  for people      rest     hash of the tensors that are not changed
    nbytes     of the adapter's values      family     gemma3, ...     capsule  a file beside this one, if there is one
    """

    identity: str
    kind: str
    rank: int
    nbytes: int
    base_name: str
    family: str
    config: str
    tokenizer: str | None
    template: str | None
    rest: str
    targets: Mapping[str, Target]
    probe: Probe
    capsule: str | None = None

    @property
    def groups(self) -> dict[str, list[str]]:
        """Modules by the kind of their matrix."""
        found: dict[str, list[str]] = {}
        for module in self.targets:
            found.setdefault(kind_of(module), []).append(module)
        return found


def manifest_of(
    model: Gemma,
    checkpoint: Checkpoint | Base,
    adapter: Adapter,
    tokenizer: Tokenizer | None = None,
    *,
    capsule: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Describe an adapter by the base that ``model`` was loaded from. No adapter may be on the model; none is after.

    tokenizer: the model's, see ``Base``. progress: bytes of the base's changed matrices. Raises WeightsError where the
    adapter does not fit the model or changes no answer, CheckpointError for a base that cannot be read any more.
    """
    base = checkpoint if isinstance(checkpoint, Base) else Base(checkpoint, tokenizer)
    ids = probe_ids(model)
    before, after = measured(model, adapter.deltas, ids)
    return Manifest(
        identity=adapter.identity,
        kind=adapter.kind,
        rank=adapter.rank,
        nbytes=adapter.nbytes,
        base_name=base.name,
        family=base.checkpoint.config.family,
        config=base.config,
        tokenizer=base.tokenizer,
        template=base.template,
        rest=base.rest(adapter.deltas),
        targets=_targets(base, adapter, progress),
        probe=record(ids, before, after),
        capsule=capsule,
    )


def _targets(base: Base, adapter: Adapter, progress: Progress | None) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for module, delta in adapter.deltas.items():
        if base.shape(module) != delta.shape:
            raise WeightsError(f"{module}: the adapter changes {list(delta.shape)}, the base has {base.shape(module)}")
        found[module] = Target(delta.A.shape[-2], base.facts(module))
        if progress is not None:
            progress(len(found), len(adapter.deltas))
    return found


# ---- as JSON ---------------------------------------------------------------------------------------------------------


def to_json(manifest: Manifest) -> bytes:
    """The content of ``manifest.json``."""
    about = {
        "name": manifest.base_name, "family": manifest.family, "config": manifest.config,
        "tokenizer": manifest.tokenizer, "template": manifest.template, "rest": manifest.rest,
    }  # fmt: skip
    probe = manifest.probe
    content = {
        "format": FORMAT, "version": VERSION, "identity": manifest.identity, "kind": manifest.kind,
        "rank": manifest.rank, "bytes": manifest.nbytes, "capsule": manifest.capsule, "base": about,
        "probe": {"ids": probe.ids, "tokens": probe.tokens, "before": probe.before, "changes": probe.changes},
        "targets": {module: _target_json(target) for module, target in manifest.targets.items()},
    }  # fmt: skip
    text = json.dumps(content)
    return re.sub(r'(, )("[\w.]+": \{"rank")', ",\n\\2", text).encode() + b"\n"  # a line for each matrix


def _target_json(target: Target) -> dict[str, object]:
    facts = target.base
    sketch = base64.b64encode(struct.pack(f"<{COUNT}f", *facts.sketch)).decode()
    return {
        "rank": target.rank, "shape": facts.shape, "stored": facts.stored, "sha256": facts.sha256,
        "norm": facts.norm, "sketch": sketch,
    }  # fmt: skip


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put it beside an adapter's weights. Raises as ``durable.write_file``."""
    write_file(folder / MANIFEST, to_json(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an adapter's folder. Raises FormatError if it is missing, damaged or of another version."""
    return from_json(read_json(folder / MANIFEST), str(folder / MANIFEST))


def manifest_in(folder: Path) -> Manifest | None:
    """The same; None where there is none."""
    return read_manifest(folder) if (folder / MANIFEST).is_file() else None


def from_json(content: Mapping[str, object], where: str) -> Manifest:
    """Raises FormatError."""
    fields = Fields(content, where)
    if fields.str("format", "") != FORMAT or fields.int("version") != VERSION:
        raise FormatError(f"{where}: not a {FORMAT} of version {VERSION}")
    base, targets = fields.section("base"), fields.section("targets")
    if not 0 < len(targets.data) <= MOST_TARGETS:
        raise FormatError(f"{where}: {len(targets.data)} targets, expected 1 to {MOST_TARGETS}")
    if (kind := fields.str("kind")) not in KINDS:
        raise FormatError(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    return Manifest(
        identity=_hash(fields, "identity"),
        kind=kind,
        rank=fields.int("rank", high=MOST_RANK),
        nbytes=fields.int("bytes", high=1 << 50),
        base_name=base.str("name"),
        family=base.str("family"),
        config=_hash(base, "config"),
        tokenizer=_hash(base, "tokenizer") if base.has("tokenizer") else None,
        template=_hash(base, "template") if base.has("template") else None,
        rest=_hash(base, "rest"),
        targets={module: _target(targets, module) for module in targets.data},
        probe=_probe(fields.section("probe")),
        capsule=_matching(fields, "capsule", _FILE) if fields.has("capsule") else None,
    )


def _hash(fields: Fields, key: str) -> str:
    return _matching(fields, key, _HASH)


def _matching(fields: Fields, key: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(value := fields.str(key)):
        raise FormatError(f"{fields.where}: {key} is {value[:40]!r}, which does not look like one")
    return value


def _target(targets: Fields, module: str) -> Target:
    if not _MODULE.fullmatch(module) or len(module) > 200:
        raise FormatError(f"{targets.where}: {module[:60]!r} is no name of a matrix")
    fields = targets.section(module)
    dims = fields.raw("shape")
    shape = fields.ints("shape", len(dims) if isinstance(dims, list) and 2 <= len(dims) <= 3 else 2)
    facts = Facts(shape, fields.str("stored"), _hash(fields, "sha256"), fields.float("norm", low=0.0), _sketch(fields))
    return Target(fields.int("rank", high=MOST_RANK), facts)


def _sketch(fields: Fields) -> tuple[float, ...]:
    try:
        values = struct.unpack(f"<{COUNT}f", base64.b64decode(fields.str("sketch"), validate=True))
    except (binascii.Error, struct.error, ValueError):
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise FormatError(f"{fields.where}: sketch is not {COUNT} numbers in base64")
    return values


def _probe(fields: Fields) -> Probe:
    ids = fields.raw("ids")
    count = len(ids) if isinstance(ids, list) and 0 < len(ids) <= MOST_PROBE else 1
    taken, tokens = (fields.ints(key, count, low=0) for key in ("ids", "tokens"))
    if max(*taken, *tokens) >= MAX_SIZE:
        raise FormatError(f"{fields.where}: an id is too large")
    return Probe(taken, tokens, fields.floats("before", count), fields.floats("changes", count))
