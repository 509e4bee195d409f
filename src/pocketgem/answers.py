"""What a person gets back: pieces as they come, wholes, and the counts and seconds of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pocketgem.engine.request import FinishReason
from pocketgem.text.events import Content, Event, FailedCall, Thought, ToolCall


@dataclass(frozen=True)
class TokenLogprob:
    """One generated or scored token: natural log-probability under the model, and the best alternatives."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Stats:
    """Counts and seconds of one request."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # prompt tokens whose keys were already cached
    completion_tokens: int = 0
    prefill_seconds: float = 0.0  # from submission to the first token
    decode_seconds: float = 0.0  # from the first token to the last
    reuse_reason: str | None = None  # why no more of the prompt was cached, in words; None: all that could be
    image_tokens: int = 0  # prompt tokens that are rows of images; of sounds; of frames of videos
    audio_tokens: int = 0
    video_tokens: int = 0

    @property
    def media(self) -> dict[str, int]:
        """Prompt tokens by the kind of their medium."""
        return {"image": self.image_tokens, "audio": self.audio_tokens, "video": self.video_tokens}

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens read a second, None where nothing was measured."""
        read = self.prompt_tokens - self.reused_tokens
        return read / self.prefill_seconds if self.prefill_seconds > 0 else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second after the first one, None where there is only one."""
        return (self.completion_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else None


@dataclass(frozen=True)
class Piece:
    """What one step added to a completion. ``finish`` stands in the last piece, with the statistics."""

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole continuation."""

    text: str
    ids: tuple[int, ...]
    finish: FinishReason
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The last event of a chat stream. ``ids`` and ``logprobs`` are those of the whole answer, thoughts included.

    flaw  why the answer is not whole, where its text does not show it: "unterminated_thought" (nothing but a thought
          that never ended), "degenerate_repetition" or "truncated_json"
    stopped_by  the stop string that ended it, where one did
    notes  what a person should know of how the prompt's media were taken: an image that was made smaller, ...
    thought_tokens  how many of the ids were thought, the marks about it included
    """

    finish: FinishReason
    stats: Stats
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    flaw: str | None = None
    stopped_by: str | None = None
    thought_tokens: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A whole answer: what the person reads, what the model thought before, and which tools it calls.

    failed  what began as calls and cannot be read as such      flaw, notes  as in ``Finished``
    """

    content: str
    thought: str
    finish: FinishReason
    stats: Stats
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    failed: tuple[FailedCall, ...] = ()
    flaw: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def message(self) -> dict[str, object]:
        """The answer as a message for the next turn's history.

        With calls it carries the thought too, which the model needs until the chain of calls ends; after that the
        thought is dropped for it. Calls are numbered: the results' ``tool_call_id`` is ``call_0``, ``call_1``, ...
        A call that failed goes back as the text it is.
        """
        message: dict[str, object] = {
            "role": "assistant",
            "content": "".join([self.content, *(failed.raw for failed in self.failed)]),
        }
        if self.tool_calls:
            message["tool_calls"] = [_as_message(index, call) for index, call in enumerate(self.tool_calls)]
            if self.thought:
                message["reasoning"] = self.thought
        return message


def _as_message(index: int, call: ToolCall) -> dict[str, object]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{index}", "type": "function", "function": function}


def fold_events(events: Iterable[Event | Finished]) -> Reply:
    """A chat stream as one whole."""
    said, end = [], Finished(FinishReason.ABORT, Stats())
    for event in events:
        if isinstance(event, Finished):
            end = event
        else:
            said.append(event)
    return Reply(
        content="".join(event.text for event in said if isinstance(event, Content)),
        thought="".join(event.text for event in said if isinstance(event, Thought)),
        finish=end.finish,
        stats=end.stats,
        ids=end.ids,
        logprobs=end.logprobs,
        tool_calls=tuple(event for event in said if isinstance(event, ToolCall)),
        failed=tuple(event for event in said if isinstance(event, FailedCall)),
        flaw=end.flaw,
        notes=end.notes,
    )


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a text. ``logprobs[i]`` is that of ``ids[i + 1]``: the first token has no past to go by."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Sum in nats."""
        return sum(self.logprobs)


def fold(pieces: Iterator[Piece]) -> Completion:
    """A stream as one whole."""
    text: list[str] = []
    ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish, stats = FinishReason.ABORT, Stats()
    for piece in pieces:
        text.append(piece.text)
        ids += piece.ids
        logprobs += piece.logprobs
        finish, stats = piece.finish or finish, piece.stats or stats
    return Completion("".join(text), tuple(ids), finish, stats, tuple(logprobs))
