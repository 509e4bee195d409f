"""What a checkpoint brings beside its weights: tokenizer, template, sampling defaults; and the type to compute in."""

from __future__ import annotations

import torch

from pocketgem.checkpoint.load import Checkpoint
from pocketgem.errors import TokenizerError, WeightsError
from pocketgem.text.parse import end_ids
from pocketgem.text.template import ChatTemplate
from pocketgem.text.tokenizer import Tokenizer

MOST_NAMELESS = 4096  # embedding rows without a token; released models pad by 64 to 256


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that came with the weights. Raises TokenizerError."""
    if checkpoint.metadata:
        return Tokenizer.from_gguf(checkpoint.metadata)
    folder = checkpoint.location.folder
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{checkpoint.where}: no tokenizer.json beside the weights")
    return Tokenizer.from_file(folder / "tokenizer.json")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (half the bytes a token), float32 elsewhere."""
    features: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's
    return torch.bfloat16 if native else torch.float32


def defaults_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, object]:
    """The checkpoint's generation config, its stop ids completed by the tokens that end a turn."""
    stops = checkpoint.generation.get("eos_token_id", list(checkpoint.config.eos_ids))
    known = stops if isinstance(stops, list) else [stops]
    return {**checkpoint.generation, "eos_token_id": [*known, *sorted(end_ids(tokenizer))]}


def nameless_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids the model has rows for but the vocabulary no text: padding of the embedding, never to be chosen."""
    rows = checkpoint.config.vocab_size
    if rows - tokenizer.vocab_size > MOST_NAMELESS:
        raise WeightsError(f"{checkpoint.where}: {rows} embeddings for a vocabulary of {tokenizer.vocab_size} tokens")
    return frozenset(range(tokenizer.vocab_size, rows))


def template_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate | None:
    if checkpoint.chat_template is None:
        return None
    ids = (tokenizer.bos_id, tokenizer.eos_id)
    bos, eos = ("" if id is None else tokenizer.decode([id]) for id in ids)
    return ChatTemplate(checkpoint.chat_template, bos_token=bos, eos_token=eos)
