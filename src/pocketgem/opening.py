"""What ``LLM.load`` is told, checked, planned and carried out: a checkpoint becomes a model and an engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pocketgem.adapters.dialect import Dialect, read_dialect
from pocketgem.adapters.peft import open_adapter
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.checkpoint.towers import TOWER_OF
from pocketgem.checkpoint.types import Progress
from pocketgem.engine.loop import Engine
from pocketgem.engine.past_folder import PastFolder
from pocketgem.engine.reach import Slide
from pocketgem.engine.request import checked_context, checked_threads
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError
from pocketgem.memory.fit import Wish
from pocketgem.memory.options import DTYPES, STORED, Options, plan_here
from pocketgem.memory.place import checked_place
from pocketgem.memory.plan import Plan
from pocketgem.memory.program import give_back
from pocketgem.model.gemma import Gemma
from pocketgem.parts import checked_device, checked_dtype, identity_of, model_of, tokenizer_of
from pocketgem.sizes import parse_size
from pocketgem.text.tokenizer import Tokenizer

TURNS = ("<|turn>", "<start_of_turn>")  # what opens a turn, in the two kinds of templates


@dataclass(frozen=True)
class Wishes:
    """How a model is to be loaded: see ``LLM.load``."""

    dtype: torch.dtype | str | None
    context: int | None
    threads: int | None
    ple: str
    device: str
    keep_packed: bool
    expert_memory: int | None
    memory: int | str | None
    sequences: int
    media: frozenset[str] = frozenset()  # image, audio, video: what will be given
    adapter: Path | None = None
    dialect: Dialect = field(default_factory=Dialect)


@dataclass(frozen=True)
class Opened:
    """A model in memory with what came with it. ``files`` are those that it goes on reading.

    plain: checkpoint and tokenizer without what ``Wishes``, or the adapter there, say of template and names.
    """

    model: Gemma
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    files: tuple[MappedFile, ...]
    plan: Plan | None
    context: int | None
    plain: tuple[Checkpoint, Tokenizer]


def opened(checkpoint: Checkpoint, wishes: Wishes, progress: Progress | None) -> Opened:
    """Read a checkpoint's weights. Errors are those of ``LLM.load``."""
    checked_context(wishes.context, checkpoint.config)  # before minutes of loading
    place, device = checked_place(wishes.ple, checkpoint.config), checked_device(wishes.device)
    dtype = checked_dtype(wishes.dtype)
    threads = None if wishes.threads is None else checked_threads(wishes.threads)
    if wishes.adapter is not None:
        experts = checkpoint.config.experts
        open_adapter(wishes.adapter, None if experts is None else experts.num_experts)
    plan, context, expert_memory = None, wishes.context, wishes.expert_memory
    if wishes.memory is not None:
        wish = Wish(bytes_of(wishes.memory), None, context, place, expert_memory)
        options = options_of(wishes.sequences, threads, dtype, device, keep_packed=wishes.keep_packed)
        options = replace(options, media=towers_for(wishes.media))
        plan = plan_here(checkpoint, wish, options)
        context, expert_memory = plan.setting.context, plan.placement.expert_bytes
        dtype = STORED if plan.setting.form.blocks else dtype
    tokenizer = tokenizer_of(checkpoint)
    checkpoint = checkpoint.lean()
    plain = checkpoint, tokenizer
    checkpoint, tokenizer = spoken(checkpoint, tokenizer, wishes.dialect)
    if wishes.adapter is not None and wishes.adapter.is_dir():
        checkpoint, tokenizer = spoken(checkpoint, tokenizer, read_dialect(wishes.adapter))
    give_back()
    model, files = model_of(
        checkpoint,
        dtype,
        threads,
        ple=place,
        device=device,
        keep_packed=wishes.keep_packed,
        expert_memory=expert_memory,
        progress=progress,
    )
    return Opened(model, tokenizer, checkpoint, files, plan, context, plain)


def spoken(checkpoint: Checkpoint, tokenizer: Tokenizer, dialect: Dialect) -> tuple[Checkpoint, Tokenizer]:
    """A model's template and token names as an adapter has them. Raises TokenizerError for names that do not fit."""
    if dialect.template is not None:
        checkpoint = replace(checkpoint, chat_template=dialect.template)
    return checkpoint, tokenizer.renamed(dialect.names) if dialect.names else tokenizer


def towers_for(kinds: Collection[str]) -> frozenset[str]:
    """The towers that media of these kinds need. Raises PromptError for what is no kind of media."""
    if unknown := sorted({*kinds} - TOWER_OF.keys()):
        raise PromptError(f"media is {str(unknown[0])[:40]!r}, expected some of {', '.join(TOWER_OF)}")
    return frozenset(TOWER_OF[kind] for kind in kinds)


def past_folder(found: Opened, folder: Path, size: int) -> PastFolder:
    """Where a model's pasts lie on disk, in ``size`` bytes at most."""
    model = found.model
    return PastFolder(folder, size, identity_of(found.checkpoint, model), model.new_cache(), Slide.of(model.config))


def engine_of(
    model: Gemma,
    tokenizer: Tokenizer,
    context: int | None,
    plan: Plan | None,
    kept: int | None,
    folder: PastFolder | None,
) -> Engine:
    """The engine of a model, with the sequences and kept pasts of its plan where there is one."""
    found = {tokenizer.token_id(name) for name in TURNS}
    turn_ids = frozenset(id for id in found if id in tokenizer.special_ids and id is not None)
    if plan is None:
        return Engine(model, context=context, kept=kept, turn_ids=turn_ids, folder=folder)
    scheduler, kept = Scheduler(max_running=plan.setting.sequences), plan.kept_bytes if kept is None else kept
    return Engine(model, scheduler, context=context, kept=kept, turn_ids=turn_ids, folder=folder)


def bytes_of(wish: int | str, name: str = "memory", least: int = 1) -> int:
    """``wish`` as bytes. Raises PromptError."""
    size = parse_size(wish) if isinstance(wish, str) else wish
    if type(size) is not int or size < least:
        raise PromptError(f"{name} is {str(wish)[:40]!r}, expected bytes or a text such as 2GiB")
    return size


def options_of(
    sequences: int, threads: int | None, dtype: torch.dtype | str | None, device: torch.device, *, keep_packed: bool
) -> Options:
    """What a plan is made for. Raises PromptError."""
    if type(sequences) is not int or sequences < 1:
        raise PromptError(f"sequences is {str(sequences)[:40]!r}, expected at least 1")
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in (*DTYPES, STORED):
        known = ", ".join((*DTYPES, STORED))
        raise PromptError(f"dtype is {dtype}, and with a memory budget it can be {known} or None")
    on_card = device.type != "cpu"
    return Options(sequences=sequences, threads=threads, device=on_card, dtype=name, keep_packed=keep_packed)
