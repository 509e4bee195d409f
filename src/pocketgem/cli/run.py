"""``pocketgem run``: one prompt and its answer, or a conversation where nobody gave a prompt."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import pocketgem.cli.media as m
import pocketgem.cli.options as o
from pocketgem.cli.chat import Conversation
from pocketgem.cli.common import refuse
from pocketgem.cli.form import form
from pocketgem.cli.lines import Lines
from pocketgem.cli.screen import Screen
from pocketgem.cli.speech import Manner, Speech, check_thinking, closing_line, expert_line, speak
from pocketgem.errors import PromptError
from pocketgem.memory.place import Place, checked_place
from pocketgem.memory.program import status
from pocketgem.sizes import gib

if TYPE_CHECKING:
    from pocketgem.adapters.wardrobe import Worn
    from pocketgem.answers import TokenLogprob
    from pocketgem.checkpoint.load import Checkpoint
    from pocketgem.llm import LLM
    from pocketgem.memory.plan import Plan

TOLERANCE = 0.05  # how far a plan may be off
MAX_PROMPT = 16 << 20  # bytes from stdin; the family's longest context holds about a megabyte of prose


def run_model(
    command: typer.Context,
    model: o.Model,
    prompt: o.Prompt = None,
    image: m.Images = None,
    audio: m.Audios = None,
    video: m.Videos = None,
    mmproj: m.Mmproj = None,
    image_budget: m.ImageBudget = "auto",
    adapter: o.Adapter = None,
    allow_drift: o.AllowDrift = False,
    system: o.System = None,
    think: o.Think = False,
    thinking_budget: o.ThinkingBudget = None,
    json_schema: o.Schema = None,
    regex: o.Regex = None,
    tools: o.Tools = None,
    raw: o.Raw = False,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    logprobs: o.Logprobs = None,
    context: o.Context = None,
    threads: o.Threads = None,
    dtype: o.DtypeChoice = o.Dtype.AUTO,
    ple: o.Ple = Place.AUTO,
    device: o.DeviceChoice = o.Device.CPU,
    keep_packed: o.KeepPacked = True,
    expert_memory: o.ExpertMemory = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Answer a prompt, continue a text, or hold a conversation.

    A model with a chat template answers PROMPT as one turn of a conversation; a base model continues it as plain
    text. One line break at the end of stdin is dropped. Sampling options not given are the checkpoint's own. Images,
    sounds and videos stand before the prompt, in the order they are given; in a conversation, before its first message.
    """
    if logprobs is not None and not as_json:
        refuse("--logprobs needs --json.")
    if raw and (system is not None or think):
        refuse("--raw continues plain text, where --system and --think have no meaning.")
    sampling = o.given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop,
        logprobs=logprobs,
    )
    formed = form(json_schema, regex, thinking_budget, tools)
    budget, limit = o.size(expert_memory), o.size(memory)
    shown, media = m.budget(image_budget), m.parts_of(command.obj, image, audio, video)
    if raw and media:
        refuse("--raw continues plain text, where images, sounds and videos have no place.")
    text = read_prompt(prompt)
    if text is None and (as_json or not sys.stdout.isatty()):
        refuse("Give a PROMPT: a conversation needs a terminal on both sides, and no --json.")
    screen = Screen(quiet=quiet, silent=as_json)
    with screen.waiting(f"loading {_short(model)}", "bytes") as bar:
        checkpoint = m.with_towers(_opened(model, offline=offline, context=context, ple=ple), mmproj)
        m.check_towers(checkpoint, media)
        spoken = checkpoint if adapter is None else _with_template(checkpoint, adapter)
        plain = raw or spoken.chat_template is None
        manner = Manner(raw=plain, system=system, thinking=think, sampling=sampling, form=formed)
        _check_manner(spoken, manner)
        if plain and media:
            raise PromptError("no chat template (a base model?), so there is no place for images, sounds and videos")
        from pocketgem.llm import LLM  # here: it imports torch, and all that can be wrong without it has been said

        llm = LLM.load(
            checkpoint,
            dtype=o.torch_dtype(dtype),
            context=context,
            threads=threads,
            ple=ple,
            device=device,
            keep_packed=keep_packed,
            expert_memory=budget,
            memory=limit,
            adapter=adapter,
            allow_drift=allow_drift,
            image_budget=shown,
            media={part["type"] for part in media},
            progress=bar,
        )
    if llm.attached is not None:
        screen.note(effect_text(llm.attached))
    if text is None:
        with Lines() as lines:
            Conversation(llm, manner, lines.read, screen, media).hold(_short(model))
    else:
        content = [*media, {"type": "text", "text": text}] if media else text
        _answer(llm, manner, content, screen, as_json=as_json)
    if (passed := passed_plan(llm.plan)) is not None:
        screen.note(passed)


