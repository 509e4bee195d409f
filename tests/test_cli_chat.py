"""The conversation: with a scripted model and typed lines in place of a terminal, and once through a real one."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from pocketgem import (
    LLM,
    Content,
    FailedCall,
    Finished,
    FinishReason,
    Piece,
    PromptError,
    RunError,
    Stats,
    Thought,
    ToolCall,
)
from pocketgem.cli.chat import Conversation
from pocketgem.cli.lines import Lines, read_message, write_whole
from pocketgem.cli.screen import Screen
from pocketgem.cli.speech import Manner
from pocketgem.cli.transcript import load_messages, save_messages
from tests.cli_models import TEMPLATE, save_model

Progress = Callable[[int, int], None]
STATS = Stats(prompt_tokens=7, reused_tokens=2, completion_tokens=3, prefill_seconds=0.5, decode_seconds=0.25)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A program that was started in the background of a script, as tests may be, ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Scripted:
    """A model that says what the test wants: each answer is a list of events, or of errors to raise in their place."""

    engine = SimpleNamespace(context=100)
    checkpoint = SimpleNamespace(chat_template=TEMPLATE)

    def __init__(self, *answers: Iterable[object]) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.options: list[dict[str, object]] = []
        self.closed = 0

    def stream_chat(self, messages: Sequence[object], *, on_prefill: Progress, **options: object) -> Any:
        return self._play(list(messages), on_prefill, options)

    def stream(self, prompt: str, *, on_prefill: Progress, **options: object) -> Any:
        return self._play(prompt, on_prefill, options)

    def _play(self, asked: object, on_prefill: Progress, options: dict[str, object]) -> Iterator[object]:
        self.asked.append(asked)
        self.options.append(options)
        on_prefill(7, 7)
        try:
            for event in self.answers.pop(0):
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed += 1


def said(text: str) -> list[object]:
    return [Content(text), Finished(FinishReason.STOP, STATS)]


class Talk:
    """One conversation held from typed lines; what went to either stream."""

    def __init__(self, model: Scripted, *lines: object, manner: Manner | None = None) -> None:
        self.model, self.prompts = model, list[str]()
        self._lines = iter(lines)
        out, err = io.StringIO(), io.StringIO()
        screen = Screen(out=out, err=Console(file=err, width=200))
        self.manner = Manner(raw=False) if manner is None else manner
        self.conversation = Conversation(cast(LLM, model), self.manner, self._read, screen)
        self.conversation.hold("tiny")
        self.out, self.err = out.getvalue(), err.getvalue()

    def _read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException | type):
            raise line
        return str(line)

    @property
    def roles_and_texts(self) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in self.conversation.messages]


# ---- turns ---------------------------------------------------------------------------------------------------------


def test_each_turn_sends_all_that_was_said() -> None:
    talk = Talk(Scripted(said("Hi."), said("Fine.")), "hello", "how are you?")
    assert talk.model.asked[1] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "how are you?"},
    ]
    assert talk.out == "Hi.\nFine.\n\n"
    assert talk.roles_and_texts[-1] == ("assistant", "Fine.")


def test_thoughts_stand_apart_and_are_not_sent_back() -> None:
    answer = [Thought("hm, "), Thought("so"), Content("42"), Content("!"), Finished(FinishReason.STOP, STATS)]
    talk = Talk(Scripted(answer, said("ok")), "why?", "and?")
    assert talk.out == "42!\nok\n\n"
    assert "hm, so\n" in talk.err
    assert all("hm" not in str(message) for message in talk.model.asked[1])


def test_calls_of_tools_are_shown_and_remembered_as_they_were_written() -> None:
    call = ToolCall("weather", {"city": "Åre\x1b[2J"}, "<|tool_call>A<tool_call|>")
    failed = FailedCall("<|tool_call>B<tool_call|>", "no tools were offered for this answer", "tools_not_requested")
    end = Finished(FinishReason.STOP, STATS)
    talk = Talk(Scripted([Content("Hm. "), call, end], [failed, end]), "a", "b")
    assert 'weather({"city": "Åre' in talk.out
    assert "the model calls a tool" in talk.err
    assert "<|tool_call>B<tool_call|>" in talk.out
    assert "no tools were offered" in talk.err
    texts = [text for _, text in talk.roles_and_texts]
    assert texts == ["a", "Hm. <|tool_call>A<tool_call|>", "b", "<|tool_call>B<tool_call|>"]


def test_an_answer_that_is_none_says_why() -> None:
    answer = [Thought("hm"), Finished(FinishReason.LENGTH, STATS, flaw="unterminated_thought")]
    assert "ended inside a thought" in Talk(Scripted(answer), "why?").err


def test_plain_text_sends_one_message_alone_and_says_so() -> None:
    pieces = [Piece(" world", (1,)), Piece("!", (2,), finish=FinishReason.LENGTH, stats=STATS)]
    talk = Talk(Scripted(pieces, pieces), "hello", "bye", "/system x", manner=Manner(raw=True))
    assert talk.model.asked == ["hello", "bye"]
    assert talk.model.options[0] == {"max_tokens": 256, "format": None}
    assert "plain text" in talk.err.splitlines()[0]
    assert "/system has no meaning for plain text" in talk.err
    assert talk.out == " world!\n world!\n\n"


def test_empty_lines_ask_nothing() -> None:
    assert Talk(Scripted(), "", "   ").model.asked == []


def test_lines_go_on_and_blocks_hold_several() -> None:
    talk = Talk(Scripted(said("1"), said("2")), "one\\", "two", '"""a', "  b\\", 'c"""')
    assert [asked[-1]["content"] for asked in talk.model.asked] == ["one\ntwo", "a\n  b\\\nc"]
    assert talk.prompts == [">>> ", "... ", ">>> ", "... ", "... ", ">>> "]


def test_a_block_may_end_on_its_first_line() -> None:
    assert read_message(lambda prompt: '"""/help"""') == "/help"


# ---- stopping and failing ------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_said() -> None:
    talk = Talk(Scripted([Content("Once upon"), KeyboardInterrupt()], said("Bye.")), "a story", "thanks")
    assert talk.roles_and_texts[:2] == [("user", "a story"), ("assistant", "Once upon")]
    assert talk.model.asked[1][1]["content"] == "Once upon"
    assert "(stopped)" in talk.err


def test_ctrl_c_is_noticed_between_tokens_and_ends_the_request() -> None:
    def interrupted() -> Iterator[object]:
        yield Content("one")
        os.kill(os.getpid(), signal.SIGINT)
        yield Content(" two")
        pytest.fail("the answer went on after Ctrl-C")

    talk = Talk(model := Scripted(interrupted()), "go")
    assert talk.roles_and_texts == [("user", "go"), ("assistant", "one two")]
    assert model.closed == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_word_leaves_no_turn() -> None:
    assert Talk(Scripted([KeyboardInterrupt()]), "hello").roles_and_texts == []


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    talk = Talk(Scripted(said("Hi.")), KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "unread")
    assert len(talk.model.asked) == 1
    assert talk.err.count("Ctrl-C again") == 2


@pytest.mark.parametrize("error", [PromptError("x"), RunError("x"), RuntimeError("x"), MemoryError(), OSError("x")])
def test_errors_keep_the_history(error: Exception) -> None:
    talk = Talk(Scripted(said("Hi."), [error], said("Yes.")), "hello", "bad", "still there?")
    assert [text for _, text in talk.roles_and_texts] == ["hello", "Hi.", "still there?", "Yes."]
    assert talk.err.count("error: ") == 1


def test_a_closed_pipe_ends_the_conversation() -> None:
    with pytest.raises(BrokenPipeError):
        Talk(Scripted([BrokenPipeError()]), "hello")


# ---- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/fly", "no command /fly"),
        ("/", "no command /"),
        ("/\x1b[2J", "\\x1b[2J"),
        ("/retry", "nothing was said"),
        ("/undo", "nothing was said"),
        ("/stats", "nothing was said"),
        ("/save", "name a file"),
        ("/load no/such/file", "no such file"),
        ("/save no/such/folder/file", "No such file"),
        ("/think", "thinking is off"),
        ("/set colour red", "no option colour"),
        ("/set top_k", "a value"),
        ("/set top_k many", "top_k must be"),
        ("/set temperature 1e9", "temperature must be"),
        ("/set max_tokens 1.5", "max_tokens must be"),
    ],
)
def test_a_bad_command_is_a_line_and_no_more(line: str, word: str) -> None:
    talk = Talk(Scripted(said("Hi.")), line, "hello")
    assert word in talk.err
    assert talk.err.count("error: ") == 1
    assert "\x1b" not in talk.err
    assert talk.out == "Hi.\n\n"


def test_quit_leaves() -> None:
    assert Talk(Scripted(), "/quit", "unread").model.asked == []


def test_two_slashes_send_one() -> None:
    assert Talk(Scripted(said("a path")), "//etc").model.asked[0][0]["content"] == "/etc"


def test_help_lists_every_command() -> None:
    talk = Talk(Scripted(), "/help")
    for name in talk.conversation.commands.keys() - {"exit"}:
        assert f"/{name}" in talk.err


def test_system_and_thinking_reach_the_model() -> None:
    talk = Talk(Scripted(said("1"), said("2")), "/system Be brief.", "/think on", "a", "/system", "/think off", "b")
    assert talk.model.asked[0][0] == {"role": "system", "content": "Be brief."}
    assert [options["thinking"] for options in talk.model.options] == [True, False]
    assert talk.model.asked[1][0]["role"] == "user"


def test_thinking_needs_a_place_in_the_template() -> None:
    model = Scripted(said("1"))
    model.checkpoint = SimpleNamespace(chat_template="{{ messages }}")
    talk = Talk(model, "/think on", "a")
    assert "no place for thinking" in talk.err
    assert model.options[0]["thinking"] is False


def test_set_changes_one_option_and_default_takes_it_back() -> None:
    lines = ["/set top-k 5", "/set temperature 0.5", '/set stop "a b"', "a", "/set", "/set top_k default", "b"]
    talk = Talk(Scripted(said("1"), said("2")), *lines)
    first = {"top_k": 5, "temperature": 0.5, "stop": ("a b",)}
    assert talk.model.options[0] == first | {"thinking": False}
    assert talk.model.options[1] == {"temperature": 0.5, "stop": ("a b",), "thinking": False}
    assert "top_k 5, temperature 0.5" in talk.err


def test_retry_asks_again_and_undo_forgets() -> None:
    talk = Talk(Scripted(said("1"), said("2"), said("3")), "a", "/retry", "b", "/undo")
    assert talk.model.asked[1] == [{"role": "user", "content": "a"}]
    assert talk.roles_and_texts == [("user", "a"), ("assistant", "2")]


def test_a_retry_that_fails_keeps_the_old_answer() -> None:
    talk = Talk(Scripted(said("1"), [RunError("no")]), "a", "/retry")
    assert talk.roles_and_texts == [("user", "a"), ("assistant", "1")]


def test_history_clear_and_stats() -> None:
    talk = Talk(Scripted(said("Hi.")), "/system S", "hello", "/history", "/stats", "/clear", "/history")
    assert talk.out == "Hi.\nS\nhello\nHi.\nS\n\n"
    assert "3 tokens, 8.0 tokens/s decode, 10.0 tokens/s prefill, first token after 0.50 s" in talk.err
    assert "10 of 100 tokens of context, 2 of them reused" in talk.err
    assert talk.roles_and_texts == []


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_saved_conversation_goes_on_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    Talk(Scripted(said("Grüße 🙂")), "/system S", "hello", f"/save {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]
    talk = Talk(Scripted(said("2")), f"/load {path}", "more")
    assert talk.model.asked[0] == [*json.loads(path.read_text()), {"role": "user", "content": "more"}]
    assert talk.model.asked[0][0] == {"role": "system", "content": "S"}


def test_only_a_conversation_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(PromptError, match="stays as it is"):
        save_messages(path, [])
    assert path.read_text() == "precious"
    save_messages(tmp_path / "new.json", [])
    save_messages(tmp_path / "new.json", [{"role": "user", "content": "x"}])
    assert load_messages(tmp_path / "new.json") == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'[{"role": "user"}]', b'[{"role": "tool", "content": "x"}]',
     b'[{"role": "user", "content": 1}]',
     b'[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]'],
)  # fmt: skip
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(PromptError, match=r"x\.json"):
        load_messages(tmp_path / "x.json")


def test_loading_half_a_turn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    save_messages(path, [{"role": "user", "content": "x"}])
    talk = Talk(Scripted(), f"/load {path}")
    assert "the assistant last" in talk.err
    assert talk.roles_and_texts == []


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_history_is_private_and_survives_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "pocketgem" / "history"
    with Lines():
        readline.add_history("typed")
    assert "typed" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_bytes(b"\x00\xff" * 100)
    with Lines() as lines:
        assert isinstance(lines, Lines)
    readline.clear_history()


def test_no_home_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    with Lines() as lines:
        assert lines is not None


# ---- the screen ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_obeys_nothing_that_a_model_writes() -> None:
    out, err = Terminal(), io.StringIO()
    screen = Screen(out=out, err=Console(file=err, force_terminal=True, width=200))
    screen.content("\x1b[31mred [bold]x[/bold]\n")
    screen.thought("\x1b]0;title\x07 [bold]y[/bold]\n")
    screen.say("[red]z \x1b[2J")
    assert out.getvalue() == "\\x1b[31mred [bold]x[/bold]\n"
    assert "\\x1b]0;title\\x07 [bold]y[/bold]" in err.getvalue()
    assert "[red]z \\x1b[2J" in err.getvalue()


def test_a_pipe_gets_every_byte_of_the_answer() -> None:
    out = io.StringIO()
    Screen(out=out).content("\x1b[31m")
    assert out.getvalue() == "\x1b[31m"


def test_bars_stand_only_on_terminals() -> None:
    for terminal in (False, True):
        err = Terminal() if terminal else io.StringIO()
        screen = Screen(out=io.StringIO(), err=Console(file=err, force_terminal=terminal, width=80))
        with screen.waiting("reading [b]the prompt", "tokens") as bar:
            bar(512, 2048)
            bar(2048, 2048)
        assert ("reading [b]the prompt" in err.getvalue()) == terminal


def test_a_short_wait_shows_no_bar() -> None:
    err = Terminal()
    screen = Screen(out=io.StringIO(), err=Console(file=err, force_terminal=True, width=80))
    with screen.waiting("reading", "tokens") as bar:
        bar(5, 5)
    assert err.getvalue() == ""


# ---- a real terminal -----------------------------------------------------------------------------------------------


class Session:
    """``pocketgem`` under a pseudo-terminal."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        # The first terminal that a new session opens is the one whose Ctrl-C it gets.
        shell = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave)]
        command = [*shell, sys.executable, "-m", "pocketgem", *arguments]
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
        self.slave = slave  # kept open, so that reading waits for the process instead of failing before it
        self.seen, self.unread = "", ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> None:
        """Read until ``pattern`` is found after what was read before."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.unread)):
            if time.monotonic() > end:
                pytest.fail(f"no {pattern!r} in {self.unread[-300:]!r}")
            self._read()
        self.seen += self.unread[: match.end()]
        self.unread = self.unread[match.end() :]

    def interrupt(self, pattern: str) -> None:
        """Ctrl-C at the prompt, until it is noticed: Python's readline sleeps over one that comes between two keys."""
        for _ in range(5):
            self.type("\x03")
            end = time.monotonic() + 5
            while time.monotonic() < end and not re.search(pattern, self.unread):
                self._read()
            if re.search(pattern, self.unread):
                break
        self.until(pattern)

    def exit_code(self, seconds: float = 60) -> int:
        """Wait for the end, reading on: a process that writes into a full terminal stands still."""
        end = time.monotonic() + seconds
        while (code := self.process.poll()) is None:
            if time.monotonic() > end:
                pytest.fail(f"still runs: {self.unread[-300:]!r}")
            self._read()
        self.seen += self.unread
        return code

    def _read(self) -> None:
        if select.select([self.master], [], [], 0.05)[0]:
            self.unread += os.read(self.master, 4096).decode("utf-8", "replace")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "chat", template=TEMPLATE)


