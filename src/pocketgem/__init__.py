"""pocketgem: Gemma on the device you own.

Names are imported when first used, so that ``pocketgem --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketgem.answers import Completion, Finished, Piece, Reply, Score, Stats, TokenLogprob
    from pocketgem.engine.request import FinishReason, SamplingParams
    from pocketgem.errors import (
        CheckpointError,
        FormatError,
        InputError,
        PocketgemError,
        PromptError,
        RunError,
        TemplateError,
        TokenizerError,
        UnsupportedError,
        WeightsError,
    )
    from pocketgem.llm import LLM
    from pocketgem.text.events import Content, FailedCall, Thought, ToolCall

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CheckpointError",
    "Completion",
    "Content",
    "FailedCall",
    "FinishReason",
    "Finished",
    "FormatError",
    "InputError",
    "Piece",
    "PocketgemError",
    "PromptError",
    "Reply",
    "RunError",
    "SamplingParams",
    "Score",
    "Stats",
    "TemplateError",
    "Thought",
    "TokenLogprob",
    "TokenizerError",
    "ToolCall",
    "UnsupportedError",
    "WeightsError",
    "__version__",
]

_ROOMS = {
    "LLM": "llm",
    "FinishReason": "engine.request",
    "SamplingParams": "engine.request",
    "Content": "text.events",
    "FailedCall": "text.events",
    "Thought": "text.events",
    "ToolCall": "text.events",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pocketgem' has no attribute {name!r}")
    room = _ROOMS.get(name) or ("errors" if name.endswith("Error") else "answers")
    return getattr(import_module(f"pocketgem.{room}"), name)
