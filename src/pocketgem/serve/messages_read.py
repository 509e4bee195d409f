"""A request of Anthropic's messages, read."""

from __future__ import annotations

from collections.abc import Iterator

from pocketgem.engine.request import MAX_ID
from pocketgem.serve.dialect import Asked
from pocketgem.serve.fields import MAX_NAME, Fields, shown
from pocketgem.serve.history import MAX_MESSAGES, MAX_PARTS, Message, call, joined, refuse_part
from pocketgem.serve.job import ChatJob
from pocketgem.serve.options import (
    EXTENSIONS,
    MAX_THINKING,
    Thinking,
    adapter_of,
    biases,
    effort,
    sampling,
    stops,
    thinking,
)
from pocketgem.serve.parts import ANTHROPIC, content, part, together, with_text_first
from pocketgem.serve.tools import MAX_TOOLS, Format, Tool, checked_names, declared, json_format, regex, shape
from pocketgem.text.shape import Shape, ToolChoice

_SAMPLING = {**EXTENSIONS, "temperature": "temperature", "top_p": "top_p", "max_tokens": "max_tokens"}
_READ = {
    *_SAMPLING, "model", "messages", "system", "tools", "tool_choice", "stop_sequences", "stream", "thinking",
    "output_config", "logit_bias", "regex", "thinking_budget", "chat_template_kwargs", "adapter",
}  # fmt: skip
HARMLESS = {
    "metadata", "service_tier", "speed", "cache_control", "inference_geo", "diagnostics", "user_profile_id",
    "workspace_id", "betas",
}  # fmt: skip
REFUSED = {
    "container": "this server has no containers",
    "mcp_servers": "this server connects to nothing; give the tools themselves",
}
KNOWN = _READ | HARMLESS | REFUSED.keys()

_CHOICES = {"auto": ToolChoice.AUTO, "any": ToolChoice.REQUIRED, "none": ToolChoice.NONE}
_THINKING = ("enabled", "disabled", "adaptive", "between_tools")
_ANSWER = ("text", "thinking", "redacted_thinking", "tool_use")  # blocks of the assistant


def read(body: object, *, counting: bool = False) -> Asked:
    """What it asks for. ``counting``: as count_tokens has it, without max_tokens. Raises FieldError."""
    fields = Fields.of(body)
    fields.refuse_any(REFUSED)
    if not counting or fields.has("max_tokens"):
        fields.whole("max_tokens", low=1, high=MAX_ID)
    messages = _system(fields) + _messages(fields)
    tools, skipped = _tools(fields)
    thought = _thinking(fields, messages)
    stream = fields.flag("stream", False)
    job = ChatJob(
        model=fields.text("model", "", most=MAX_NAME),
        messages=messages,
        shape=_shape(fields, tools, thought),
        thinking=thought.on,
        sampling={**sampling(fields, _SAMPLING), **stops(fields, "stop_sequences"), **biases(fields)},
        stream=stream,
        progress=stream,
        adapter=adapter_of(fields),
    )
    odd = fields.section("thinking").unread({"type", "budget_tokens"})
    return Asked(job, ignored=skipped + odd + fields.unread(KNOWN))


