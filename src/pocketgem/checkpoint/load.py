"""A resolved location becomes a config, text weights under one set of names, and the texts that come with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pocketgem.checkpoint import names
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.resolve import Location
from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.towers import AUDIO, VISION
from pocketgem.config import ModelConfig, from_gguf, from_hf
from pocketgem.errors import FormatError, WeightsError

if TYPE_CHECKING:
    import torch

MAX_JSON = 64 << 20  # bytes; the largest real one, a tokenizer, is half of that
MANY = 10_000  # entries; a list as long as that is a vocabulary's
TOWERS = VISION + AUDIO
_GGUF_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "suppress_tokens": "tokenizer.ggml.suppress_tokens",
}


@dataclass(frozen=True)
class JoinedTensor:
    """Gate and up halves of all experts, each ``[experts, width, hidden]``, read as ``[experts, 2 width, hidden]``."""

    gate: StoredTensor
    up: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        experts, width, hidden = self.gate.shape
        return experts, width + self.up.shape[1], hidden

    @property
    def nbytes(self) -> int:
        return self.gate.nbytes + self.up.nbytes

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As ``StoredTensor.dense``: float32 if nothing else is said."""
        gate, up = self.gate.dense(dtype), self.up.dense(dtype)
        out = gate.new_empty(self.shape)
        out[:, : gate.shape[1]], out[:, gate.shape[1] :] = gate, up
        return out


TextTensor = StoredTensor | JoinedTensor


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint says, still on disk: nothing is read but headers and small texts."""

    location: Location
    config: ModelConfig
    tensors: Mapping[str, TextTensor] = field(repr=False)  # text tensors under Hugging Face's names
    norm_offset: float
    generation: Mapping[str, object] = field(repr=False)
    chat_template: str | None = field(repr=False)
    metadata: Mapping[str, object] = field(repr=False)  # GGUF metadata; empty for safetensors
    others: Mapping[str, StoredTensor] = field(repr=False)  # towers and whatever else the files hold

    @property
    def where(self) -> str:
        return str(self.location.files[0] if self.location.files else self.location.folder)

    def lean(self) -> Checkpoint:
        """The same without the vocabulary's long lists, for when a tokenizer was made of them."""
        return replace(self, metadata={key: value for key, value in self.metadata.items() if _is_small(value)})

    @property
    def stops(self) -> list[object]:
        """What the checkpoint lists as ids that end an answer; whether they are ids is for the reader to check."""
        listed = self.generation.get("eos_token_id", list(self.config.eos_ids))
        return listed if isinstance(listed, list) else [listed]

    def mapped(self, dtype: torch.dtype, *, table: bool = True) -> tuple[MappedFile, ...]:
        """The files a model in ``dtype`` goes on reading: those with matrices of that very type, or the row table.

        table: whether rows of the table come from its file.
        """
        parts = [(name, part) for name, part in self.tensors.items() if isinstance(part, StoredTensor)]
        matrices = (name for name, part in parts if part.dtype == dtype and len(part.shape) > 1)
        kept = {*matrices} - {names.TABLE} | ({names.TABLE} if table else set())
        read = (part.source for name, part in parts if name in kept)
        return tuple({source.path: source for source in read}.values())


def towers_in(checkpoint: Checkpoint) -> frozenset[str]:
    """``vision`` and ``audio``: those with tensors here, and a config that says their shapes."""
    config = {"vision": checkpoint.config.vision, "audio": checkpoint.config.audio}
    names = [name.removeprefix("model.") for name in checkpoint.others]
    heard, seen = ([name for name in names if name.startswith(begin)] for begin in (AUDIO, VISION))
    return frozenset(kind for kind, found in (("vision", seen), ("audio", heard)) if found and config[kind] is not None)


def tower_files(checkpoint: Checkpoint) -> tuple[MappedFile, ...]:
    """The files that towers read when they are built, and go on reading."""
    towers = (part for name, part in checkpoint.others.items() if name.removeprefix("model.").startswith(TOWERS))
    return tuple({part.source.path: part.source for part in towers}.values())


def _is_small(value: object) -> bool:
    return not isinstance(value, list) or len(value) < MANY


def open_checkpoint(location: Location) -> Checkpoint:
    """Read the headers of a GGUF file or a Hugging Face folder. Raises CheckpointError subclasses."""
    if location.kind == "gguf":
        return _open_gguf(location)
    return _open_folder(location)


