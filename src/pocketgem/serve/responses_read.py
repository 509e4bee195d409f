"""A request of OpenAI's responses, read."""

from __future__ import annotations

from collections.abc import Callable

from pocketgem.engine.request import MAX_LOGPROBS
from pocketgem.serve.dialect import Asked
from pocketgem.serve.fields import MAX_NAME, Fields, plain, shown
from pocketgem.serve.history import MAX_MESSAGES, Message
from pocketgem.serve.job import ChatJob
from pocketgem.serve.options import EFFORTS, EXTENSIONS, adapter_of, biases, effort, sampling, thinking
from pocketgem.serve.responses_items import messages_of
from pocketgem.serve.tools import (
    MAX_TOOLS,
    Format,
    Tool,
    allowed_only,
    checked_names,
    declared,
    json_format,
    regex,
    shape,
)
from pocketgem.text.shape import Shape, ToolChoice

Recall = Callable[[str], tuple[Message, ...] | None]

_SAMPLING = {**EXTENSIONS, "temperature": "temperature", "top_p": "top_p", "max_output_tokens": "max_tokens"}
_READ = {
    *_SAMPLING, "model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning",
    "previous_response_id", "store", "stream", "stream_options", "include", "top_logprobs", "metadata", "truncation",
    "logit_bias", "regex", "thinking_budget", "chat_template_kwargs", "adapter",
}  # fmt: skip
HARMLESS = {
    "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "max_tool_calls", "image", "access_programs", "background_options",
}  # fmt: skip
REFUSED = {
    "conversation": "conversations are not kept; use previous_response_id",
    "prompt": "stored prompts are not supported; send the text itself",
    "moderation": "this server has no moderation",
}
KNOWN = _READ | HARMLESS | REFUSED.keys() | {"background"}

_SUMMARIES = ("auto", "concise", "detailed")


def read(body: object, recall: Recall | None = None) -> Asked:
    """What it asks for. ``recall`` finds the messages of an earlier response by its id. Raises FieldError."""
    fields = Fields.of(body)
    fields.refuse_any(REFUSED)
    if fields.flag("background", False):
        fields.refuse("background", "an answer is made while the client waits, or not at all")
    tools, skipped = _tools(fields)
    messages = _past(fields, recall) + _input(fields)
    stream = fields.flag("stream", False)
    job = ChatJob(
        model=fields.text("model", "", most=MAX_NAME),
        messages=_instructions(fields) + messages,
        shape=_shape(fields, tools),
        thinking=thinking(fields, effort(fields.section("reasoning"), "effort")).on,
        sampling=_sampling(fields),
        stream=stream,
        progress=stream,
        adapter=adapter_of(fields),
    )
    return Asked(
        job,
        progress=fields.section("stream_options").flag("include_progress", False),
        ignored=skipped + fields.section("text").unread({"format"}) + fields.unread(KNOWN),
        echo=_echo(fields, tools),
        keep=messages if fields.flag("store", True) else None,
        summary=_summary(fields.section("reasoning")),
    )


def _past(fields: Fields, recall: Recall | None) -> tuple[Message, ...]:
    if not fields.has("previous_response_id"):
        return ()
    past = recall(fields.text("previous_response_id", most=MAX_NAME)) if recall else None
    if past is None:
        reason = "it was not stored, was dropped to make room, or the server was started anew"
        fields.refuse("previous_response_id", f"names no response that is kept: {reason}; send the whole conversation")
    return past


def _input(fields: Fields) -> tuple[Message, ...]:
    if isinstance(fields.raw("input"), str):
        return ({"role": "user", "content": fields.text("input")},)
    items = fields.sections("input", most=MAX_MESSAGES)
    if not items:
        fields.refuse("input", "is empty; give a text or at least one item")
    return messages_of(items)


def _instructions(fields: Fields) -> tuple[Message, ...]:
    given = fields.text("instructions", "")
    return ({"role": "system", "content": given},) if given else ()


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The client's functions, and tools of other kinds, which are left out and named in the answer."""
    found, skipped = [], []
    for tool in fields.sections("tools", most=MAX_TOOLS):
        kind = tool.text("type", most=MAX_NAME)
        if kind == "function":
            found.append(declared(tool, "parameters"))
        else:
            skipped.append(f"{tool.path} ({shown(kind)})")
    return checked_names(found, "tools"), tuple(skipped)


def _shape(fields: Fields, tools: tuple[Tool, ...]) -> Shape:
    tools, choice = _choice(fields, tools)
    return shape(
        tools,
        choice,
        "tool_choice",
        parallel=fields.flag("parallel_tool_calls", True),
        format=_format(fields),
        thinking_budget=thinking(fields, effort(fields.section("reasoning"), "effort")).budget,
    )


def _choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice | str | None]:
    if not fields.has("tool_choice"):
        return tools, None
    if isinstance(fields.raw("tool_choice"), str):
        return tools, ToolChoice(fields.one_of("tool_choice", [*ToolChoice]))
    choice = fields.section("tool_choice")
    if choice.one_of("type", ("function", "allowed_tools")) == "function":
        return tools, choice.text("name", most=MAX_NAME)
    names = {one.text("name", most=MAX_NAME) for one in choice.sections("tools", most=MAX_TOOLS)}
    return allowed_only(tools, names, choice.at("tools")), ToolChoice(choice.one_of("mode", ("auto", "required")))


def _format(fields: Fields) -> Format | None:
    given, pattern = fields.section("text").section("format"), regex(fields)
    kind = given.one_of("type", ("text", "json_object", "json_schema"), "text")
    if kind == "text":
        return pattern
    if pattern is not None:
        fields.refuse("regex", "cannot be asked for together with text.format")
    return json_format(given)


def _sampling(fields: Fields) -> dict[str, object]:
    found = {**sampling(fields, _SAMPLING), **biases(fields)}
    wanted = [item for _, item in fields.items("include", most=64)]
    if fields.has("top_logprobs") or "message.output_text.logprobs" in wanted:
        found["logprobs"] = fields.whole("top_logprobs", 0, low=0, high=MAX_LOGPROBS)
    return found


def _summary(reasoning: Fields) -> bool:
    """Whether thoughts are to be shown as a summary, which here is the whole of them."""
    key = "summary" if reasoning.has("summary") else "generate_summary"
    return reasoning.has(key) and bool(reasoning.one_of(key, _SUMMARIES))


def _echo(fields: Fields, tools: tuple[Tool, ...]) -> dict[str, object]:
    """What the response repeats of its request, as official clients require it."""
    reasoning = fields.section("reasoning")
    return {
        "instructions": fields.text("instructions", "") or None,
        "max_output_tokens": fields.data.get("max_output_tokens"),
        "metadata": fields.json("metadata"),
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "previous_response_id": fields.data.get("previous_response_id"),
        "reasoning": {
            "effort": reasoning.one_of("effort", EFFORTS) if reasoning.has("effort") else None,
            "summary": "detailed" if _summary(reasoning) else None,
        },
        "store": fields.flag("store", True),
        "temperature": fields.data.get("temperature"),
        "text": {"format": fields.section("text").json("format") or {"type": "text"}},
        "tool_choice": plain(fields.raw("tool_choice", "auto"), "tool_choice"),
        "tools": [_flat(tool) for tool in tools],
        "top_p": fields.data.get("top_p"),
        "truncation": "disabled",
    }


def _flat(tool: Tool) -> dict[str, object]:
    """A tool as this dialect writes it: without a function around its fields."""
    function = tool["function"]
    return {"type": "function", "strict": None, **(function if isinstance(function, dict) else {})}