def _system(fields: Fields) -> tuple[Message, ...]:
    return ({"role": "system", "content": joined(fields, "system", ("text",))},) if fields.has("system") else ()


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The client's tools, and those that Anthropic's servers would run, which are left out and named in the answer."""
    found, skipped = [], []
    for tool in fields.sections("tools", most=MAX_TOOLS):
        kind = tool.text("type", "custom", most=MAX_NAME)
        if kind == "custom":
            found.append(declared(tool, "input_schema"))
        else:
            skipped.append(f"{tool.path} ({shown(kind)})")
    return checked_names(found, "tools"), tuple(skipped)


def _shape(fields: Fields, tools: tuple[Tool, ...], thought: Thinking) -> Shape:
    choice: ToolChoice | str | None = None
    given = fields.section("tool_choice")
    if fields.has("tool_choice"):
        kind = given.one_of("type", [*_CHOICES, "tool"])
        choice = given.text("name", most=MAX_NAME) if kind == "tool" else _CHOICES[kind]
    parallel = not given.flag("disable_parallel_tool_use", False)
    budget = thought.budget
    return shape(tools, choice, "tool_choice", parallel=parallel, format=_format(fields), thinking_budget=budget)


def _format(fields: Fields) -> Format | None:
    config, pattern = fields.section("output_config"), regex(fields)
    if not config.has("format"):
        return pattern
    if pattern is not None:
        fields.refuse("regex", "cannot be asked for together with output_config.format")
    given = config.section("format")
    given.one_of("type", ("json_schema",))
    return json_format(given)


def _thinking(fields: Fields, messages: tuple[Message, ...]) -> Thinking:
    """``thinking`` says whether; its own budget, or else the effort of ``output_config``, says how much."""
    budget = effort(fields.section("output_config"), "effort").budget
    given = fields.section("thinking")
    kind = given.one_of("type", _THINKING) if fields.has("thinking") else None
    if kind == "enabled":
        asked = Thinking(True, given.whole("budget_tokens", low=1, high=MAX_THINKING))
    elif kind == "between_tools":
        asked = Thinking(messages[-1]["role"] == "tool", budget)
    else:
        asked = Thinking(None if kind is None else kind == "adaptive", budget)
    return thinking(fields, asked)


def _messages(fields: Fields) -> tuple[Message, ...]:
    given = fields.sections("messages", most=MAX_MESSAGES)
    if not given:
        fields.refuse("messages", "is missing or empty; a chat needs at least one")
    if given[-1].one_of("role", ("user", "assistant", "system")) == "assistant":
        given[-1].refuse("role", "is assistant; to go on from the beginning of an answer is not supported")
    return tuple(message for one in given for message in _message(one))


def _message(fields: Fields) -> Iterator[Message]:
    """One message of theirs as ours: results of tools become messages of their own."""
    role = fields.one_of("role", ("user", "assistant", "system"))
    if isinstance(fields.raw("content"), str):
        yield {"role": role, "content": fields.text("content")}
    elif role == "assistant":
        yield _answer(fields.sections("content", most=MAX_PARTS))
    else:
        yield from _said(role, fields.sections("content", most=MAX_PARTS))


def _said(role: str, blocks: list[Fields]) -> Iterator[Message]:
    parts: list[Message] = []
    results = False
    media = ANTHROPIC if role == "user" else {}
    for block in blocks:
        if block.text("type", most=MAX_NAME) == "tool_result" and role == "user":
            if parts:
                yield {"role": role, "content": together(parts)}
                parts = []
            results = True
            yield _result(block)
        else:
            parts.append(part(block, ("text", "tool_result"), media))
    if parts or not results:
        yield {"role": role, "content": together(parts)}


def _result(block: Fields) -> Message:
    said = content(block, "content", ("text",), ANTHROPIC) if block.has("content") else ""
    if block.flag("is_error", False) and not (isinstance(said, str) and said.lower().startswith("error")):
        said = with_text_first(said, "Error: ") if said else "Error"  # templates have no other place for it
    return {"role": "tool", "tool_call_id": block.text("tool_use_id", most=MAX_NAME), "content": said}


def _answer(blocks: list[Fields]) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Message] = []
    for block in blocks:
        kind = block.text("type", most=MAX_NAME)
        if kind == "text":
            texts.append(block.text("text"))
        elif kind == "thinking":
            thoughts.append(block.text("thinking"))
        elif kind == "tool_use":
            calls.append(call(block.text("id", "", most=MAX_NAME), block, "input"))
        elif kind not in _ANSWER:
            refuse_part(block, kind, _ANSWER)
    message: Message = {"role": "assistant", "content": "".join(texts)}
    message |= {"reasoning_content": "".join(thoughts)} if any(thoughts) else {}
    return message | ({"tool_calls": calls} if calls else {})
