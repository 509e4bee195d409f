"""A request of OpenAI's chat completions, read."""

from __future__ import annotations

from pocketgem.engine.request import MAX_ID, MAX_LOGPROBS
from pocketgem.serve.dialect import Asked
from pocketgem.serve.fields import MAX_NAME, FieldError, Fields, moved, shown
from pocketgem.serve.history import MAX_MESSAGES, Message, call, joined, thought_of
from pocketgem.serve.job import ChatJob
from pocketgem.serve.options import EXTENSIONS, adapter_of, at_least, biases, effort, sampling, stops, thinking
from pocketgem.serve.parts import CHAT, content
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

ROLES = ("system", "developer", "user", "assistant", "tool")

_SAMPLING = {**EXTENSIONS, "temperature": "temperature", "top_p": "top_p"}
_LIMITS = ("max_completion_tokens", "max_tokens")  # the first that is given counts
_READ = {
    *_SAMPLING, *_LIMITS, "min_tokens", "model", "messages", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "regex", "stop", "logit_bias", "logprobs", "top_logprobs", "n", "stream", "stream_options",
    "reasoning_effort", "thinking_budget", "chat_template_kwargs", "adapter", "modalities",
}  # fmt: skip

# Given by official clients, and the answer is the same without them.
HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prediction", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention",
}  # fmt: skip

# What would silently change the answer if it were ignored.
REFUSED = {
    "audio": "audio output is not supported",
    "functions": "is deprecated; use tools",
    "function_call": "is deprecated; use tool_choice",
    "web_search_options": "this server searches nothing; give a tool that does",
    "moderation": "this server has no moderation",
    "guided_json": "use response_format with a json_schema",
    "guided_regex": "use regex",
    "guided_choice": "use regex, or a json_schema with an enum",
    "guided_grammar": "grammars are not supported; use response_format or regex",
    "structured_outputs": "use response_format or regex",
    "grammar": "grammars are not supported; use response_format or regex",
    "json_schema": "use response_format with a json_schema",
    "chat_template": "a template of the request's own is not taken",
}


KNOWN = _READ | HARMLESS | REFUSED.keys()


def read(body: object) -> Asked:
    """What it asks for. Raises FieldError for whatever is wrong, missing or not supported."""
    fields = Fields.of(body)
    fields.refuse_any(REFUSED)
    _modalities(fields)
    _one_choice(fields)
    options = fields.section("stream_options")
    stream = fields.flag("stream", False)
    job = ChatJob(
        model=fields.text("model", "", most=MAX_NAME),
        messages=_messages(fields),
        shape=_shape(fields),
        thinking=thinking(fields, effort(fields, "reasoning_effort")).on,
        sampling=_sampling(fields),
        stream=stream,
        progress=stream,
        adapter=adapter_of(fields),
    )
    usage, progress = options.flag("include_usage", False), options.flag("include_progress", False)
    return Asked(job, usage or not stream, progress, fields.unread(KNOWN))


def _one_choice(fields: Fields) -> None:
    if fields.whole("n", 1, low=1, high=MAX_ID) > 1:
        fields.refuse("n", "this server gives one choice a request; send it again for another")


def _modalities(fields: Fields) -> None:
    for path, kind in fields.items("modalities", most=8):
        if kind != "text":
            raise FieldError(path, f"is {shown(kind)}; only text is made")


def _sampling(fields: Fields) -> dict[str, object]:
    limit = next((name for name in _LIMITS if fields.has(name)), None)
    names = {**_SAMPLING, **({limit: "max_tokens"} if limit else {})}
    found = {**sampling(fields, names), **stops(fields, "stop"), **biases(fields)}
    found |= at_least(fields, found)
    alternatives = fields.whole("top_logprobs", 0, low=0, high=MAX_LOGPROBS)
    if fields.flag("logprobs", False):
        found["logprobs"] = alternatives
    elif alternatives:
        fields.refuse("top_logprobs", "is only taken with logprobs: true")
    return found


def _shape(fields: Fields) -> Shape:
    tools = checked_names([_tool(one) for one in fields.sections("tools", most=MAX_TOOLS)], "tools")
    tools, choice = _choice(fields, tools)
    return shape(
        tools,
        choice,
        "tool_choice",
        parallel=fields.flag("parallel_tool_calls", True),
        format=_format(fields),
        thinking_budget=thinking(fields, effort(fields, "reasoning_effort")).budget,
    )


def _tool(fields: Fields) -> Tool:
    fields.one_of("type", ("function",), "function")
    fields.raw("function")
    return declared(fields.section("function"), "parameters")


def _choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice | str | None]:
    """The tools that are allowed, and what is to be done with them."""
    if not fields.has("tool_choice"):
        return tools, None
    if isinstance(fields.raw("tool_choice"), str):
        return tools, ToolChoice(fields.one_of("tool_choice", [*ToolChoice]))
    choice = fields.section("tool_choice")
    if choice.one_of("type", ("function", "allowed_tools")) == "function":
        return tools, choice.section("function").text("name", most=MAX_NAME)
    allowed = choice.section("allowed_tools")
    names = {one.section("function").text("name", most=MAX_NAME) for one in allowed.sections("tools", most=MAX_TOOLS)}
    return allowed_only(tools, names, allowed.at("tools")), ToolChoice(allowed.one_of("mode", ("auto", "required")))


def _format(fields: Fields) -> Format | None:
    kinds = ("text", "json_object", "json_schema")
    given = fields.section("response_format")
    kind = given.one_of("type", kinds) if fields.has("response_format") else "text"
    pattern = regex(fields)
    if kind == "text":
        return pattern
    if pattern is not None:
        fields.refuse("regex", "cannot be asked for together with a response_format")
    if kind == "json_object":
        return json_format(given)
    given.raw("json_schema")
    return json_format(given.section("json_schema"))


def _messages(fields: Fields) -> tuple[Message, ...]:
    given = fields.sections("messages", most=MAX_MESSAGES)
    if not given:
        fields.refuse("messages", "is missing or empty; a chat needs at least one")
    return tuple(_message(one) for one in given)


def _message(fields: Fields) -> Message:
    role = fields.one_of("role", ROLES)
    message: Message = {"role": role}
    if fields.has("name"):
        message["name"] = fields.text("name", most=MAX_NAME)
    if role == "assistant":
        return {**message, **_assistant(fields)}
    if role == "tool":
        message["tool_call_id"] = fields.text("tool_call_id", most=MAX_NAME)
    if role in ("user", "tool"):
        return {**message, "content": content(fields, "content", ("text",), CHAT)}
    return {**message, "content": joined(fields, "content", ("text",))}


def _assistant(fields: Fields) -> Message:
    fields.refuse_any({"function_call": "is deprecated; use tool_calls", "audio": "audio is not supported"})
    calls = [_call(one) for one in fields.sections("tool_calls", most=MAX_TOOLS)]
    message: Message = {"tool_calls": calls} if calls else {}
    if fields.has("content") or not (calls or fields.has("refusal")):
        message["content"] = joined(fields, "content", ("text", "refusal"))
    else:
        message["content"] = fields.text("refusal", "")
    return message | thought_of(fields, ("reasoning_content", "reasoning"))


def _call(fields: Fields) -> Message:
    fields.one_of("type", ("function",), "function")
    function = moved(fields.section("function"), fields.at("function"))
    return call(fields.text("id", "", most=MAX_NAME), function, "arguments")
