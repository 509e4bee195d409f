"""Options that the dialects share under different names: sampling, and how much the model may think.

What is in range is for SamplingParams to say; here its refusals get the path of the client's field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketgem.engine.request import MAX_BIASES, MAX_ID, SamplingParams
from pocketgem.errors import PromptError
from pocketgem.serve.fields import MAX_NAME, FieldError, Fields, shown

MAX_THINKING = MAX_ID  # tokens; a budget that is larger than the context is none

# What OpenAI's dialects call an effort -> whether to think, and the most tokens of thought (None: no limit).
EFFORTS: Mapping[str, tuple[bool, int | None]] = {
    "none": (False, 0),
    "minimal": (True, 256),
    "low": (True, 1024),
    "medium": (True, 4096),
    "high": (True, None),
    "xhigh": (True, None),
    "max": (True, None),
}

# Extensions that every dialect takes under the same name.
EXTENSIONS = {
    name: name for name in ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
}


def checked(option: str, value: object, path: str) -> Any:
    """``value`` as the sampling option of that name takes it. Raises FieldError at ``path``."""
    options: dict[str, Any] = {option: value}
    try:
        return getattr(SamplingParams(**options), option)
    except PromptError as error:
        raise FieldError(path, str(error).removeprefix(f"{option} ")) from error


def sampling(fields: Fields, names: Mapping[str, str]) -> dict[str, object]:
    """The options that were given: ``names`` maps the client's names to SamplingParams' own."""
    found: dict[str, object] = {}
    for theirs, ours in names.items():
        if fields.has(theirs):
            value = fields.raw(theirs)
            off = ours == "top_k" and type(value) is int and value in (0, -1)  # as other servers spell "keep all"
            found[ours] = None if off else checked(ours, value, fields.at(theirs))
    return found


def adapter_of(fields: Fields) -> str | None:
    """The extension ``adapter``: a name, as ``MODEL:NAME`` in ``model`` gives it. An empty one asks for none."""
    return fields.text("adapter", "", most=MAX_NAME) or None


def at_least(fields: Fields, found: Mapping[str, object], key: str = "min_tokens") -> dict[str, object]:
    """The extension ``min_tokens``, which must fit the limit that was found."""
    if not fields.has(key):
        return {}
    value = checked("min_tokens", fields.raw(key), fields.at(key))
    limit = found.get("max_tokens")
    if isinstance(limit, int) and value > limit:
        fields.refuse(key, f"must be at most the most tokens ({limit}), not {value}")
    return {"min_tokens": value}


def stops(fields: Fields, key: str) -> dict[str, object]:
    """Stop strings: one text, or a list of them. Empty ones, which would end every answer, are no stops."""
    if not fields.has(key):
        return {}
    value = fields.raw(key)
    texts = [value] if isinstance(value, str) else [item for _, item in fields.items(key)]
    found = tuple(text for text in texts if text != "")
    return {"stop": checked("stop", found, fields.at(key))} if found else {}


def biases(fields: Fields, key: str = "logit_bias") -> dict[str, object]:
    """``logit_bias``: an object whose keys are ids as text. -100 forbids the id, as OpenAI has it."""
    given = fields.section(key).data
    if len(given) > MAX_BIASES:
        fields.refuse(key, f"has {len(given)} entries; at most {MAX_BIASES} are taken")
    found = checked("logit_bias", {_id(name, fields.at(key)): bias for name, bias in given.items()}, fields.at(key))
    return {"logit_bias": {id: -math.inf if bias <= -100 else bias for id, bias in found.items()}} if found else {}


@dataclass(frozen=True)
class Thinking:
    """``on`` None leaves it to the server. ``budget``: most tokens of thought, None for no limit."""

    on: bool | None = None
    budget: int | None = None


def effort(fields: Fields, key: str) -> Thinking:
    """What an effort asks for; nothing where none was given."""
    return Thinking(*EFFORTS[fields.one_of(key, EFFORTS)]) if fields.has(key) else Thinking()


def thinking(fields: Fields, asked: Thinking) -> Thinking:
    """``asked`` by the dialect's own field, with the extensions over it: what is said more exactly wins."""
    on, budget = asked.on, asked.budget
    if fields.has("thinking_budget"):
        budget = fields.whole("thinking_budget", low=0, high=MAX_THINKING)
        on = budget > 0
    switches = fields.section("chat_template_kwargs")
    if unknown := sorted(switches.data.keys() - {"enable_thinking"}):
        switches.refuse(
            shown(unknown[0]).strip("'\""), "is not a template option this server takes; enable_thinking is"
        )
    if switches.has("enable_thinking"):
        on = switches.flag("enable_thinking")
    return Thinking(on, 0 if on is False else budget or None)


def _id(name: str, path: str) -> int:
    if not (name.isascii() and name.isdigit() and len(name) <= 10):
        raise FieldError(path, f"has the key {shown(name)}; keys must be token ids")
    return int(name)
