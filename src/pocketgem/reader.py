"""Outputs of a run as they come -> text or events. Push by push: whoever waits for outputs, in a thread or in a loop of
asyncio, reads them with the same two readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pocketgem.answers import Finished, Piece, Stats, TokenLogprob
from pocketgem.engine.loop import Output
from pocketgem.engine.request import FinishReason
from pocketgem.flight import Run
from pocketgem.text.events import Content, Event
from pocketgem.text.parse import parser_after
from pocketgem.text.stops import StopStrings
from pocketgem.text.tokenizer import Tokenizer


class TextReader:
    """A completion: ids to text, cut at the first stop string and never showing a part of one.

    When ``stopped`` is true after a piece, that piece was the last: end the run.
    """

    def __init__(self, tokenizer: Tokenizer, run: Run) -> None:
        self.tokenizer, self.run, self.stopped = tokenizer, run, False
        self._decoder, self._stops = tokenizer.stream(), StopStrings(run.params.stop)
        self._count = 0

    def read(self, output: Output) -> Piece:
        """What one output adds. The last one carries why it ended and the statistics."""
        self._count += output.sampled is not None
        text, self.stopped = self._stops.push(self._decoder.push(self.run.visible(output)))
        finish = FinishReason.STOP if self.stopped else self.run.finish
        if finish is not None and not self.stopped:
            text += self._tail()
        ids = () if output.sampled is None else (output.sampled.id,)
        stats = None if finish is None else counted(self.run, self._count)
        return Piece(text, ids, logprobs_of(output, self.tokenizer), finish, stats)

    def _tail(self) -> str:
        """What is left when the ids end: an unfinished character, and text held back as a possible stop."""
        text, self.stopped = self._stops.push(self._decoder.finish())
        return text if self.stopped else text + self._stops.finish()


class ChatReader:
    """An answer: ids to events; stop strings are looked for in the content. When ``stopped`` is true, end the run."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        run: Run,
        *,
        tools: Sequence[Mapping[str, object]] | None = (),
        json: bool = False,
    ) -> None:
        """Args:
        tools: declarations the model may call; () for none, None to take every call as it stands.
        json: the content must be JSON, and fences around it are no content.
        """
        self.tokenizer, self.run, self.stopped = tokenizer, run, False
        self._parser = parser_after(tokenizer, run.sequence.request.prompt_ids, tools=tools, json=json)
        self._stops = StopStrings(run.params.stop)
        self._found_stop = False
        self._logprobs: list[TokenLogprob] = []
        self._count = self._thought = 0  # tokens

    def read(self, output: Output) -> list[Event]:
        """The events that are certain after one output."""
        self._count += output.sampled is not None
        self._logprobs += logprobs_of(output, self.tokenizer)
        before = self._parser.thinking
        events = self._shown(self._parser.push(self.run.visible(output)))
        self._thought += output.sampled is not None and (before or self._parser.thinking)
        self.stopped = self._found_stop or self._parser.ended
        return events

    def finish(self) -> list[Event | Finished]:
        """What was held back, and the end. Call it once, when the run has ended or ``stopped`` says so."""
        reason = FinishReason.STOP if self.stopped else self.run.finish or FinishReason.ABORT
        left = [] if self._found_stop else self._parser.finish(cut=reason is not FinishReason.STOP)
        events: list[Event | Finished] = [*self._shown(left)]
        if rest := self._stops.finish():
            events.append(Content(rest))
        reason = FinishReason.STOP if self._found_stop else reason
        ids, flaw = tuple(self.run.sequence.output_ids[: self._count]), self._parser.flaw
        stats, logprobs = counted(self.run, self._count), tuple(self._logprobs)
        return [*events, Finished(reason, stats, ids, logprobs, flaw, self._stops.found, self._thought)]

    def _shown(self, events: list[Event]) -> list[Event]:
        """The events without what stop strings hold back; text before a call or a thought begins no stop string."""
        shown: list[Event] = []
        for event in events:
            if self._found_stop:
                break
            if isinstance(event, Content):
                text, self._found_stop = self._stops.push(event.text)
            else:
                text = self._stops.finish()
            if text:
                shown.append(Content(text))
            if not isinstance(event, Content):
                shown.append(event)
        return shown


def counted(run: Run, count: int) -> Stats:
    """The run's statistics for the ``count`` tokens that were read: the engine may have made one more meanwhile."""
    return replace(run.stats, completion_tokens=count)


def logprobs_of(output: Output, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    """The output's log-probability with its alternatives, where it was asked for."""
    one = output.sampled
    if one is None or one.logprob is None:
        return ()
    return (TokenLogprob(one.id, tokenizer.decode([one.id]), one.logprob, one.top),)
