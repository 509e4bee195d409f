"""The page: text or messages -> ids -> engine -> ids -> text and events. Reads top to bottom.

    LLM.load(model)               a checkpoint becomes something to talk to
    .stream(prompt)  .generate    continue a text: pieces as they come, or their sum
    .stream_chat(m)  .chat        answer messages: events as they come, or their sum
                                  messages may hold images, sounds and videos: docs/media.md
    .score(text)                  how probable the model finds a text, token by token
    .tokenize / .detokenize       text <-> ids
    .adapters                     adapters that calls can name, adapter="NAME": docs/many-adapters.md

The streaming form is the real one; the other is a fold over it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from pocketgem import kernels
from pocketgem.adapters.base import Base
from pocketgem.adapters.dialect import Dialect, read_dialect
from pocketgem.adapters.wardrobe import USUAL_BUDGET, Lease, Wardrobe, Worn
from pocketgem.adapters.where import where_is
from pocketgem.answers import Completion, Finished, Piece, Reply, Score, fold, fold_events
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint, tower_files
from pocketgem.checkpoint.mmproj import with_mmproj
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.checkpoint.types import Progress
from pocketgem.engine.inserts import Insert
from pocketgem.engine.past_folder import PastFolder
from pocketgem.engine.request import FinishReason, Request, SamplingParams
from pocketgem.errors import PromptError
from pocketgem.flight import Flights, Run
from pocketgem.measure import embedding, score
from pocketgem.media.decode import Decoder
from pocketgem.media.given import Budget, checked_budget
from pocketgem.memory.experts import ExpertUse
from pocketgem.memory.place import Place
from pocketgem.memory.plan import Plan
from pocketgem.model.gemma import Gemma
from pocketgem.model.mix import NOBODY
from pocketgem.model.quant import store_of
from pocketgem.model.towers import Towers
from pocketgem.opening import Wishes, bytes_of, engine_of, opened, past_folder, spoken
from pocketgem.parts import defaults_of, nameless_ids, template_of
from pocketgem.reader import ChatReader, TextReader
from pocketgem.senses import Senses
from pocketgem.senses.layout import Laid
from pocketgem.text.chat import Chat
from pocketgem.text.events import Event
from pocketgem.text.grammar import Grammars
from pocketgem.text.guides import AnswerGuide, guide_for
from pocketgem.text.media import media_of
from pocketgem.text.parse import opens_thought
from pocketgem.text.shape import Format, Shape, shaped
from pocketgem.text.tokenizer import Tokenizer

CACHE_SIZE = 4 << 30  # bytes of pasts on disk
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Voice:
    """How requests with one adapter are written and read: the model's own template and tokens' names, or the adapter's.

    defaults: sampling options of the checkpoint, with the tokens that end a turn.
    """

    tokenizer: Tokenizer
    chat: Chat
    can_chat: bool
    defaults: Mapping[str, object]
    grammars: Grammars  # empty until the first answer that must have a form


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
        kept: int | None = None,
        folder: PastFolder | None = None,
        decoder: Decoder | None = None,
        image_budget: Budget = "auto",
        adapter_memory: int = USUAL_BUDGET,
        allow_drift: bool = False,
        plain: tuple[Checkpoint, Tokenizer] | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        """``files`` are those the model goes on reading: a request is refused when one of them was changed.

        plan: what was decided for a memory budget; the engine keeps to its context, sequences and kept pasts.
        kept, folder: bytes for pasts in memory, and where they lie on disk; decoder, image_budget: see ``load``.
        adapter_memory, allow_drift: of adapters that requests name, see ``load``. plain: checkpoint and tokenizer
        without the words of an adapter, or of the dialect that requests without an adapter are written in.
        """
        self.model, self.tokenizer, self.checkpoint, self.plan = model, tokenizer, checkpoint, plan
        self.engine = engine_of(model, tokenizer, context, plan, kept, folder)
        self.flights = Flights(self.engine)
        self.plain = (checkpoint, tokenizer) if plain is None else plain  # without an adapter's or a dialect's words
        self.adapters = Wardrobe(
            model, self.flights.lock, base=Base(*self.plain), allow_drift=allow_drift, budget=adapter_memory
        )
        self._worn: Lease | None = None  # what requests have on that name no adapter
        towers = Towers.of(checkpoint)  # nothing of them is read until something is to be seen or heard
        self.senses = Senses(towers, checkpoint.config, tokenizer, decoder, budget=image_budget)
        self._numbers = count()
        self._voice = self._spoken(dialect or Dialect())
        self._voices: WeakKeyDictionary[Worn, Voice] = WeakKeyDictionary()
        self._mapped = files
        self._nameless = nameless_ids(checkpoint, tokenizer)

    @classmethod
    def load(
        cls,
        model: str | Path | Checkpoint,
        *,
        dtype: torch.dtype | str | None = None,
        context: int | None = None,
        threads: int | None = None,
        ple: str = Place.AUTO,
        device: str = "cpu",
        offline: bool = False,
        keep_packed: bool = True,
        expert_memory: int | None = None,
        memory: int | str | None = None,
        sequences: int = 1,
        kept: int | str | None = None,
        cache_dir: str | Path | None = None,
        cache_size: int | str = CACHE_SIZE,
        adapter: str | Path | None = None,
        adapter_memory: int | str = USUAL_BUDGET,
        allow_drift: bool = False,
        dialect: Dialect | None = None,
        mmproj: str | Path | None = None,
        image_budget: Budget = "auto",
        media: Collection[str] = (),
        decoder: Decoder | None = None,
        progress: Progress | None = None,
    ) -> LLM:
        """Load a checkpoint.

        Args:
            model: a GGUF file, a folder with safetensors, a hub name ``org/name``, or ``gemma-3-270m``; or one of these
                already opened.
            dtype: torch.bfloat16 or torch.float32 unpack all weights to that type; "stored" leaves those in blocks as
                they are and unpacks them piece by piece in use; None leaves quantised weights packed for the compiled
                kernels where there are any, else takes what this machine multiplies fastest and what fits on the card.
            context: longest prompt plus answer in tokens; None for the model's own limit.
            threads: processor threads, 1 to 1024; None for one on each performance core this process may use.
            ple: where rows of the per-layer-embedding table come from: "disk" reads each token's row from the file when
                it is needed, "ram" holds the table's stored bytes in memory, "device" puts them beside the weights;
                "auto" is the disk, which is within a few percent of memory. An error for a model without a table.
            device: "cpu", "cuda" or "mps": where the layers run. On a card weights are bfloat16 where it has room.
            offline: never ask the network, even for a hub name.
            keep_packed: keep a large model's packed weights in a file beside it, so that the next start is quick.
            expert_memory: bytes for routed experts; those that do not fit are read from the packed file when a token
                wants them. None keeps all in memory. ``expert_use`` tells how it goes.
            memory: bytes, or a text such as "2GiB", for this process: a plan is made before anything is read, and what
                is not given here (context, experts' memory, whether a finished conversation is kept) is chosen so that
                it fits. ``plan`` tells what was chosen.
            sequences: requests side by side that the plan has room for; with ``memory``, more wait for their turn.
            kept: bytes, or a text such as "2GiB", for finished pasts, so that a prompt that begins like one before it
                need not be read from its start; 0 keeps none. None: what the plan has room for, or 512 MiB (one long
                past, where that takes more).
            cache_dir: a folder, of this person alone, that keeps pasts from one run to the next, in ``cache_size``
                bytes at most. What was said can be read from it.
            adapter: a folder with an adapter, or the name of one that is registered or shipped, for all requests that
                name none; it is proved to change the model's answers, and ``attached`` says how much.
            adapter_memory: bytes, or a text such as "1GiB", for adapters that requests name (``adapters``).
            allow_drift: put adapters on although the base is another than their manifests say.
            dialect: a chat template, and names for reserved tokens, in place of the model's own (``read_dialect``).
            mmproj: a GGUF file with the towers of a model that is itself a GGUF file.
            image_budget: tokens for an image whose message names none, 70, 140, 280, 560 or 1120; "auto" takes the
                fewest that lose no detail.
            media: which of "image", "audio" and "video" will be given: ``memory`` then has room for their towers.
            decoder: who reads files of media; None starts one when it is needed. Several models can share one.
            progress: called with (bytes done, bytes in all) as weights arrive.
        Raises CheckpointError (missing, damaged, unsupported), PromptError (bad option), or InputError where
        POCKETGEM_KERNELS asks for kernels that cannot run here and for a budget that cannot be kept; it names the
        smallest that can, and what would help.
        """
        kernels.choice()
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(resolve(model, offline=offline))
        if mmproj is not None:
            checkpoint = with_mmproj(checkpoint, Path(mmproj))
        checked_budget(image_budget)
        found = opened(
            checkpoint,
            Wishes(
                dtype,
                context,
                threads,
                ple,
                device,
                keep_packed,
                expert_memory,
                memory,
                sequences,
                frozenset(media),
                None if adapter is None else where_is(adapter),
                dialect or Dialect(),
            ),
            progress,
        )
        size = None if kept is None else bytes_of(kept, "kept", 0)
        room = bytes_of(adapter_memory, "adapter_memory")
        folder = None if cache_dir is None else past_folder(found, Path(cache_dir), bytes_of(cache_size, "cache_size"))
        llm = cls(
            found.model,
            found.tokenizer,
            found.checkpoint,
            context=found.context,
            files=found.files,
            plan=found.plan,
            kept=size,
            folder=folder,
            decoder=decoder,
            image_budget=image_budget,
            adapter_memory=room,
            allow_drift=allow_drift,
            plain=found.plain,
            dialect=dialect,
        )
        if adapter is not None:
            llm.wear(adapter)
        return llm

    @property
    def expert_use(self) -> ExpertUse | None:
        """What the expert cache did since loading: hits, bytes read, time waited. None without ``expert_memory``."""
        store = store_of(self.model)
        return None if store is None else store.use

    # ---- adapters --------------------------------------------------------------------------------------------------

    def wear(self, adapter: str | Path | None) -> None:
        """Have all requests that name no adapter answered with this one; None: by the base. See ``Wardrobe.take``."""
        self._worn = None if adapter is None else self.adapters.take(adapter)

    @property
    def attached(self) -> Worn | None:
        """The adapter of requests that name none."""
        return None if self._worn is None else self._worn.worn

    def _lease(self, adapter: str | Path | None) -> Lease | None:
        """Of a request. Raises what ``Wardrobe.take`` does."""
        if adapter is None:
            return self._worn
        return self.adapters.take(adapter) if adapter != "" else None

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
        adapter: str | Path | None = None,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Continue a text, yielding pieces as they come. Leaving the loop early ends the request and frees its cache.

        Args:
            prompt: text (a beginning-of-sequence id is put before it) or ids (taken as they are).
            on_prefill: called with (prompt tokens read, prompt tokens) after each chunk of a long prompt.
            params: all sampling options; or give them by name over the checkpoint's own defaults: temperature, top_k,
                top_p, min_p, seed, max_tokens, stop, logprobs, ... (see SamplingParams).
            format: what the continuation must be, JsonObject(), JsonSchema(schema) or Regex(pattern).
            adapter: a name that was offered (``adapters``) or a folder: who answers this. None: as ``load`` was told;
                "": the base.
        Raises PromptError for an empty or over-long prompt, for options out of range and for a format that is wrong.
        """
        lease = self._lease(adapter)
        made = self._params(params, sampling, lease)
        return self._continue(self._request(prompt, made, Shape(format=format), lease=lease), on_prefill)

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Continue a text and return the whole: a fold over ``stream``, with the same arguments."""
        return fold(self.stream(prompt, **options))

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        *,
        params: SamplingParams | None = None,
        format: Format | None = None,
        adapter: str | Path | Sequence[str | Path | None] | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Continue several texts side by side, batched through the model; answers in the prompts' order.

        adapter: one for all, or one for each. Raises PromptError as ``stream`` does.
        """
        shape = Shape(format=format)
        each = [adapter] * len(prompts) if isinstance(adapter, str | Path | None) else list(adapter)
        if len(each) != len(prompts):
            raise PromptError(f"{len(each)} adapters for {len(prompts)} prompts; give one for all, or one for each")
        leases = [self._lease(one) for one in each]
        requests = [  # all are good, or none starts
            self._request(prompt, self._params(params, sampling, lease), shape, lease=lease)
            for prompt, lease in zip(prompts, leases, strict=True)
        ]
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
        reader = TextReader(self.voice(run).tokenizer, run)
        for output in self.flights.outputs(run, on_prefill):
            piece = reader.read(output)
            if reader.stopped:
                self.flights.end(run)
            yield piece

    # ---- chat ------------------------------------------------------------------------------------------------------

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template: the checkpoint's, or that of the adapter of all requests."""
        return self._voice_of(self._worn).can_chat

    @property
    def defaults(self) -> Mapping[str, object]:
        """The checkpoint's sampling options, for requests that name no adapter."""
        return self._voice_of(self._worn).defaults

    def chats_with(self, adapter: str | None) -> bool:
        """Whether there is a chat template for requests with this adapter. Reads its file where it is not loaded."""
        if self.can_chat or adapter is None:
            return self.can_chat
        folder = self.adapters.folder(adapter)
        return folder.is_dir() and read_dialect(folder).template is not None

    def voice(self, run: Run) -> Voice:
        """How a run's prompt was written, and so how its answer is read."""
        return self._voice_of(cast(Lease | None, run.sequence.request.lease))

    def _voice_of(self, lease: Lease | None) -> Voice:
        """Raises TokenizerError for an adapter's names that do not fit the model's tokens."""
        if lease is None or not lease.worn.dialect:
            return self._voice
        if (known := self._voices.get(lease.worn)) is None:
            self._voices[lease.worn] = known = self._spoken(lease.worn.dialect)
        return known

    def _spoken(self, dialect: Dialect) -> Voice:
        checkpoint, tokenizer = spoken(*self.plain, dialect)
        template = template_of(checkpoint, tokenizer)
        defaults = defaults_of(checkpoint, tokenizer)
        return Voice(tokenizer, Chat(template, tokenizer), template is not None, defaults, Grammars(tokenizer))

    def read_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool = False,
        owner: str = "",
        adapter: str | Path | None = None,
    ) -> Laid:
        """Messages -> prompt ids by the checkpoint's own template, and where in it which media stand.

        Media are decoded and counted, and no tower runs: ``request`` takes the result and has it seen and heard.
        owner: whose media these are, see ``Senses.read``. adapter: as ``stream`` has it; a base without a template
        chats by its adapter's. Raises TemplateError, also when there is no template, and MediaError.
        """
        parts = self._voice_of(self._lease(adapter)).chat.parts(messages, tools=tools, thinking=thinking)
        return self.senses.lay(parts, self.senses.read(media_of(messages), owner=owner, most=self.engine.context))

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool = False,
        adapter: str | Path | None = None,
    ) -> list[int]:
        """The ids of ``read_chat``; every row of a medium is the id of its placeholder."""
        return self.read_chat(messages, tools=tools, thinking=thinking, adapter=adapter).ids

    def drop_towers(self) -> None:
        """Give back the memory of towers and of media that were seen; they are built again when they are needed."""
        self.senses.drop()

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
        adapter: str | Path | None = None,
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Iterator[Event | Finished]:
        """Answer messages, yielding events as they come and one Finished at the end.

        Args:
            messages: ``{"role": "system" | "user" | "assistant" | "tool", "content": text}`` in order. Past turns'
                thoughts are dropped by Gemma's rule, whatever the caller sends back. ``Reply.message`` is such a
                message; a tool's result is ``{"role": "tool", "tool_call_id": "call_0", "content": text}``. The content
                of a user or a tool may be a list of parts: ``{"type": "text", "text": text}``, ``{"type": "image",
                "image": medium}``, and "audio" and "video" likewise, where a medium is a file's bytes, a Path or what
                ``media/kinds.py`` has. An image may say its ``"budget"``, a video its ``"frames"``.
            tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each; the model's calls
                keep to them and come as ToolCall, or as FailedCall where they cannot be read.
            thinking: whether the model may think first. thinking_budget: tokens of thought before the channel is closed
                for it; None: no limit.
            tool_choice: "none", "auto" (as None), "required", or the name of the one tool to call.
            parallel_tool_calls: whether one answer may hold several calls.
            format: what the content must be, JsonObject(), JsonSchema(schema) or Regex(pattern); thoughts and calls
                are free of it.
            adapter: as ``stream`` has it; a base without a template chats by its adapter's.
        Stop strings are looked for in the content only. Raises TemplateError, MediaError or
        PromptError.
        """
        lease = self._lease(adapter)  # from here on: what the prompt was made for answers it
        laid = self.read_chat(messages, tools=tools, thinking=thinking, adapter=adapter)
        shape = shaped(tools, tool_choice, parallel=parallel_tool_calls, format=format, thinking_budget=thinking_budget)
        request = self._request(laid, self._params(params, sampling, lease), shape, thinking=thinking, lease=lease)
        return self._events(request, shape, on_prefill, laid.notes)

    def chat(self, messages: Sequence[Mapping[str, object]], **options: Any) -> Reply:
        """Answer messages and return the whole: a fold over ``stream_chat``, with the same arguments."""
        return fold_events(self.stream_chat(messages, **options))

    def _events(
        self, request: Request, shape: Shape, on_prefill: Progress | None, notes: tuple[str, ...]
    ) -> Iterator[Event | Finished]:
        run = self.flights.start(request)
        reader = ChatReader(self.voice(run).tokenizer, run, tools=shape.offered, json=shape.is_json)
        for output in self.flights.outputs(run, on_prefill):
            yield from reader.read(output)
            if reader.stopped:
                self.flights.end(run)
        for event in reader.finish():
            yield replace(event, notes=notes) if isinstance(event, Finished) else event

    # ---- scoring ---------------------------------------------------------------------------------------------------

    def score(self, text: Prompt, *, chunk: int = 512, adapter: str | Path | None = None) -> Score:
        """Log-probability of every token of a text but the first, given those before it.

        The text is read ``chunk`` tokens at a time, all rows asking for logits. Raises PromptError when it is empty or
        longer than the context. adapter: as ``stream`` has it.
        """
        ids, lease = self._ids(text), self._lease(adapter)
        return score(self.engine, self.flights.lock, ids, chunk, _owners(ids, lease))

    def embed(
        self,
        text: Prompt,
        *,
        chunk: int = 512,
        proceed: Callable[[], bool] = lambda: True,
        adapter: str | Path | None = None,
    ) -> list[float]:
        """The mean of the last hidden states after the final norm, made of length 1: ``[hidden_size]`` numbers.

        proceed: asked before each ``chunk`` tokens; RunError when it says no. Raises PromptError as ``score`` does.
        """
        ids, lease = self._ids(text), self._lease(adapter)
        return embedding(self.engine, self.flights.lock, ids, chunk, proceed, _owners(ids, lease))

    # ---- requests in flight ----------------------------------------------------------------------------------------

    def request(
        self,
        prompt: Prompt | Laid,
        shape: Shape | None = None,
        *,
        thinking: bool | None = None,
        proceed: Callable[[], bool] = lambda: True,
        adapter: str | Path | None = None,
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Request:
        """A request for whoever drives the engine itself, as ``stream`` and, with ``shape``, ``stream_chat`` make it.

        thinking: for an answer to messages, whether it may think; None for a text. proceed: asked before each medium is
        seen or heard; RunError when it says no. adapter: as ``stream`` has it.
        """
        lease = self._lease(adapter)
        made = self._params(params, sampling, lease)
        return self._request(prompt, made, shape or Shape(), thinking=thinking, proceed=proceed, lease=lease)

    def _params(
        self, params: SamplingParams | None, sampling: Mapping[str, Any], lease: Lease | None
    ) -> SamplingParams:
        if params is not None and sampling:
            raise PromptError(f"give params, or options by name ({', '.join(sampling)}), not both")
        return params or SamplingParams.from_generation_config(self._voice_of(lease).defaults, **sampling)

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)

    def guide(
        self,
        shape: Shape,
        prompt_ids: Sequence[int],
        *,
        thinking: bool,
        stop_ids: Collection[int] = (),
        voice: Voice | None = None,
    ) -> AnswerGuide | None:
        """What keeps one answer to ``shape``: for ``Request.guide``, anew for each request. See ``guide_for``."""
        voice = self._voice if voice is None else voice
        is_open = opens_thought(voice.tokenizer, prompt_ids)
        return guide_for(voice.grammars, shape, thought_open=is_open, thinking=thinking, stop_ids=stop_ids)

    def _request(
        self,
        prompt: Prompt | Laid,
        params: SamplingParams,
        shape: Shape,
        *,
        thinking: bool | None = None,
        proceed: Callable[[], bool] = lambda: True,
        lease: Lease | None,
    ) -> Request:
        """A request that can be answered. ``thinking`` is None for a text: without a format it is free.

        Raises PromptError, or CheckpointError when the model's file was changed.
        """
        if isinstance(prompt, str) and not prompt:
            raise PromptError("the prompt is empty; give some text to continue")
        ids = tuple(prompt.ids if isinstance(prompt, Laid) else self._ids(prompt))
        guide: AnswerGuide | None = None
        inserts: tuple[Insert, ...] = ()
        if thinking is not None or shape.format is not None:
            voice = self._voice_of(lease)
            params = params if params.stop_ids else replace(params, stop_ids=voice.tokenizer.end_ids)
            guide = self.guide(shape, ids, thinking=thinking is True, stop_ids=params.stop_ids, voice=voice)
        if isinstance(prompt, Laid) and prompt.rows:
            self.engine.check(ids)  # before a tower works for a prompt that is too long
            for file in tower_files(self.checkpoint):
                file.check_unchanged()
            inserts = self.senses.encode(prompt, proceed)
        made = Request(f"request-{next(self._numbers)}", ids, params, guide, inserts=inserts)
        return self.checked(_worn(made, lease))

    def checked(self, request: Request) -> Request:
        """The request as the engine takes it: ids without a token are never chosen. Any thread may ask.

        Raises PromptError for one that cannot be answered, CheckpointError when the model's file was changed.
        """
        for file in self._mapped:  # a page that a cut file no longer has would end the process
            file.check_unchanged()
        self.engine.check(request.prompt_ids)
        params = request.params
        if self._nameless <= params.suppress_ids:
            return request
        return replace(request, params=replace(params, suppress_ids=params.suppress_ids | self._nameless))


def _owners(ids: Sequence[int], lease: Lease | None) -> list[int]:
    """Whose adapter each id of a text is computed with, as ``Mix.rows`` takes it; empty for the base."""
    begin = None if lease is None else lease.worn.begins(ids)
    if lease is None or begin is None:
        return []
    return [NOBODY] * begin + [lease.worn.number] * (len(ids) - begin)


def _worn(request: Request, lease: Lease | None) -> Request:
    """The request with its adapter, unless nothing in its prompt calls for that."""
    begin = None if lease is None else lease.worn.begins(request.prompt_ids)
    if lease is None or begin is None:
        return replace(request, lease=lease)  # its words are the adapter's all the same
    return replace(request, adapter=lease.worn.identity, adapter_from=begin, lease=lease)
