"""``/v1/completions``: continue texts or token ids; log-probabilities; in one piece or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from pocketgem.answers import Piece, Stats, TokenLogprob
from pocketgem.engine.request import FinishReason, Request, Sampled
from pocketgem.flight import Run
from pocketgem.llm import LLM, Prompt
from pocketgem.serve.answering import Desk
from pocketgem.serve.call import Call
from pocketgem.serve.completions_read import Wanted
from pocketgem.serve.dialect import Sent
from pocketgem.serve.faults import body_of, fault_of
from pocketgem.serve.fields import Fields
from pocketgem.serve.legacy_logprobs import Lists, LogprobWriter
from pocketgem.serve.models import Loaded
from pocketgem.serve.prompts import ids_of
from pocketgem.serve.replies import json_reply
from pocketgem.serve.sse import DONE, frame
from pocketgem.serve.wiring import Serving

SIDE_BY_SIDE = 32  # choices of one request that are with the engine at a time
FAMILY = "/v1/completions"


@dataclass
class Choice:
    """One continuation of one prompt."""

    index: int
    request: Request
    shown: str  # the prompt's text, where it is echoed
    writer: LogprobWriter | None
    run: Run | None = None
    text: list[str] = field(default_factory=list)
    lists: Lists = field(default_factory=Lists)
    finish: FinishReason | None = None
    stats: Stats = field(default_factory=Stats)
    begun: bool = False


@dataclass(frozen=True)
class Chunk:
    """What was added to a choice."""

    choice: Choice
    text: str
    lists: Lists | None
    finish: FinishReason | None = None


async def create(serving: Serving, call: Call, data: dict[str, object]) -> Response:
    """Answer a request, or begin to."""
    wanted = Wanted.read(Fields.of(data))
    async with AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(serving.registry.use(wanted.model, wanted.adapter))
        call.note["model"] = loaded.name
        choices = await asyncio.to_thread(_choices, loaded, wanted)
        answering = Answering(Desk(loaded, serving.metrics, stack, call), wanted, choices, call)
        answering.begin()
        if wanted.stream:
            return serving.stream(answering.frames(), stack.pop_all())
        return json_reply(await answering.whole())


class Answering:
    """All choices of one request on their way."""

    def __init__(self, desk: Desk, wanted: Wanted, choices: list[Choice], call: Call) -> None:
        self.desk, self.wanted, self.choices, self.call = desk, wanted, choices, call
        self.head = {
            "id": f"cmpl-{call.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": desk.loaded.asked,
        }

    def begin(self) -> None:
        """Hand in what fits: a full queue is told before the answer begins."""
        for choice in self.choices[:SIDE_BY_SIDE]:
            choice.run = self.desk.submit(choice.request)

    async def whole(self) -> dict[str, object]:
        """The answer in one piece."""
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                chunk.choice.text.append(chunk.text)
                if chunk.lists is not None:
                    chunk.choice.lists.extend(chunk.lists)
        return {**self.head, "choices": [self._choice(choice) for choice in self.choices], "usage": self._usage()}

    async def frames(self) -> AsyncGenerator[bytes]:
        """The answer as events. What breaks on the way is the last of them."""
        try:
            async with aclosing(self.chunks()) as chunks:
                async for chunk in chunks:
                    yield self._frame([_entry(chunk.choice.index, chunk.text, chunk.lists, chunk.finish)])
            if self.wanted.usage:
                yield self._frame([], usage=self._usage())
        except Exception as error:
            self.call.note["failed"] = type(error).__name__
            yield frame(Sent(None, body_of(fault_of(error), FAMILY, self.call.id)))
        yield DONE

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """What comes, of any choice, in the order in which it comes."""
        if len(self.choices) > 1:
            async with aclosing(self._side_by_side()) as chunks:
                async for chunk in chunks:
                    yield chunk
        else:  # without a task between: it would wake up for every token
            for choice in self.choices:
                async with aclosing(self._of(choice)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def _side_by_side(self) -> AsyncGenerator[Chunk]:
        gate, news = asyncio.Semaphore(SIDE_BY_SIDE), asyncio.Queue[Chunk | Exception]()
        tasks = [asyncio.ensure_future(self._tell(choice, gate, news)) for choice in self.choices]
        left = len(tasks)
        try:
            while left:
                one = await news.get()
                if isinstance(one, Exception):
                    raise one
                left -= one.finish is not None
                yield one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, choice: Choice, gate: asyncio.Semaphore, news: asyncio.Queue[Chunk | Exception]) -> None:
        try:
            async with gate, aclosing(self._of(choice)) as chunks:
                async for chunk in chunks:
                    news.put_nowait(chunk)
        except Exception as error:
            news.put_nowait(error)

    async def _of(self, choice: Choice) -> AsyncGenerator[Chunk]:
        if choice.run is None:
            choice.run = self.desk.submit(choice.request)
        async with aclosing(self.desk.pieces(choice.run)) as pieces:
            async for piece, prompt in pieces:
                if (chunk := _chunk_of(choice, piece, prompt)) is not None:
                    yield chunk

    def _choice(self, choice: Choice) -> dict[str, object]:
        lists = choice.lists if self.wanted.logprobs is not None else None
        return _entry(choice.index, "".join(choice.text), lists, choice.finish)

    def _frame(self, choices: list[dict[str, object]], **more: object) -> bytes:
        if self.wanted.usage:
            more = {"usage": None, **more}
        return frame(Sent(None, {**self.head, "choices": choices, **more}))

    def _usage(self) -> dict[str, object]:
        prompts = [choice.stats for choice in self.choices[:: self.wanted.n]]  # n answers are to one prompt
        made = sum(choice.stats.completion_tokens for choice in self.choices)
        read = sum(stats.prompt_tokens for stats in prompts)
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": sum(stats.reused_tokens for stats in prompts)},
        }


def _chunk_of(choice: Choice, piece: Piece, prompt: tuple[Sampled, ...]) -> Chunk | None:
    """What one output adds to a choice, the prompt first where it is echoed; None for nothing to show."""
    tokens: list[TokenLogprob | Sampled | int] = [*prompt, *piece.logprobs]
    text = piece.text
    if not choice.begun:
        choice.begun, text = True, choice.shown + text
        if choice.request.params.prompt_logprobs is not None:
            tokens.insert(0, choice.request.prompt_ids[0])
    lists = choice.writer.write(tokens) if choice.writer is not None and tokens else None
    choice.finish, choice.stats = piece.finish, piece.stats or choice.stats
    return Chunk(choice, text, lists, piece.finish) if text or lists or piece.finish else None


def _entry(index: int, text: str, lists: Lists | None, finish: FinishReason | None) -> dict[str, object]:
    return {
        "index": index,
        "text": text,
        "logprobs": None if lists is None else lists.as_data(),
        "finish_reason": None if finish is None else finish.value,
    }


def _choices(loaded: Loaded, wanted: Wanted) -> list[Choice]:
    """Everything that can be wrong with a prompt is found here, before the first token."""
    choices: list[Choice] = []
    llm = loaded.llm
    for number, prompt in enumerate(wanted.prompts):
        path = "prompt" if len(wanted.prompts) == 1 else f"prompt[{number}]"
        ids = ids_of(llm, prompt, path, parse_special=wanted.parse_special)
        shown = _shown(llm, prompt, ids) if wanted.echo else ""
        for copy in range(wanted.n):
            request = llm.request(ids, adapter=loaded.adapter, **_sampling(wanted, copy))
            writer = None
            if wanted.logprobs is not None:
                writer = LogprobWriter(llm.tokenizer)
            choices.append(Choice(len(choices), request, shown, writer))
    return choices


def _sampling(wanted: Wanted, copy: int) -> dict[str, Any]:
    options: dict[str, Any] = {**wanted.sampling, "max_tokens": wanted.max_tokens, "logprobs": wanted.logprobs}
    options["prompt_logprobs"] = wanted.logprobs if wanted.echo else None
    if (seed := options.get("seed")) is not None:
        options["seed"] = (seed + copy + 2**63) % 2**64 - 2**63  # n answers are n different ones
    return options


def _shown(llm: LLM, prompt: Prompt, ids: tuple[int, ...]) -> str:
    """The prompt as text. A begin token was not written by anybody."""
    if isinstance(prompt, str):
        return prompt
    return llm.detokenize(ids[1:] if ids[:1] == (llm.tokenizer.bos_id,) else ids)
