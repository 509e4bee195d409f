"""The conversation: read a message or a command, answer, remember. Whatever goes wrong, what was said stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketgem.cli.common import explained, harmless
from pocketgem.cli.lines import read_message
from pocketgem.cli.media import KINDS, Part, part_of
from pocketgem.cli.screen import Screen
from pocketgem.cli.speech import Manner, Speech, check_thinking, closing_line, patient_ctrl_c, speak
from pocketgem.cli.transcript import load_messages, save_messages
from pocketgem.errors import PocketgemError, PromptError

if TYPE_CHECKING:
    from pocketgem.answers import Stats
    from pocketgem.llm import LLM
    from pocketgem.text.media import Kind

SETTABLE = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "stop", "max_tokens",
)  # fmt: skip
COMMANDS = {
    "help": "this list",
    "image FILE": "a picture for the next message; /audio FILE and /video FILE likewise",
    "system TEXT": "the system turn from now on; without TEXT none",
    "think on|off": "whether the model may think before it answers",
    "set OPTION VALUE": f"a sampling option (VALUE may be 'default'): {', '.join(SETTABLE)}",
    "retry": "answer the last message again",
    "undo": "forget the last message and its answer",
    "history": "all that was said",
    "save FILE": "write the conversation as JSON",
    "load FILE": "go on with a saved one",
    "stats": "tokens and speed of the last answer",
    "clear": "forget all that was said",
    "quit": "leave, like Ctrl-D",
}
HINTS = 'A line that ends in \\ goes on; """ begins and ends a block; // at the start sends a line that begins with /.'
Failure = (PocketgemError, OSError, RuntimeError, MemoryError)


