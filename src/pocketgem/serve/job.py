"""A request of any chat API in one form: what the dialects agree on, and nothing of how they spell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketgem.answers import Stats, TokenLogprob
from pocketgem.engine.request import FinishReason
from pocketgem.text.events import Event
from pocketgem.text.shape import Shape


@dataclass(frozen=True)
class ChatJob:
    """One answer wanted.

    messages   as ``LLM.chat_prompt`` takes them
    shape      tools, their choice, the form of the content, the thinking budget
    thinking   whether the model may think first; None leaves it to the server's default
    sampling   options of SamplingParams by name; what is absent comes from the checkpoint
    progress   whether the stream tells how far the prompt was read
    adapter    the adapter's name, where one is asked for
    """

    model: str
    messages: tuple[Mapping[str, object], ...]
    shape: Shape = field(default_factory=Shape)
    thinking: bool | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    stream: bool = False
    progress: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class Reading:
    """A part of the prompt was read. ``seconds_left`` until the first token, None while nothing tells."""

    read: int
    total: int
    reused: int
    seconds_left: float | None = None


@dataclass(frozen=True)
class Done:
    """The answer is complete.

    stopped_by  the stop string that ended it, where one did
    reuse       why no more of the prompt was in the cache, in words (see ``engine/prefix.py``)
    notes       what its client should know of how the prompt's media were taken
    thought_tokens  how many of the tokens made were thought, None where nobody counted
    """

    finish: FinishReason
    stats: Stats
    stopped_by: str | None = None
    reuse: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    thought_tokens: int | None = None
    notes: tuple[str, ...] = ()


Update = Reading | Event | Done  # what a dialect's encoder is fed, in order; Done comes once and last
