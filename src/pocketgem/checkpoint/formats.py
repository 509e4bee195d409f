"""Which type each tensor gets when a whole model is to be of one type, as the released files do it. No torch."""

from __future__ import annotations

from pocketgem.checkpoint.types import StoredType

FINE_EMBEDDING = {StoredType.Q4_0: StoredType.Q6_K, StoredType.Q4_K: StoredType.Q6_K}  # it is the head, too


def stored_as(name: str, shape: tuple[int, ...], type: StoredType) -> StoredType:
    """The type of a tensor, by its GGUF name, in a file of ``type``.

    Vectors are float32, and so are AltUp's coefficients, a few numbers wide. The token embedding of a four-bit file has
    six bits, as in the real 270M. Where rows do not fill the blocks, eight bits take their place, else float16.
    """
    if len(shape) == 1 or ("altup_" in name and "_coef" in name):
        return StoredType.F32
    wanted = FINE_EMBEDDING.get(type, type) if name == "token_embd.weight" else type
    fitting = (type for type in (wanted, StoredType.Q8_0, StoredType.F16) if shape[-1] % type.block_size == 0)
    return next(fitting)
