"""A prompt on its way through the engine: pieces of text, or updates of a chat, and the numbers of both."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import cast

from pocketgem.answers import Finished, Piece
from pocketgem.engine.loop import Output
from pocketgem.engine.request import FinishReason, Request, Sampled
from pocketgem.errors import RunError
from pocketgem.flight import Run
from pocketgem.reader import ChatReader, TextReader
from pocketgem.serve.call import Call
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.serve.metrics import Metrics
from pocketgem.serve.models import Loaded
from pocketgem.service import Outputs
from pocketgem.text.shape import Shape


@dataclass(frozen=True)
class Desk:
    """Where requests are handed in: the model, who counts, and what ends them all when their client is gone."""

    loaded: Loaded
    metrics: Metrics
    stack: AsyncExitStack
    call: Call
    notes: tuple[str, ...] = ()  # what the client should know of its media

    def submit(self, request: Request) -> Run:
        """Queue a request. It ends with the stack at the latest. Raises PromptError, and BusyError for a full queue.

        Callers take turns, and where there are keys no caller finds out from its answers' speed what another asked.
        """
        salt = self.call.key
        run = self.loaded.service.submit(replace(request, owner=self.call.caller, cache_salt=salt))
        self.stack.callback(self._close, run)
        return run

    async def pieces(self, run: Run) -> AsyncGenerator[tuple[Piece, tuple[Sampled, ...]]]:
        """A completion as it comes, and what was found out about its prompt where that was asked for.

        Closing the generator ends the request within a step. Raises RunError.
        """
        reader = TextReader(self.loaded.llm.voice(run).tokenizer, run)
        async with self._outputs(run) as outputs:
            async for output in outputs:
                piece = reader.read(output)
                if reader.stopped:
                    self.loaded.service.end(run, FinishReason.STOP)
                yield piece, output.prompt
                if piece.finish is not None and piece.finish is not FinishReason.ABORT:
                    return
        raise RunError("the run was ended before the answer was complete")

    async def updates(self, run: Run, shape: Shape) -> AsyncGenerator[Update]:
        """An answer of a shape as it comes: how far the prompt was read, events, and Done."""
        tokenizer, watch = self.loaded.llm.voice(run).tokenizer, Watch(run)
        reader = ChatReader(tokenizer, run, tools=shape.offered, json=shape.is_json)
        async with self._outputs(run) as outputs:
            async for output in outputs:
                if output.sampled is None:
                    yield watch.reading(output)
                for event in reader.read(output):
                    yield event
                if reader.stopped:
                    self.loaded.service.end(run, FinishReason.STOP)
                    break
        for last in reader.finish():
            yield _done(last, self.notes) if isinstance(last, Finished) else last

    def _outputs(self, run: Run) -> aclosing[Outputs]:
        return aclosing(self.loaded.service.outputs(run))

    def _close(self, run: Run) -> None:
        self.loaded.service.end(run, FinishReason.ABORT)
        stats, note = run.stats, self.call.note
        self.metrics.answer(self.loaded.name, stats, (run.reason or FinishReason.ABORT).value)
        media = tuple(f"{kind}_tokens" for kind, count in stats.media.items() if count)
        for name in ("prompt_tokens", "reused_tokens", "completion_tokens", *media):
            note[name] = cast(int, note.get(name, 0)) + getattr(stats, name)


@dataclass
class Watch:
    """How fast a prompt is read, and so how long it will take."""

    run: Run
    began: float | None = None
    start: int = 0

    def reading(self, output: Output) -> Reading:
        now, read, total = time.perf_counter(), output.prefilled, self.run.sequence.num_prompt
        left = None
        if self.began is None:
            self.began, self.start = now, read  # waiting for a place is no reading
        elif read > self.start:
            left = (total - read) * (now - self.began) / (read - self.start)
        return Reading(read, total, self.run.sequence.num_reused, left)


def _done(end: Finished, notes: tuple[str, ...]) -> Done:
    thought = end.thought_tokens or None
    return Done(end.finish, end.stats, end.stopped_by, end.stats.reuse_reason, end.logprobs, thought, notes)
