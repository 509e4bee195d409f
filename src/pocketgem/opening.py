"""What ``LLM.load`` is told, checked and made into an engine and a plan's options."""

from __future__ import annotations

import torch

from pocketgem.engine.loop import Engine
from pocketgem.engine.past_folder import PastFolder
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError
from pocketgem.memory.options import DTYPES, Options
from pocketgem.memory.plan import Plan
from pocketgem.model.gemma import Gemma
from pocketgem.sizes import parse_size
from pocketgem.text.tokenizer import Tokenizer

TURNS = ("<|turn>", "<start_of_turn>")  # what opens a turn, in the two kinds of templates


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
    sequences: int, threads: int | None, dtype: torch.dtype | None, device: torch.device, *, keep_packed: bool
) -> Options:
    """What a plan is made for. Raises PromptError."""
    if type(sequences) is not int or sequences < 1:
        raise PromptError(f"sequences is {str(sequences)[:40]!r}, expected at least 1")
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in DTYPES:
        raise PromptError(f"dtype is {dtype}, and with a memory budget it can be {', '.join(DTYPES)} or None")
    on_card = device.type != "cpu"
    return Options(sequences=sequences, threads=threads, device=on_card, dtype=name, keep_packed=keep_packed)