def effect_text(worn: Worn) -> str:
    """One line: what an adapter did to a probe, and whether this is the base it was made for."""
    effect, base = worn.effect, "" if worn.drift is None else f"; {worn.drift.text}"
    return (
        f"adapter on: a probe's next tokens moved by {effect.kl:.3g} nat, {effect.top_changed:.0%} of the most "
        f"probable ones are others{base}"
    )


def passed_plan(plan: Plan | None) -> str | None:
    """One line where the kernel counted noticeably more memory than was planned."""
    peak = status().get("VmHWM", 0)
    if plan is None or peak <= plan.peak * (1 + TOLERANCE):
        return None
    return f"memory: the peak was {gib(peak)}, but the plan had said {gib(plan.peak)}; please report it"


def _short(model: str) -> str:
    return Path(model).name or model


def read_prompt(argument: str | None) -> str | None:
    """The prompt, or None where a person sits at a terminal and gave none. Raises PromptError for what is no prompt."""
    if argument is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    text = _read_stdin() if argument in (None, "-") else argument
    if not text:
        raise PromptError("the prompt is empty; give some text")
    return text


def _read_stdin() -> str:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_PROMPT + 1)
    if len(content) > MAX_PROMPT:
        raise PromptError(f"the prompt on stdin is longer than {MAX_PROMPT >> 20} MiB")
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt on stdin is not UTF-8: bad byte at offset {error.start}") from error


def _opened(model: str, *, offline: bool, context: int | None, ple: Place) -> Checkpoint:
    """The checkpoint with its headers read. Raises all that can be said of it and of the options without torch."""
    from pocketgem import kernels
    from pocketgem.checkpoint.load import open_checkpoint
    from pocketgem.checkpoint.resolve import resolve
    from pocketgem.engine.request import checked_context

    kernels.choice()
    checkpoint = open_checkpoint(resolve(model, offline=offline))
    checked_context(context, checkpoint.config)
    checked_place(ple, checkpoint.config)
    return checkpoint


def _with_template(checkpoint: Checkpoint, adapter: str) -> Checkpoint:
    """The checkpoint with the chat template that an adapter brings, if it does. Raises InputError, FormatError."""
    from pocketgem.adapters.dialect import read_dialect
    from pocketgem.adapters.where import where_is

    brought = read_dialect(where_is(adapter)).template
    return checkpoint if brought is None else replace(checkpoint, chat_template=brought)


def _check_manner(checkpoint: Checkpoint, manner: Manner) -> None:
    """What only the checkpoint can tell: whether it has a chat template, and what that has a place for."""
    if manner.raw and (manner.system is not None or manner.thinking):
        raise PromptError("no chat template (a base model?), so --system and --think have no meaning for this model")
    if manner.raw and "tools" in manner.form:
        raise PromptError("no chat template (a base model?), so --tools has no meaning for this model")
    if manner.thinking:
        check_thinking(checkpoint)


def _answer(llm: LLM, manner: Manner, content: str | list[m.Part], screen: Screen, *, as_json: bool) -> None:
    speech = Speech()
    try:
        speak(llm, manner, [{"role": "user", "content": content}], speech, screen)
    finally:
        screen.end()
    if as_json:
        print(json.dumps(_as_data(llm, manner, speech)))
    elif speech.stats is not None:
        screen.note(closing_line(speech.stats, speech.finish))
        if llm.expert_use is not None:
            screen.note(expert_line(llm.expert_use))


def _as_data(llm: LLM, manner: Manner, speech: Speech) -> dict[str, object]:
    """The answer as JSON: ``text`` for a continuation, ``content`` and ``thought`` for a turn, and the ids of all."""
    stats = speech.stats
    said: dict[str, object] = {"text": speech.content}
    if not manner.raw:
        said = {"content": speech.content, "thought": speech.thought}
    said["ids"] = speech.ids
    if manner.sampling.get("logprobs") is not None:
        said["logprobs"] = [_logprob(llm, one) for one in speech.logprobs]
    said["finish"] = speech.finish
    if speech.notes:
        said["notes"] = list(speech.notes)
    if stats is not None:
        rates = {"prefill_tokens_per_second": stats.prefill_rate, "decode_tokens_per_second": stats.decode_rate}
        said["stats"] = {**asdict(stats), **rates}
    if (use := llm.expert_use) is not None:
        said["experts"] = {**asdict(use), "hit_rate": use.hit_rate}
    return said


def _logprob(llm: LLM, one: TokenLogprob) -> dict[str, object]:
    top = [{"id": id, "text": llm.detokenize([id]), "logprob": _finite(value)} for id, value in one.top]
    return {"id": one.id, "text": one.text, "logprob": _finite(one.logprob), "top": top}


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