def _open_gguf(location: Location) -> Checkpoint:
    file = GGUFFile.open(location.files[0])
    where = str(location.files[0])
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    freqs = file.tensors["rope_freqs.weight"].numbers() if "rope_freqs.weight" in shapes else None
    config = from_gguf(file.metadata, shapes, freqs, where)
    text, others = _gguf_text(file.tensors)
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(
        location=location,
        config=config,
        tensors=text,
        norm_offset=0.0,
        generation=_gguf_generation(file.metadata, config),
        chat_template=template if isinstance(template, str) else None,
        metadata=file.metadata,
        others=others,
    )


def _gguf_text(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, TextTensor], dict[str, StoredTensor]]:
    """GGUF's names -> Hugging Face's: stacks come apart, expert halves come together, the rest is foreign."""
    text: dict[str, TextTensor] = {}
    others: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        members = names.hf_names(name, tensor.shape[0] if tensor.shape else 0)
        if not members and name != "rope_freqs.weight":  # that one is read into the config
            others[name] = tensor
        for index, member in enumerate(members):
            text[member] = member_of(tensor, index) if names.stack_index(member) is not None else tensor
    for name in [name for name in others if name.endswith(".ffn_gate_exps.weight")]:
        text[f"layers.{name.split('.')[1]}.experts.gate_up_proj"] = _joined(others, name)
    return text, others


def member_of(stack: StoredTensor, index: int) -> StoredTensor:
    """Matrix ``index`` of a stack ``[members, out, in]``; members lie one after another."""
    size = stack.nbytes // stack.shape[0]
    start = stack.start + index * size
    return replace(stack, shape=stack.shape[1:], start=start, end=start + size)


def _joined(others: dict[str, StoredTensor], gate: str) -> JoinedTensor:
    up = gate.replace("ffn_gate_exps", "ffn_up_exps")
    if up not in others:
        raise WeightsError(f"tensor {gate} has no {up} beside it")
    return JoinedTensor(others.pop(gate), others.pop(up))


def _gguf_generation(metadata: Mapping[str, object], config: ModelConfig) -> dict[str, object]:
    """What a generation config says, from GGUF's keys; a key of the wrong type is left to the reader of the result."""
    stops = {*config.eos_ids}
    for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"):
        value = metadata.get(key)
        if isinstance(value, int):
            stops.add(value)
    generation: dict[str, object] = {"eos_token_id": sorted(stops)}
    generation.update({key: metadata[gguf] for key, gguf in _GGUF_SAMPLING.items() if gguf in metadata})
    if not generation.keys().isdisjoint(("temperature", "top_k", "top_p", "min_p")):
        generation["do_sample"] = True
    return generation


def _open_folder(location: Location) -> Checkpoint:
    if location.folder is None or location.kind != "safetensors":
        raise WeightsError(f"{location.folder or location.files[0]}: there is a config but no weights to run")
    folder = location.folder
    config = from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
    every = open_safetensors(folder)
    text, others = _split_text(every)
    return Checkpoint(
        location=location,
        config=config,
        tensors=text,
        norm_offset=1.0 if config.family == "gemma3" else 0.0,
        generation=_optional_json(folder / "generation_config.json"),
        chat_template=_chat_template(folder),
        metadata={},
        others=others,
    )


def _split_text(every: Mapping[str, StoredTensor]) -> tuple[dict[str, TextTensor], dict[str, StoredTensor]]:
    prefix = names.text_prefix(every)
    text: dict[str, TextTensor] = {}
    others: dict[str, StoredTensor] = {}
    for name, tensor in every.items():
        if name == "lm_head.weight" or name.endswith(".lm_head.weight"):
            text["lm_head.weight"] = tensor
        elif name.startswith(prefix) and not name.removeprefix(prefix).startswith(TOWERS):
            text[name.removeprefix(prefix)] = tensor
        else:
            others[name] = tensor
    return text, others


def _chat_template(folder: Path) -> str | None:
    """The template file, or the template inside ``tokenizer_config.json`` that older checkpoints have."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    inside = _optional_json(folder / "tokenizer_config.json").get("chat_template")
    return inside if isinstance(inside, str) else None


def _optional_json(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size. Raises FormatError naming the file."""
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_text(path: Path) -> str:
    """A text file of bounded size. Raises FormatError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise FormatError(
                f"{path}: {path.stat().st_size} bytes is too large for this file; the limit is {MAX_JSON}"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not UTF-8 text") from None
