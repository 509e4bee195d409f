"""``/v1/embeddings``: texts as directions. The mean of the last hidden states after the final norm, made of length one.

Gemma is no encoder: the vectors tell texts on one subject from others, but a model trained for it does so better.
"""

from __future__ import annotations

import asyncio
import base64
import threading

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from pocketgem.llm import LLM, Prompt
from pocketgem.serve.call import Call
from pocketgem.serve.fields import Fields
from pocketgem.serve.models import Loaded
from pocketgem.serve.prompts import ids_of, prompts_of
from pocketgem.serve.replies import json_reply
from pocketgem.serve.tokens import model_of
from pocketgem.serve.wiring import Serving


async def create(serving: Serving, call: Call, data: dict[str, object]) -> Response:
    """One vector for each input. ``dimensions`` keeps its first numbers, of length one again."""
    fields = Fields.of(data)
    prompts = prompts_of(fields, "input")
    encoding = fields.one_of("encoding_format", ("float", "base64"), "float")
    async with serving.registry.use(model_of(fields)) as loaded:
        call.note["model"] = loaded.name
        width = loaded.llm.model.config.hidden_size
        dimensions = fields.whole("dimensions", width, low=1, high=width)
        inputs = await asyncio.to_thread(_inputs, loaded.llm, prompts)
        vectors = [await _vector(loaded, ids) for ids in inputs]
        read = sum(map(len, inputs))
        call.note["prompt_tokens"] = read
        return json_reply(
            {
                "object": "list",
                "model": loaded.asked,
                "data": [
                    {"object": "embedding", "index": index, "embedding": _written(vector[:dimensions], encoding)}
                    for index, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": read, "total_tokens": read},
            }
        )


def _inputs(llm: LLM, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    paths = [f"input[{index}]" for index in range(len(prompts))] if len(prompts) > 1 else ["input"]
    return [ids_of(llm, prompt, path) for prompt, path in zip(prompts, paths, strict=True)]


async def _vector(loaded: Loaded, ids: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """In a thread, given up between two chunks of the text when nobody waits any more."""
    given_up = threading.Event()
    try:
        vector = await asyncio.to_thread(
            loaded.llm.embed, ids, proceed=lambda: not given_up.is_set(), adapter=loaded.adapter
        )
        return np.array(vector, np.float32)
    finally:
        given_up.set()


def _written(vector: npt.NDArray[np.float32], encoding: str) -> object:
    vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
