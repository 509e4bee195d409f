"""The page: text or messages -> ids -> engine -> ids -> text and events. Reads top to bottom.

    LLM.load(model)               a checkpoint becomes something to talk to
    .stream(prompt)  .generate    continue a text: pieces as they come, or their sum
    .stream_chat(m)  .chat        answer messages: events as they come, or their sum
    .score(text)                  how probable the model finds a text, token by token
    .tokenize / .detokenize       text <-> ids

The streaming form is the real one; the other is a fold over it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from pocketgem import kernels
from pocketgem.answers import Completion, Finished, Piece, Reply, Score, fold, fold_events
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.checkpoint.types import Progress
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import FinishReason, Request, SamplingParams, checked_context, checked_threads
from pocketgem.engine.sampler import log_probabilities
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError
from pocketgem.flight import Flights, Run
from pocketgem.memory.experts import ExpertUse
from pocketgem.memory.fit import Wish
from pocketgem.memory.options import DTYPES, Options, plan_here
from pocketgem.memory.place import Place, checked_place
from pocketgem.memory.plan import Plan
from pocketgem.memory.program import give_back
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.quant import store_of
from pocketgem.parts import checked_device, defaults_of, model_of, nameless_ids, template_of, tokenizer_of
from pocketgem.reader import ChatReader, TextReader
from pocketgem.sizes import parse_size
from pocketgem.text.chat import Chat
from pocketgem.text.events import Event
from pocketgem.text.grammar import Grammars
from pocketgem.text.guides import AnswerGuide, guide_for
from pocketgem.text.parse import opens_thought
from pocketgem.text.shape import Format, Shape, shaped
from pocketgem.text.tokenizer import Tokenizer

HEAD_ROWS = 128  # rows scored at a time: 128 x 262,144 float32 logits are 128 MiB
Prompt = str | Sequence[int]


class LLM:
    """A model, its tokenizer and its template, ready to answer. Calls from several threads take turns."""

    def __init__(
        self,
        model: Gemma,
        tokenizer: Tokenizer,
        checkpoint: Checkpoint,
        *,
        context: int | None = None,
        files: tuple[MappedFile, ...] = (),
        plan: Plan | None = None,
    ) -> None:
        """``files`` are those the model goes on reading: a request is refused when one of them was changed.

        plan: what was decided for a memory budget; the engine keeps to its context, sequences and kept pasts.
        """
        self.model, self.tokenizer, self.checkpoint, self.plan = model, tokenizer, checkpoint, plan
        self.engine = _engine(model, context, plan)
        self.defaults = defaults_of(checkpoint, tokenizer)
        self.flights = Flights(self.engine)
        self._numbers = count()
        self._chat: Chat | None = None
        self.grammars = Grammars(tokenizer)  # empty until the first answer that must have a form
        self._mapped = files
        self._nameless = nameless_ids(checkpoint, tokenizer)

    @classmethod
    def load(
        cls,
        model: str | Path | Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        context: int | None = None,
        threads: int | None = None,
        ple: str = Place.AUTO,
        device: str = "cpu",
        offline: bool = False,
        keep_packed: bool = True,
        expert_memory: int | None = None,
        memory: int | str | None = None,
        sequences: int = 1,
        progress: Progress | None = None,
    ) -> LLM:
        """Load a checkpoint.

        Args:
            model: a GGUF file, a folder with safetensors, a hub name ``org/name``, or ``gemma-3-270m``; or one of these
                already opened.
            dtype: torch.bfloat16 or torch.float32 unpack all weights to that type; None leaves quantised weights packed
                for the compiled kernels where there are any, else takes what this machine multiplies fastest.
            context: longest prompt plus answer in tokens; None for the model's own limit.
            threads: processor threads, 1 to 1024; None for one on each performance core this process may use.
            ple: where rows of the per-layer-embedding table come from: "disk" reads each token's row from the file when
                it is needed, "ram" holds the table's stored bytes in memory, "device" puts them beside the weights;
                "auto" is the disk, which is within a few percent of memory. An error for a model without a table.
            device: "cpu", "cuda" or "mps": where the layers run. On a card weights are bfloat16 unless dtype says else.
            offline: never ask the network, even for a hub name.
            keep_packed: keep a large model's packed weights in a file beside it, so that the next start is quick.
            expert_memory: bytes for routed experts; those that do not fit are read from the packed file when a token
                wants them. None keeps all in memory. ``expert_use`` tells how it goes.
            memory: bytes, or a text such as "2GiB", for this process: a plan is made before anything is read, and what
                is not given here (context, experts' memory, whether a finished conversation is kept) is chosen so that
                it fits. ``plan`` tells what was chosen.
            sequences: requests side by side that the plan has room for; with ``memory``, more wait for their turn.
            progress: called with (bytes done, bytes in all) as weights arrive.
        Raises CheckpointError (missing, damaged, unsupported), PromptError (bad option), or InputError where
        POCKETGEM_KERNELS asks for kernels that cannot run here and for a budget that cannot be kept; it names the
        smallest that can, and what would help.
        """
        kernels.choice()
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(resolve(model, offline=offline))
        checked_context(context, checkpoint.config)  # before minutes of loading
        place, where = checked_place(ple, checkpoint.config), checked_device(device)
        count = None if threads is None else checked_threads(threads)
        plan = None
        if memory is not None:
            wish = Wish(_bytes(memory), None, context, place, expert_memory)
            options = _options(sequences, count, dtype, where, keep_packed=keep_packed)
            plan = plan_here(checkpoint, wish, options)
            context, expert_memory = plan.setting.context, plan.placement.expert_bytes
        tokenizer = tokenizer_of(checkpoint)
        checkpoint = checkpoint.lean()
        give_back()
        built, files = model_of(
            checkpoint,
            dtype,
            count,
            ple=place,
            device=where,
            keep_packed=keep_packed,
            expert_memory=expert_memory,
            progress=progress,
        )
        return cls(built, tokenizer, checkpoint, context=context, files=files, plan=plan)

    @property
    def expert_use(self) -> ExpertUse | None:
        """What the expert cache did since loading: hits, bytes read, time waited. None without ``expert_memory``."""
        store = store_of(self.model)
        return None if store is None else store.use

    # ---- text ------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Text -> ids. Names of special tokens inside the text stay text unless ``parse_special``."""
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """ids -> text, special tokens written out by name."""
        return self.tokenizer.decode(ids)

    def stream(
        self,
        prompt: Prompt,
        *,
        on_prefill: Progress | None = None,
        params: SamplingParams | None = None,
        format: Format | None = None,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Continue a text, yielding pieces as they come. Leaving the loop early ends the request and frees its cache.

        Args:
            prompt: text (a beginning-of-sequence id is put before it) or ids (taken as they are).
            on_prefill: called with (prompt tokens read, prompt tokens) after each chunk of a long prompt.
            params: all sampling options; or give them by name over the checkpoint's own defaults: temperature, top_k,
                top_p, min_p, seed, max_tokens, stop, logprobs, ... (see SamplingParams).
            format: what the continuation must be, JsonObject(), JsonSchema(schema) or Regex(pattern).
        Raises PromptError for an empty or over-long prompt, for options out of range and for a format that is wrong.
        """
        return self._continue(self._request(prompt, self._params(params, sampling), Shape(format=format)), on_prefill)

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Continue a text and return the whole: a fold over ``stream``, with the same arguments."""
        return fold(self.stream(prompt, **options))

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        *,
        params: SamplingParams | None = None,
        format: Format | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Continue several texts side by side, batched through the model; answers in the prompts' order."""
        params, shape = self._params(params, sampling), Shape(format=format)
        requests = [self._request(prompt, params, shape) for prompt in prompts]  # all are good, or none starts
        runs = [self.flights.start(request) for request in requests]
        try:
            return [fold(self._pieces(run, None)) for run in runs]
        finally:
            for run in runs:
                self.flights.end(run, FinishReason.ABORT)

    def _continue(self, request: Request, on_prefill: Progress | None) -> Iterator[Piece]:
        """Nothing runs before the first piece is asked for: a stream that nobody reads costs nothing."""
        yield from self._pieces(self.flights.start(request), on_prefill)

    def _pieces(self, run: Run, on_prefill: Progress | None) -> Iterator[Piece]:
        reader = TextReader(self.tokenizer, run)
        for output in self.flights.outputs(run, on_prefill):
            piece = reader.read(output)
            if reader.stopped:
                self.flights.end(run)
            yield piece

    # ---- chat ------------------------------------------------------------------------------------------------------

    @property
    def can_chat(self) -> bool:
        """Whether the checkpoint brings a chat template."""
        return self.checkpoint.chat_template is not None

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool = False,
    ) -> list[int]:
        """Messages -> prompt ids by the checkpoint's own template. Raises TemplateError, also when it has none."""
        if self._chat is None:
            self._chat = Chat(template_of(self.checkpoint, self.tokenizer), self.tokenizer)
        return self._chat.prompt(messages, tools=tools, thinking=thinking)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool = False,
        thinking_budget: int | None = None,
        tool_choice: str | None = None,
        parallel_tool_calls: bool = True,
        format: Format | None = None,
        on_prefill: Progress | None = None,
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Iterator[Event | Finished]:
        """Answer messages, yielding events as they come and one Finished at the end.

        Args:
            messages: ``{"role": "system" | "user" | "assistant" | "tool", "content": text}`` in order. Past turns'
                thoughts are dropped by Gemma's rule, whatever the caller sends back. ``Reply.message`` is such a
                message; a tool's result is ``{"role": "tool", "tool_call_id": "call_0", "content": text}``.
            tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each; the model's calls
                keep to them and come as ToolCall, or as FailedCall where they cannot be read.
            thinking: whether the model may think first. thinking_budget: tokens of thought before the channel is closed
                for it; None: no limit.
            tool_choice: "none", "auto" (as None), "required", or the name of the one tool to call.
            parallel_tool_calls: whether one answer may hold several calls.
            format: what the content must be, JsonObject(), JsonSchema(schema) or Regex(pattern); thoughts and calls
                are free of it.
        Stop strings are looked for in the content only. Raises TemplateError or PromptError.
        """
        ids = self.chat_prompt(messages, tools=tools, thinking=thinking)
        shape = shaped(tools, tool_choice, parallel=parallel_tool_calls, format=format, thinking_budget=thinking_budget)
        request = self._request(ids, self._params(params, sampling), shape, thinking=thinking)
        return self._events(request, shape, on_prefill)

    def chat(self, messages: Sequence[Mapping[str, object]], **options: Any) -> Reply:
        """Answer messages and return the whole: a fold over ``stream_chat``, with the same arguments."""
        return fold_events(self.stream_chat(messages, **options))

    def _events(self, request: Request, shape: Shape, on_prefill: Progress | None) -> Iterator[Event | Finished]:
        run = self.flights.start(request)
        reader = ChatReader(self.tokenizer, run, tools=shape.offered, json=shape.is_json)
        for output in self.flights.outputs(run, on_prefill):
            yield from reader.read(output)
            if reader.stopped:
                self.flights.end(run)
        yield from reader.finish()

    # ---- scoring ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, text: Prompt, *, chunk: int = 512) -> Score:
        """Log-probability of every token of a text but the first, given those before it.

        The text is read ``chunk`` tokens at a time, all rows asking for logits. Raises PromptError when it is empty or
        longer than the context.
        """
        ids = self._ids(text)
        self.engine.check(ids)
        cache, found = self.model.new_cache(), []
        for start in range(0, len(ids) - 1, chunk):
            piece, targets = ids[start : start + chunk], ids[start + 1 : start + chunk + 1]
            piece = piece[: len(targets)]
            step = Step.packed([cache], [len(piece)], logits=[len(piece)])
            with self.flights.lock:  # also the head's kernels serve one thread at a time
                inputs = self.model.embed(torch.tensor(piece))
                self.model.expect(ids[start + chunk : start + 2 * chunk])
                hidden = self.model(inputs, step)
                step.commit()
                found += self._target_logprobs(hidden, targets)
        return Score(tuple(ids), tuple(found))

    def _target_logprobs(self, hidden: torch.Tensor, targets: Sequence[int]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(targets), HEAD_ROWS):
            rows = log_probabilities(self.model.logits(hidden[start : start + HEAD_ROWS]))  # [rows, vocab]
            wanted = torch.tensor(targets[start : start + HEAD_ROWS], device=rows.device)[:, None]
            found += rows.gather(1, wanted)[:, 0].tolist()
        return found

    # ---- requests in flight ----------------------------------------------------------------------------------------

    def _params(self, params: SamplingParams | None, sampling: Mapping[str, Any]) -> SamplingParams:
        if params is not None and sampling:
            raise PromptError(f"give params, or options by name ({', '.join(sampling)}), not both")
        return params or SamplingParams.from_generation_config(self.defaults, **sampling)

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)

    def guide(
        self, shape: Shape, prompt_ids: Sequence[int], *, thinking: bool, stop_ids: Collection[int] = ()
    ) -> AnswerGuide | None:
        """What keeps one answer to ``shape``: for ``Request.guide``, anew for each request. See ``guide_for``."""
        is_open = opens_thought(self.tokenizer, prompt_ids)
        return guide_for(self.grammars, shape, thought_open=is_open, thinking=thinking, stop_ids=stop_ids)

    def _request(
        self, prompt: Prompt, params: SamplingParams, shape: Shape, *, thinking: bool | None = None
    ) -> Request:
        """A request that can be answered. ``thinking`` is None for a text: without a format it is free.

        Raises PromptError, or CheckpointError when the model's file was changed.
        """
        for file in self._mapped:  # a page that a cut file no longer has would end the process
            file.check_unchanged()
        if isinstance(prompt, str) and not prompt:
            raise PromptError("the prompt is empty; give some text to continue")
        params = replace(params, suppress_ids=params.suppress_ids | self._nameless) if self._nameless else params
        ids, guide = tuple(self._ids(prompt)), None
        if thinking is not None or shape.format is not None:
            params = params if params.stop_ids else replace(params, stop_ids=self.tokenizer.end_ids)
            guide = self.guide(shape, ids, thinking=thinking is True, stop_ids=params.stop_ids)
        request = Request(f"request-{next(self._numbers)}", ids, params, guide)
        self.engine.check(request.prompt_ids)
        return request


def _engine(model: Gemma, context: int | None, plan: Plan | None) -> Engine:
    if plan is None:
        return Engine(model, context=context)
    return Engine(model, Scheduler(max_running=plan.setting.sequences), context=context, kept=plan.placement.kept)


def _bytes(memory: int | str) -> int:
    size = parse_size(memory) if isinstance(memory, str) else memory
    if type(size) is not int or size < 1:
        raise PromptError(f"memory is {str(memory)[:40]!r}, expected bytes or a text such as 2GiB")
    return size


def _options(
    sequences: int, threads: int | None, dtype: torch.dtype | None, device: torch.device, *, keep_packed: bool
) -> Options:
    if type(sequences) is not int or sequences < 1:
        raise PromptError(f"sequences is {str(sequences)[:40]!r}, expected at least 1")
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in DTYPES:
        raise PromptError(f"dtype is {dtype}, and with a memory budget it can be {', '.join(DTYPES)} or None")
    on_card = device.type != "cpu"
    return Options(sequences=sequences, threads=threads, device=on_card, dtype=name, keep_packed=keep_packed)
