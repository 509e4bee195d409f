"""What a base is made of, in hashes: tensor by tensor as they are stored, its config, its tokenizer, its template.

Each is made once and kept, so that many adapters can be compared with one base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

from pocketgem.adapters.sketch import Sketcher
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.folder_tensors import parts_of
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.stream import SourceTensor, read_rows
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config import ModelConfig
from pocketgem.errors import TokenizerError, WeightsError
from pocketgem.text.source import vocabulary_from
from pocketgem.text.tokenizer import Tokenizer

LARGE = 64 << 20  # bytes; of tensors that no adapter changes and that are larger, samples are read
SAMPLES, SAMPLE_ROWS = 64, 64
_STACKS = ("experts.gate_up_proj", "experts.down_proj")
# Not of the text model's maths, or spelt differently by GGUF and by Hugging Face for one and the same model.
_NOT_HASHED = ("vision", "audio", "unified", "bos_id", "eos_ids", "pad_id", "max_position_embeddings")


@dataclass(frozen=True)
class Facts:
    """One matrix: its shape and type as stored, a hash of its bytes, and what its distance to another is told by."""

    shape: tuple[int, ...]
    stored: str
    sha256: str
    norm: float
    sketch: tuple[float, ...]


class Base:
    """A checkpoint that adapters are made for or put on.

    tokenizer: the one that was made of it, where there is one already; a lean checkpoint cannot make another.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer | None = None) -> None:
        self.checkpoint, self._tokenizer = checkpoint, tokenizer
        self._hashes: dict[str, str] = {}
        self._facts: dict[str, Facts] = {}

    # ---- matrices ----------------------------------------------------------------------------------------------------

    def shape(self, module: str) -> tuple[int, ...] | None:
        """Of the matrix that an adapter changes under this name; None where the base has none."""
        found = self.checkpoint.tensors.get(self.stored_name(module))
        return None if found is None else found.shape

    def stored_name(self, module: str) -> str:
        """A module's name -> its tensor's, as a checkpoint has it."""
        if module == "lm_head" and self.checkpoint.config.tied_head:
            return "embed_tokens.weight"
        return module if module.endswith(_STACKS) else f"{module}.weight"

    def sha256(self, module: str) -> str:
        """64 hex digits of a matrix's type, shape and bytes as stored. Raises WeightsError, CheckpointError."""
        if module not in self._hashes:
            found = self._tensor(module)
            digest = _begun(found)
            for part, start, stop in found.pieces():
                digest.update(_raw(part, start, stop))
            self._hashes[module] = digest.hexdigest()
        return self._hashes[module]

    def facts(self, module: str) -> Facts:
        """All of a matrix, in one pass over its bytes, a few rows at a time. Raises as ``sha256``."""
        if module not in self._facts:
            self._facts[module] = found = self._read(module)
            self._hashes[module] = found.sha256
        return self._facts[module]

    def _read(self, module: str) -> Facts:
        found = self._tensor(module)
        digest, sketcher = _begun(found), Sketcher(module, found.numel // found.width, found.width)
        for part, start, stop in found.pieces():
            rows = read_rows(part, start, stop)
            digest.update(rows.numpy().data)
            sketcher.add(dequantize(rows.view(-1, part.type.type_size), part.type).view(stop - start, -1))
        return Facts(found.shape, _types(found), digest.hexdigest(), sketcher.norm, sketcher.sketch)

    def _tensor(self, module: str) -> SourceTensor:
        name = self.stored_name(module)
        found = self.checkpoint.tensors.get(name)
        if found is None:
            raise WeightsError(f"{self.checkpoint.where}: has no {name}, which the adapter changes")
        parts = parts_of(found)
        return SourceTensor(name, found.shape, parts[0].type, parts)

    def rest(self, modules: Iterable[str]) -> str:
        """64 hex digits of all text tensors that are not these modules': of large ones by samples of their rows."""
        left = {self.stored_name(module) for module in modules}
        digest = hashlib.sha256()
        for name in sorted(self.checkpoint.tensors.keys() - left):
            digest.update(f"{name} {self._sampled(name)}\n".encode())
        return digest.hexdigest()

    def _sampled(self, name: str) -> str:
        if name not in self._hashes:
            found = self.checkpoint.tensors[name]
            source = SourceTensor(name, found.shape, parts_of(found)[0].type, parts_of(found))
            digest = _begun(source)
            for part, start, stop in _samples(source) if found.nbytes > LARGE else source.pieces():
                digest.update(_raw(part, start, stop))
            self._hashes[name] = digest.hexdigest()
        return self._hashes[name]

    # ---- what comes with them ----------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> str:
        """64 hex digits of the text model's shapes and numbers; the same for a folder and the GGUF file made of it."""
        return config_hash(self.checkpoint.config)

    @cached_property
    def tokenizer(self) -> str | None:
        """64 hex digits of the vocabulary; None where the checkpoint brings none."""
        if self._tokenizer is not None:
            return self._tokenizer.fingerprint
        try:
            found = self.checkpoint
            return vocabulary_from(found.metadata, found.location.folder, found.where).fingerprint
        except TokenizerError:
            return None

    @cached_property
    def template(self) -> str | None:
        """64 hex digits of the chat template's text; None where the checkpoint brings none."""
        return text_hash(self.checkpoint.chat_template)

    @property
    def name(self) -> str:
        """For people: the file's, or the folder's."""
        location = self.checkpoint.location
        path = location.folder or location.files[0]
        return path.resolve().name


def text_hash(text: str | None) -> str | None:
    """64 hex digits of a text."""
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def config_hash(config: ModelConfig) -> str:
    """64 hex digits. Numbers count to six digits: GGUF keeps float32 of what a config.json writes in decimals."""
    facts = {key: value for key, value in asdict(config).items() if key not in _NOT_HASHED}
    return hashlib.sha256(json.dumps(_rounded(facts), sort_keys=True).encode()).hexdigest()


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return f"{value:.6g}" if isinstance(value, float) else value


def kind_of(module: str) -> str:
    """The group that a matrix is counted in: q_proj, down_proj, experts.down_proj."""
    return ".".join(module.split(".")[-2:]) if module.endswith(_STACKS) else module.rpartition(".")[2]


def _begun(found: SourceTensor) -> hashlib._Hash:
    """A hash of a tensor that begins with what its bytes are."""
    return hashlib.sha256(f"{_types(found)} {list(found.shape)}\n".encode())


def _types(found: SourceTensor) -> str:
    return "+".join(sorted({part.type.value for part in found.stored}))


def _raw(part: StoredTensor, start: int, stop: int) -> memoryview:
    return memoryview(read_rows(part, start, stop).numpy().data)


def _samples(source: SourceTensor) -> Iterator[tuple[StoredTensor, int, int]]:
    for part in source.stored:
        rows = part.numel // source.width
        count = min(SAMPLE_ROWS, rows)
        for at in range(SAMPLES):
            start = at * (rows - count) // (SAMPLES - 1)
            yield part, start, start + count
