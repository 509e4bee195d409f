"""One answer on its way: pieces or events in, text on the screen, the whole kept even when it is cut short."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from pocketgem.cli.common import size_text
from pocketgem.cli.screen import Screen
from pocketgem.errors import PromptError

if TYPE_CHECKING:
    from pocketgem.answers import Stats, TokenLogprob
    from pocketgem.checkpoint.load import Checkpoint
    from pocketgem.llm import LLM
    from pocketgem.memory.experts import ExpertUse
    from pocketgem.text.events import FailedCall, ToolCall

FLAWS = {
    "unterminated_thought": "(the answer ended inside a thought)",
    "degenerate_repetition": "(the model repeats itself and says nothing)",
}
ENOUGH = 256  # tokens of plain text, which has no end of its own
Message = Mapping[str, object]


@dataclass
class Manner:
    """How to answer. ``raw``: continue the last message as plain text, whatever came before it."""

    raw: bool
    system: str | None = None
    thinking: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    form: dict[str, Any] = field(default_factory=dict)  # see ``form.py``


@dataclass
class Speech:
    """What was said so far."""

    content: str = ""
    thought: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    stats: Stats | None = None
    notes: tuple[str, ...] = ()


def check_thinking(checkpoint: Checkpoint) -> None:
    """Raise PromptError where the model could not be told to think."""
    from pocketgem.info.texts import describe_template

    template = describe_template(checkpoint.chat_template)
    if template is None or not template.thinking:
        raise PromptError("the model's chat template has no place for thinking")


def speak(
    llm: LLM,
    manner: Manner,
    messages: Sequence[Message],
    speech: Speech,
    screen: Screen,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Answer the last of ``messages``, a user's, into ``speech`` and onto the screen.

    ``check`` is called between two tokens, and two chunks of the prompt; what it raises ends the answer cleanly.
    """
    with screen.waiting("reading the prompt", "tokens") as bar:

        def on_prefill(done: int, total: int) -> None:
            bar(done, total)
            check()

        with closing(_stream(llm, manner, messages, on_prefill)) as stream:
            for item in stream:
                if getattr(item, "text", True):  # a chunk of the prompt brings an empty piece
                    bar.close()
                _take(item, speech, screen)
                check()


def _stream(llm: LLM, manner: Manner, messages: Sequence[Message], on_prefill: Callable[[int, int], None]) -> Any:
    """A generator of pieces or events."""
    if manner.raw:
        options: dict[str, Any] = {"max_tokens": ENOUGH, "format": manner.form.get("format")} | manner.sampling
        return llm.stream(str(messages[-1]["content"]), on_prefill=on_prefill, **options)
    first = [] if manner.system is None else [{"role": "system", "content": manner.system}]
    options = manner.form | manner.sampling
    return llm.stream_chat([*first, *messages], thinking=manner.thinking, on_prefill=on_prefill, **options)


def _take(item: Any, speech: Speech, screen: Screen) -> None:
    from pocketgem.answers import Finished, Piece
    from pocketgem.text.events import Content, FailedCall, Thought, ToolCall

    if isinstance(item, Piece | Content):
        speech.content += item.text
        screen.content(item.text)
    if isinstance(item, Thought):
        speech.thought += item.text
        screen.thought(item.text)
    if isinstance(item, ToolCall | FailedCall):
        speech.content += item.raw  # what was said, for the next turn
        _take_call(item, screen)
    if isinstance(item, Piece | Finished):
        speech.ids += item.ids
        speech.logprobs += item.logprobs
    if isinstance(item, Piece | Finished) and item.finish is not None:
        speech.finish, speech.stats = str(item.finish), item.stats
    if isinstance(item, Finished) and item.flaw:
        screen.note(FLAWS.get(item.flaw, item.flaw))
    if isinstance(item, Finished):
        speech.notes = item.notes
        for note in item.notes:
            screen.note(f"note: {note}")


def _take_call(call: ToolCall | FailedCall, screen: Screen) -> None:
    """Nothing runs here: the call is shown, as written where it cannot be read, with why."""
    from pocketgem.text.events import ToolCall

    if isinstance(call, ToolCall):
        screen.content(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
        screen.note("the model calls a tool")
        return
    screen.content(call.raw)
    screen.note(f"the model wrote this as a call of a tool; {call.reason}")


class CtrlC:
    """Ctrl-C while an answer is made: the first asks it to end after the token in work, the second breaks off."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if the person asked."""
        if self.asked:
            raise KeyboardInterrupt

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.check()
        self.asked = True


@contextmanager
def patient_ctrl_c() -> Iterator[CtrlC]:
    """Between two tokens is the only place where an answer can be cut without leaving half a step behind."""
    asked = CtrlC()
    before = signal.signal(signal.SIGINT, asked.note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def expert_line(use: ExpertUse) -> str:
    """How an expert cache did."""
    found = "none were wanted" if use.hit_rate is None else f"{use.hit_rate:.0%} found in memory"
    return f"experts: {found}, {size_text(use.bytes_read)} read, {use.wait_seconds:.1f} s waited for them"


def closing_line(stats: Stats, finish: str | None) -> str:
    """How much was said and how fast."""
    count = stats.completion_tokens
    parts = [f"{count} token{'' if count == 1 else 's'}"]
    if stats.decode_rate is not None:
        parts.append(f"{stats.decode_rate:.1f} tokens/s decode")
    if stats.prefill_rate is not None:
        parts.append(f"{stats.prefill_rate:.1f} tokens/s prefill")
    parts.append(f"first token after {stats.prefill_seconds:.2f} s")
    media = {"images": stats.image_tokens, "sound": stats.audio_tokens, "video": stats.video_tokens}
    parts += [f"{count} tokens of {kind}" for kind, count in media.items() if count]
    return ", ".join(parts) + ("; stopped at the token limit" if finish == "length" else "")
