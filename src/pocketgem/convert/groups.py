"""Tensors in groups that are stored alike, and which type each format gives each group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from pocketgem.checkpoint.stream import SourceTensor
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import UnsupportedError


class Format(StrEnum):
    """What the matrices of a file become. ``auto`` measures, and chooses for each group."""

    Q4_0 = "q4_0"
    Q4_K = "q4_k"
    Q6_K = "q6_k"
    Q8_0 = "q8_0"
    AUTO = "auto"


Types = dict[str, StoredType]  # tensor -> how it is stored in the new file

EMBEDDING, HEAD, TABLE = "embedding", "head", "per-layer table"
PROJECTION, GATE = "per-layer projection", "per-layer gate"
KEYS, VALUES, ATTENTION = "keys that are values", "values", "attention"
MLP, DOWN, EXPERTS = "MLP", "MLP down", "experts"
_TOP = {
    "token_embd": EMBEDDING,
    "output": HEAD,
    "per_layer_token_embd": TABLE,
    "per_layer_model_proj": PROJECTION,
}
_LAYER = {
    "attn_q": ATTENTION,
    "attn_k": ATTENTION,
    "attn_v": VALUES,
    "attn_output": ATTENTION,
    "ffn_gate": MLP,
    "ffn_up": MLP,
    "ffn_down": DOWN,
    "inp_gate": GATE,
    "proj": GATE,
    "ffn_gate_exps": EXPERTS,
    "ffn_up_exps": EXPERTS,
    "ffn_gate_up_exps": EXPERTS,
    "ffn_down_exps": EXPERTS,
}
# The rules, and what ``auto`` falls back on: everything is the first type, save the groups named. The embedding of
# these models is the head too; values and the keys that stand for them are few and count in every token.
RULES: dict[Format, tuple[StoredType, Mapping[str, StoredType]]] = {
    Format.Q4_0: (
        StoredType.Q4_0,
        {EMBEDDING: StoredType.Q6_K, HEAD: StoredType.Q6_K, PROJECTION: StoredType.Q8_0},
    ),
    Format.Q4_K: (
        StoredType.Q4_K,
        {
            EMBEDDING: StoredType.Q6_K,
            HEAD: StoredType.Q6_K,
            PROJECTION: StoredType.Q8_0,
            VALUES: StoredType.Q6_K,
            KEYS: StoredType.Q6_K,
        },
    ),
    Format.Q6_K: (StoredType.Q6_K, {PROJECTION: StoredType.Q8_0}),
    Format.Q8_0: (StoredType.Q8_0, {}),
    Format.AUTO: (
        StoredType.Q4_K,
        {
            EMBEDDING: StoredType.Q6_K,
            HEAD: StoredType.Q6_K,
            PROJECTION: StoredType.Q8_0,
            GATE: StoredType.Q6_K,
            VALUES: StoredType.Q8_0,
            KEYS: StoredType.Q8_0,
            DOWN: StoredType.Q6_K,
        },
    ),
}
# Where rows do not fill blocks of 256, as in the 270M, the next finer type with blocks of 32 does.
_FINER = {StoredType.Q4_K: StoredType.Q5_0, StoredType.Q6_K: StoredType.Q8_0}


def grouped(tensors: Iterable[SourceTensor]) -> dict[str, list[SourceTensor]]:
    """Group -> its tensors, those of the text model that are worth making coarser.

    All else stays as it is: vectors, routers, AltUp's and LAuReL's small matrices, towers.
    """
    tensors = list(tensors)
    names = {one.name for one in tensors}
    groups: dict[str, list[SourceTensor]] = {}
    for one in tensors:
        group = _group(one.name, names) if len(one.shape) > 1 else None
        if group is not None:
            groups.setdefault(group, []).append(one)
    return groups


def _group(name: str, names: set[str]) -> str | None:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None:
        return None
    layer, stem = match.groups()
    if layer is not None and stem == "attn_k" and f"blk.{layer}.attn_v.weight" not in names:
        return KEYS
    return _LAYER.get(stem) if layer is not None else _TOP.get(stem)


def by_rule(tensors: Iterable[SourceTensor], form: Format) -> Types:
    """How each tensor is stored by the format's rules."""
    tensors = list(tensors)
    base, special = RULES[form]
    wanted = {one.name: special.get(group, base) for group, members in grouped(tensors).items() for one in members}
    return {one.name: fitting(one, wanted.get(one.name)) for one in tensors}


def fitting(tensor: SourceTensor, wanted: StoredType | None) -> StoredType:
    """``wanted``, or the nearest type whose blocks the tensor's rows fill; None leaves it as it is."""
    if wanted is not None and tensor.width % wanted.block_size:
        wanted = _FINER.get(wanted)
    if wanted is not None and tensor.width % wanted.block_size == 0:
        return wanted
    return kept(tensor)


def kept(tensor: SourceTensor) -> StoredType:
    """How a tensor that is not made coarser is stored: as it is, but a folder's vectors and routers as float32.

    llama.cpp reads them in no other type.
    """
    from_folder = bool(tensor.stored) and tensor.stored[0].name != tensor.name
    small = len(tensor.shape) < 2 or tensor.name.endswith(("ffn_gate_inp.weight", "altup_router.weight"))
    return StoredType.F32 if small and from_folder else tensor.type


def format_of(text: str) -> Format:
    """Raises UnsupportedError for a name that is none."""
    try:
        return Format(text.lower())
    except ValueError:
        raise UnsupportedError(f"there is no format {text}; choose one of {', '.join(Format)}") from None
