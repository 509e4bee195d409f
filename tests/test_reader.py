"""Outputs to events, and a loop of tool calls through LLM, with a model that says what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketgem import LLM, Content, FailedCall, Finished, FinishReason, Reply, SamplingParams, Stats, Thought, ToolCall
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.engine.loop import Output
from pocketgem.engine.request import Request, Sampled
from pocketgem.engine.request import Sequence as Running
from pocketgem.flight import Run
from pocketgem.reader import ChatReader
from tests.text_fixtures import DATA, gemma4_metadata, gemma4_tokenizer
from tests.twins import make_twin

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Looks outside.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
OSLO = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:<|"|>2<|"|>}<tool_call|>'


def ids_of(text: str) -> list[int]:
    return gemma4_tokenizer().encode(text, add_bos=False, parse_special=True)


def read(text: str, finish: FinishReason = FinishReason.STOP, *, prompt: str = "<|turn>model\n", **options: Any) -> Any:
    """Events and the end, as a caller would read them; ``stop`` is a sampling option."""
    params = SamplingParams(stop=options.pop("stop", ()), max_tokens=999)
    running = Running(Request("r", tuple(ids_of(prompt)), params))
    run = Run(running)
    reader = ChatReader(gemma4_tokenizer(), run, **options)
    events: list[Any] = []
    for id in ids_of(text):
        running.output_ids.append(id)
        events += reader.read(Output(running, Sampled(id, None, ())))
        if reader.stopped:
            break
    running.finish = FinishReason.STOP if reader.stopped else finish
    run.ended()
    *rest, end = reader.finish()
    assert isinstance(end, Finished)
    return [*events, *rest], end


def text_of(events: Sequence[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def test_calls_come_as_events_with_the_types_of_the_tool() -> None:
    events, end = read(f"Let me look.{OSLO}<|tool_response>", tools=TOOLS)
    assert text_of(events) == "Let me look."
    assert events[-1] == ToolCall("weather", {"city": "Oslo", "days": 2}, OSLO, repairs=("coerced",))
    assert (end.finish, end.flaw) == (FinishReason.STOP, None)


def test_without_tools_a_call_is_handed_back_as_it_is() -> None:
    events, _ = read(OSLO)
    assert events == [FailedCall(OSLO, "no tools were offered for this answer", "tools_not_requested")]


def test_the_token_limit_tells_a_cut_call_from_a_broken_one() -> None:
    half = '<|tool_call>call:weather{city:<|"|>Os'
    (cut,), end = read(half, FinishReason.LENGTH, tools=TOOLS)
    assert (cut.kind, cut.raw, end.finish) == ("unterminated_call", half, FinishReason.LENGTH)
    (broken,), _ = read(half, tools=TOOLS)
    assert (broken.kind, broken.raw) == ("malformed_arguments", half)


def test_an_answer_of_nothing_but_thought_says_so() -> None:
    events, end = read("<|channel>thought\nHm", FinishReason.LENGTH)
    assert events == [Thought("H"), Thought("m")]
    assert end.flaw == "unterminated_thought"


@pytest.mark.parametrize(
    ("text", "prompt", "thought"),
    [
        ("<|channel>thought\nHm<channel|>Yes", "<|turn>model\n", "<|channel>thought\nHm<channel|>"),
        ("Hm<channel|>Yes", "<|turn>model\n<|channel>thought\n", "Hm<channel|>"),
        ("Yes", "<|turn>model\n", ""),
    ],
)
def test_tokens_of_a_thought_are_counted(text: str, prompt: str, thought: str) -> None:
    _, end = read(text, prompt=prompt)
    assert end.thought_tokens == len(ids_of(thought))
    assert len(end.ids) == len(ids_of(text))


def test_the_end_of_the_turn_ends_the_run() -> None:
    events, end = read("Hello.<turn|>\n<|turn>user\nMore", FinishReason.LENGTH)
    assert text_of(events) == "Hello."
    assert end.finish is FinishReason.STOP
    assert len(end.ids) < len(ids_of("Hello.<turn|>\n<|turn>user\nMore"))


def test_stop_strings_stop_content_and_nothing_else() -> None:
    call = OSLO.replace("Oslo", "END")
    events, end = read(f"<|channel>thought\nEND<channel|>a EN{call}D b END c", tools=TOOLS, stop=("END",))
    assert "".join(event.text for event in events if isinstance(event, Thought)) == "END"
    assert [event.arguments["city"] for event in events if isinstance(event, ToolCall)] == ["END"]
    assert text_of(events) == "a END b "  # a call parts a text: what stands before it and after it is no stop
    assert end.finish is FinishReason.STOP
    names = [type(event).__name__ for event in events]
    assert names.index("ToolCall") > names.index("Content")  # text held back for a stop comes before the call


def test_a_thought_that_the_prompt_opened_and_a_label_after_a_result() -> None:
    events, _ = read("Sunny.<channel|>It is.", prompt="<|turn>model\n<|channel>thought\n")
    assert [type(event) for event in events[:1]] == [Thought]
    events, _ = read("thought\nIt is sunny.", prompt="<|tool_response>x<tool_response|>")
    assert text_of(events) == "It is sunny."


def test_json_content_comes_without_its_fence() -> None:
    events, end = read('```json\n{"a": 1}\n```', json=True)
    assert (text_of(events), end.flaw) == ('{"a": 1}', None)
    events, end = read('```json\n{"a": ', FinishReason.LENGTH, json=True)
    assert end.flaw == "truncated_json"


# Through the page ----------------------------------------------------------------------------------------------------


class Scripted:
    """In the place of the flights: a model that answers with the next text."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.prompts: list[tuple[int, ...]] = []

    def start(self, request: Request) -> Run:
        self.prompts.append(request.prompt_ids)
        return Run(Running(request))

    def outputs(self, run: Run, on_prefill: object = None) -> Iterator[Output]:
        ids = ids_of(self.texts.pop(0))
        for id in ids:
            run.sequence.output_ids.append(id)
            if len(run.sequence.output_ids) == len(ids):
                run.sequence.finish = run.sequence.finish or FinishReason.STOP
            yield Output(run.sequence, Sampled(id, None, ()))

    def end(self, run: Run, reason: FinishReason = FinishReason.STOP) -> None:
        run.sequence.finish = run.sequence.finish or reason