class Conversation:
    """One conversation with one model. ``read`` takes a prompt and returns a line, as ``input`` does."""

    def __init__(
        self,
        llm: LLM,
        manner: Manner,
        read: Callable[[str], str],
        screen: Screen,
        media: Sequence[Part] = (),
    ) -> None:
        self.llm, self.manner, self.read, self.screen = llm, manner, read, screen
        self.media = [*media]  # for the next message
        self.messages: list[dict[str, Any]] = []  # turns of user and assistant in turn, without the system turn
        self.last: tuple[Stats, str | None] | None = None
        self.commands: dict[str, Callable[[str], bool | None]] = {
            "help": self._help, "system": self._system, "think": self._think, "set": self._set, "retry": self._retry,
            "undo": self._undo, "history": self._history, "save": self._save, "load": self._load, "stats": self._stats,
            "clear": self._clear, "quit": lambda rest: True, "exit": lambda rest: True,
            **{kind: partial(self._attach, kind) for kind in KINDS},
        }  # fmt: skip

    def hold(self, model: str) -> None:
        """Talk until the person leaves."""
        kind = "each message alone is continued as plain text" if self.manner.raw else "chat"
        self.screen.note(f"{model}: {kind}; /help lists commands, Ctrl-D leaves")
        interrupts = 0
        while interrupts < 2:
            try:
                if self.turn(read_message(self.read)):
                    return
                interrupts = 0
            except KeyboardInterrupt:
                interrupts += 1
                self.screen.out.write("\n")
                if interrupts == 1:
                    self.screen.note("Ctrl-C again or Ctrl-D leaves")
            except EOFError:
                self.screen.out.write("\n")
                return

    def turn(self, line: str) -> bool:
        """Do what one message or command asks for. Returns whether to leave."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                return bool(self._command(line))
            text = line[1:] if line.startswith("//") else line
            if text.strip():
                content = [*self.media, {"type": "text", "text": text}] if self.media else text
                self._answer(content)
                self.media = []
        except BrokenPipeError:
            raise
        except Failure as error:
            self.screen.say(f"error: {explained(error)}")
        return False

    def _command(self, line: str) -> bool | None:
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise PromptError(f"no command /{name}; /help lists them")
        return self.commands[name](rest.strip())

    def _answer(self, content: str | list[Part]) -> None:
        """Answer a message and remember both, also when the answer was cut short; not when there was none."""
        asked = [*self.messages, {"role": "user", "content": content}]
        speech = Speech()
        try:
            with patient_ctrl_c() as ctrl_c:
                speak(self.llm, self.manner, asked, speech, self.screen, ctrl_c.check)
        except KeyboardInterrupt:
            self.screen.note("(stopped)")
        finally:
            self.screen.end()
            if speech.content:
                self.messages = [*asked, {"role": "assistant", "content": speech.content}]
        if speech.stats is not None:
            self.last = speech.stats, speech.finish

    # ---- commands: each takes the rest of its line ----------------------------------------------------------------

    def _help(self, rest: str) -> None:
        self.screen.rows({f"/{usage}": meaning for usage, meaning in COMMANDS.items()})
        self.screen.say(HINTS)

    def _attach(self, kind: Kind, rest: str) -> None:
        self._needs_template(f"/{kind}")
        self.llm.senses.check(kind)
        self.media.append(part_of(kind, _path(rest)))
        count = len(self.media)
        self.screen.say(f"{count} file{'' if count == 1 else 's'} for the next message")

    def _system(self, rest: str) -> None:
        self._needs_template("/system")
        self.manner.system = rest or None
        self.screen.say("system turn set" if rest else "no system turn")

    def _think(self, rest: str) -> None:
        self._needs_template("/think")
        if rest not in ("on", "off"):
            raise PromptError(f"thinking is {'on' if self.manner.thinking else 'off'}; say /think on or /think off")
        if rest == "on":
            check_thinking(self.llm.checkpoint)
        self.manner.thinking = rest == "on"
        self.screen.say(f"thinking {rest}")

    def _needs_template(self, command: str) -> None:
        if self.manner.raw:
            raise PromptError(f"{command} has no meaning for plain text")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        name = name.replace("-", "_")
        if name and name not in SETTABLE:
            raise PromptError(f"no option {name}; there are: {', '.join(SETTABLE)}")
        if name and not value.strip():
            raise PromptError(f"give {name} a value, or 'default'")
        if name:
            self.manner.sampling = changed(self.manner.sampling, name, value.strip())
        given = ", ".join(f"{name} {value!r}" for name, value in self.manner.sampling.items())
        self.screen.say(given or "all sampling options are the checkpoint's own")

    def _retry(self, rest: str) -> None:
        if not self.messages:
            raise PromptError("nothing was said yet")
        *before, asked, said = self.messages
        self.messages = before
        try:
            self._answer(asked["content"])
        finally:
            if len(self.messages) == len(before):  # no new answer: the old one stays
                self.messages = [*before, asked, said]

    def _undo(self, rest: str) -> None:
        if not self.messages:
            raise PromptError("nothing was said yet")
        self.messages = self.messages[:-2]
        left = len(self.messages) // 2
        self.screen.say(f"{left or 'no'} turn{'' if left == 1 else 's'} left")

    def _history(self, rest: str) -> None:
        for message in self._all():
            self.screen.say(f"{message['role']}:")
            self.screen.content(harmless(_shown(message["content"])))
            self.screen.end()

    def _all(self) -> list[dict[str, Any]]:
        """The messages, with the system turn."""
        system = self.manner.system
        return self.messages if system is None else [{"role": "system", "content": system}, *self.messages]

    def _save(self, rest: str) -> None:
        path = _path(rest)
        if any(not isinstance(message["content"], str) for message in self.messages):
            raise PromptError("a conversation with images, sounds or videos cannot be saved: the file holds text only")
        save_messages(path, self._all())
        self.screen.say(f"saved {len(self._all())} messages to {path}")

    def _load(self, rest: str) -> None:
        path = _path(rest)
        messages = load_messages(path)
        system = [message["content"] for message in messages if message["role"] == "system"]
        spoken = [message for message in messages if message["role"] != "system"]
        if [message["role"] for message in spoken] != ["user", "assistant"] * (len(spoken) // 2):
            raise PromptError(f"{path}: user and assistant must speak in turn, the assistant last")
        if system:
            self._needs_template("a system turn")
        self.messages, self.manner.system = spoken, system[0] if system else None
        self.screen.say(f"loaded {len(messages)} messages from {path}")

    def _stats(self, rest: str) -> None:
        if self.last is None:
            raise PromptError("nothing was said yet")
        stats, finish = self.last
        used = stats.prompt_tokens + stats.completion_tokens
        self.screen.say(closing_line(stats, finish))
        self.screen.say(f"{used} of {self.llm.engine.context} tokens of context, {stats.reused_tokens} of them reused")

    def _clear(self, rest: str) -> None:
        self.messages, self.media = [], []
        self.screen.say("all forgotten")


def changed(sampling: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """The options with one of them set from text, or back at its default. Raises PromptError for a bad value."""
    from pocketgem.engine.request import SamplingParams

    rest = {key: value for key, value in sampling.items() if key != name}
    if text == "default":
        return rest
    value = _value(text)
    if name == "stop":
        value = tuple(value) if isinstance(value, list) else (str(value),)
    SamplingParams(**{**rest, name: value})
    return {**rest, name: value}


def _value(text: str) -> object:
    """A number, a list or a quoted text as JSON has them, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shown(content: str | list[Part]) -> str:
    """A message's content in text; of a medium, that it is there."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if part["type"] == "text" else f"({part['type']})" for part in content)


def _path(text: str) -> Path:
    if not text:
        raise PromptError("name a file")
    return Path(text).expanduser()