def test_a_conversation_at_a_real_terminal(chat: Path, tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "80"}
    with Session(["run", str(chat)], environment) as session:
        session.until(">>> ")
        session.type("hello\n")
        session.until("hello\r\n")
        session.until(r"[A-Za-z ]{3}")  # some of an answer that would take 32,000 tokens
        session.type("\x03")
        session.until(r"\(stopped\)")
        session.until(">>> ")
        session.type("/set max_tokens 4\n")
        session.until(">>> ")
        session.type("again\n")
        session.until("again\r\n")
        session.until(">>> ")
        session.type("/stats\n")
        session.until("4 tokens, ")
        session.until(">>> ")
        session.type("abandoned")
        session.until("abandoned")
        session.interrupt("Ctrl-D leaves")
        session.until(">>> ")
        session.type("\x04")
        assert session.exit_code() == 0
    assert "Traceback" not in session.seen
    history = (tmp_path / "pocketgem" / "history").read_text()
    assert "hello\n" in history
    assert "again\n" in history


def test_ctrl_c_ends_a_single_prompt_quietly(chat: Path, tmp_path: Path) -> None:
    with Session(["run", str(chat), "hello", "-q"], {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}) as session:
        session.until(r"[A-Za-z ]{3}")
        session.type("\x03")
        assert session.exit_code() == 130
    assert "Traceback" not in session.seen
