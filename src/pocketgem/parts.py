"""What a checkpoint brings beside its weights: tokenizer, template, sampling defaults; and the type to compute in."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch

from pocketgem import kernels
from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor
from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.checkpoint.types import Progress
from pocketgem.errors import CheckpointError, InputError, PromptError, WeightsError
from pocketgem.kernels import cpu
from pocketgem.kernels.compute import Compute
from pocketgem.kernels.cores import default_threads
from pocketgem.memory.options import STORED, outgrows
from pocketgem.memory.packed_place import WORTH_KEEPING, default_cache
from pocketgem.memory.packed_source import identity
from pocketgem.memory.place import Place, settled
from pocketgem.model.build import build_model
from pocketgem.model.build_packed import build_packed, can_pack
from pocketgem.model.cache import CPU
from pocketgem.model.gemma import Gemma
from pocketgem.model.still import StillDecoder
from pocketgem.text.source import vocabulary_from
from pocketgem.text.template import ChatTemplate
from pocketgem.text.tokenizer import Tokenizer

MOST_NAMELESS = 4096  # embedding rows without a token; released models pad by 64 to 256


def identity_of(checkpoint: Checkpoint, model: Gemma) -> str:
    """All that keys and values of a text depend on beside the text: weights (by samples), config, kernels, types."""
    joined = (tensor for tensor in checkpoint.tensors.values() if isinstance(tensor, JoinedTensor))
    single = [tensor for tensor in checkpoint.tensors.values() if not isinstance(tensor, JoinedTensor)]
    parts = [[tensor] for tensor in (*single, *(half for both in joined for half in (both.gate, both.up)))]
    try:
        files = identity(parts)
    except OSError as error:
        raise CheckpointError(f"{checkpoint.where}: cannot be read any more ({error.strerror})") from error
    types = str(model.dtype), str(model.cache_dtype), model.has_own_threads, kernels.choice().name
    facts = json.dumps([files, repr(checkpoint.config), types, str(model.device), version("pocketgem")], default=str)
    return hashlib.sha256(facts.encode()).hexdigest()


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that came with the weights. Raises TokenizerError."""
    return Tokenizer(vocabulary_from(checkpoint.metadata, checkpoint.location.folder, checkpoint.where))


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (half the bytes a token), float32 elsewhere."""
    features = cpu.features() or _torchs_features()
    return torch.bfloat16 if cpu.multiplies_bfloat16(features) else torch.float32


def _torchs_features() -> frozenset[str]:
    """Where the system tells nothing, on Windows, torch has looked for itself."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return frozenset(name for name, has in found.items() if has)


def checked_device(wish: str) -> torch.device:
    """The device called "cpu", "cuda" or "mps". Raises PromptError for another, or where there is none."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wish not in present:
        raise PromptError(f"device is {str(wish)[:40]!r}, expected one of {', '.join(present)}")
    if not present[wish]:
        raise PromptError(f"device is {wish}, but this torch ({torch.__version__}) finds no such device here; use cpu")
    return torch.device(wish)


def checked_dtype(wish: torch.dtype | str | None) -> torch.dtype | str | None:
    """``wish``. Raises PromptError for what weights cannot become."""
    if wish is None or wish == STORED or (isinstance(wish, torch.dtype) and wish.is_floating_point):
        return wish
    raise PromptError(f"dtype is {str(wish)[:40]!r}, expected a floating type of torch, {STORED!r} or None")


def model_of(
    checkpoint: Checkpoint,
    dtype: torch.dtype | str | None,
    threads: int | None,
    *,
    ple: Place = Place.AUTO,
    device: torch.device = CPU,
    keep_packed: bool = True,
    progress: Progress | None = None,
    expert_memory: int | None = None,
) -> tuple[Gemma, tuple[MappedFile, ...]]:
    """The model of a checkpoint and the files it goes on reading; see ``LLM.load`` for the options."""
    compiled = kernels.choice().name
    packs = dtype is None and device == CPU and compiled is not None and can_pack(checkpoint)
    if expert_memory is not None:
        _check_budget(checkpoint, packs, keep_packed)
    if packs and compiled is not None:
        compute = Compute(compiled, threads or default_threads().count)
        kept = keep_packed and (expert_memory is not None or _is_large(checkpoint))
        cache = default_cache(Path(checkpoint.where)) if kept else None
        return build_packed(checkpoint, compute, cache, progress, ple=ple, expert_memory=expert_memory)
    if threads is not None:
        torch.set_num_threads(threads)
    usual = fast_dtype() if device == CPU else torch.bfloat16
    wanted, blocks = (dtype, False) if isinstance(dtype, torch.dtype) else (usual, dtype == STORED)
    if dtype is None and device.type == "cuda":
        blocks = outgrows(checkpoint, torch.cuda.mem_get_info(device)[0])
    model = build_model(checkpoint, wanted, progress, ple=ple, device=device, blocks=blocks)
    if device.type == "cuda":
        model.shortcut = StillDecoder(model)
    return model, checkpoint.mapped(model.dtype, table=settled(ple) is Place.DISK)


def _check_budget(checkpoint: Checkpoint, packs: bool, keep_packed: bool) -> None:
    """Experts under a budget are read from the file of packed weights: raise InputError where there will be none."""
    if not packs:
        raise InputError(
            f"{checkpoint.where}: a budget for experts needs quantised weights, compiled kernels, no card and no dtype"
        )
    if not keep_packed:
        raise InputError(
            f"{checkpoint.where}: a budget for experts needs the file of packed weights that keep_packed=False "
            "(--no-keep-packed) forbids: the experts that are not in memory are read from it"
        )


def _is_large(checkpoint: Checkpoint) -> bool:
    """Whether packing takes long enough that its result should be kept."""
    matrices = (tensor.nbytes for name, tensor in checkpoint.tensors.items() if name != names.TABLE)
    return sum(matrices) > WORTH_KEEPING


def defaults_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, object]:
    """The checkpoint's generation config, its stop ids completed by the tokens that end a turn."""
    return {**checkpoint.generation, "eos_token_id": [*checkpoint.stops, *sorted(tokenizer.end_ids)]}


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
