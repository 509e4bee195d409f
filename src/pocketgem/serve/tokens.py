"""``/tokenize``, ``/detokenize``, ``/tokenizer_info``: the tokenizer for clients that have none of their own.

In the form of vLLM's routes, which the remote tokenizer of lm-evaluation-harness reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from pocketgem.engine.request import MAX_ID
from pocketgem.serve.call import Call
from pocketgem.serve.fields import FieldError, Fields, shown
from pocketgem.serve.models import Loaded
from pocketgem.serve.replies import json_reply
from pocketgem.serve.wiring import Serving

MAX_IDS = 1_000_000


async def tokenize(serving: Serving, call: Call, data: dict[str, object]) -> Response:
    """A text or a conversation -> ids. Names of control tokens in a text are read as these, unless ``parse_special``
    is false: who builds a prompt by hand means them."""
    fields = Fields.of(data)
    async with serving.registry.use(model_of(fields)) as loaded:
        call.note["model"] = loaded.name
        ids = await asyncio.to_thread(_ids, loaded, fields)
        answer: dict[str, object] = {"count": len(ids), "max_model_len": loaded.llm.engine.context, "tokens": ids}
        if fields.flag("return_token_strs", False):
            answer["token_strs"] = [loaded.llm.detokenize([id]) for id in ids]
        return json_reply(answer)


async def detokenize(serving: Serving, call: Call, data: dict[str, object]) -> Response:
    """Ids -> text, control tokens written out by name."""
    fields = Fields.of(data)
    ids = [_id(path, item) for path, item in fields.items("tokens", most=MAX_IDS)]
    async with serving.registry.use(model_of(fields)) as loaded:
        call.note["model"] = loaded.name
        return json_reply({"prompt": await asyncio.to_thread(loaded.llm.detokenize, ids)})


async def tokenizer_info(serving: Serving, request: Request) -> Response:
    """What a client needs to build prompts. ``?model=`` names one of several."""
    async with serving.registry.use(request.query_params.get("model")) as loaded:
        llm, tokenizer = loaded.llm, loaded.llm.tokenizer
        pad = tokenizer.token_id("<pad>")
        return json_reply(
            {
                "tokenizer_class": "pocketgem",
                "model": loaded.name,
                "bos_token": llm.detokenize([tokenizer.bos_id]),
                "bos_token_id": tokenizer.bos_id,
                "eos_token": None if tokenizer.eos_id is None else llm.detokenize([tokenizer.eos_id]),
                "eos_token_id": tokenizer.eos_id,
                "pad_token": None if pad is None else "<pad>",
                "pad_token_id": pad,
                "add_bos_token": bool(llm.tokenize("a")[:1] == [tokenizer.bos_id]),
                "vocab_size": tokenizer.vocab_size,
                "model_max_length": llm.engine.context,
                "max_model_len": llm.engine.context,
                "chat_template": llm.checkpoint.chat_template,
                "embedding_pooling": "mean of the last hidden states after the final norm, L2-normalised",
                "embedding_length": llm.model.config.hidden_size,
            }
        )


def model_of(fields: Fields) -> str | None:
    return fields.text("model", most=256) if fields.has("model") else None


def _ids(loaded: Loaded, fields: Fields) -> list[int]:
    add_bos = fields.flag("add_special_tokens", True)
    if fields.has("messages"):
        messages = [section.data for section in fields.sections("messages")]
        return _conversation(loaded, messages, fields)
    text = fields.text("prompt")
    return loaded.llm.tokenize(text, add_bos=add_bos, parse_special=fields.flag("parse_special", True))


def _conversation(loaded: Loaded, messages: Sequence[Mapping[str, object]], fields: Fields) -> list[int]:
    tools = [section.data for section in fields.sections("tools")] or None
    thinking = fields.section("chat_template_kwargs").flag("enable_thinking", False)
    return loaded.llm.chat_prompt(messages, tools=tools, thinking=thinking, adapter=loaded.adapter)


def _id(path: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        raise FieldError(path, f"must be a token id, not {shown(value)}")
    return value