@pytest.fixture(scope="module", params=["gemma4_like.jinja", "gemma4_first_like.jinja"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("tools")
    source = open_checkpoint(resolve(make_twin("E2B", folder / "twin").folder))
    template = (DATA / request.param).read_text(encoding="utf-8")
    path = Path(folder / "twin.gguf")
    vocabulary = {**gemma4_metadata(), "tokenizer.chat_template": template}
    export_gguf(source, path, StoredType.F32, vocabulary=vocabulary)
    loaded = LLM.load(path, dtype=torch.float32)
    loaded.engine.context = 8192  # no forward pass is made
    return loaded


def scripted(llm: LLM, *texts: str) -> Scripted:
    script = Scripted(*texts)
    llm.flights = script  # type: ignore[assignment]
    return script


def test_a_loop_of_tool_calls_goes_back_in_unchanged(llm: LLM) -> None:
    bergen = OSLO.replace("Oslo", "Bergen")
    thought = "<|channel>thought\nTwo towns.\n<channel|>"
    script = scripted(
        llm, f"{thought}Let me look.{OSLO}{bergen}<|tool_response>", "Sun and rain.<turn|>", "Yes.<turn|>"
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": "rain?"}]
    reply = llm.chat(messages, tools=TOOLS)
    assert [call.arguments["city"] for call in reply.tool_calls] == ["Oslo", "Bergen"]
    assert (reply.content, reply.thought, reply.failed) == ("Let me look.", "Two towns.", ())
    messages.append(reply.message)
    json.dumps(messages)
    calls: Any = reply.message["tool_calls"]
    for call, weather in zip(calls, ("sun", "rain"), strict=True):
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": weather})
    second = llm.chat(messages, tools=TOOLS)
    prompt = llm.detokenize(script.prompts[1])
    chain = prompt.split("<|turn>model\n")[-1].replace("\n<channel|>", "<channel|>")
    assert chain.startswith(
        '<|channel>thought\nTwo towns.<channel|>Let me look.<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:2}'
    )
    for weather in ("sun", "rain"):
        assert f'<|tool_response>response:weather{{value:<|"|>{weather}<|"|>}}<tool_response|>' in chain
    assert second.content == "Sun and rain."
    assert second.message == {"role": "assistant", "content": "Sun and rain."}
    messages += [second.message, {"role": "user", "content": "sure?"}]
    assert llm.chat(messages, tools=TOOLS).content == "Yes."
    assert "Two towns." not in llm.detokenize(script.prompts[2])


def test_a_failed_call_goes_back_as_the_text_it_was(llm: LLM) -> None:
    broken = "<|tool_call>call:weather for Oslo<tool_call|>"
    script = scripted(llm, f"Hm. {broken}<turn|>", "Sorry.<turn|>")
    reply = llm.chat([{"role": "user", "content": "rain?"}], tools=TOOLS)
    assert [failed.kind for failed in reply.failed] == ["malformed_call"]
    assert reply.message == {"role": "assistant", "content": f"Hm. {broken}"}
    llm.chat([{"role": "user", "content": "rain?"}, reply.message, {"role": "user", "content": "again"}], tools=TOOLS)
    tokenizer = llm.tokenizer
    assert broken in tokenizer.decode(script.prompts[1])
    assert tokenizer.special_tokens["<|tool_call>"] not in script.prompts[1]  # text, not a call


def test_a_flaw_reaches_the_reply(llm: LLM) -> None:
    scripted(llm, "<|channel>thought\nHm<turn|>")
    assert llm.chat([{"role": "user", "content": "rain?"}]).flaw == "unterminated_thought"


def test_a_reply_without_calls_keeps_its_thought_to_itself() -> None:
    reply = Reply("a", "b", FinishReason.STOP, Stats())
    assert reply.message == {"role": "assistant", "content": "a"}
