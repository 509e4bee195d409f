"""A model that says what a script tells it to, with everything else real: tokenizer, template, engine, caches, sampler.

    llm = scripted_llm(folder, Script({"weather": ['<|tool_call>call:weather{days:2}<tool_call|>', "Sun."]}))

Gemma 4's vocabulary in small, and a template in the manner of Gemma 4's. It is the tiny model of ``cli_models`` whose
layers run as ever; only its logits are the script's: the id that comes next stands far above all others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pocketgem.config import from_hf
from pocketgem.config.counts import decoder_shapes
from pocketgem.config.towers import audio_shapes
from pocketgem.llm import LLM
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma, Inputs
from pocketgem.text.tokenizer import Tokenizer
from tests import text_fixtures as fixtures
from tests.cli_models import CONFIG

ABOVE = 30.0  # how far the scripted id's logit stands above the others
END = "<turn|>"
_MEDIA = re.compile(r"<\|(image|audio)>(<\|(image|audio|video)\|>)+<(image|audio)\|>")


@dataclass
class Script:
    """What the model says.

    answers   a word in the last turn of the person -> what is answered, one text for each turn of the model since then
              (a call of a tool and what follows its result are two). Control tokens are written by name; the last token
              is added: <turn|>, or <|tool_response> after a call.
    usual     where no word fits; None repeats the letters of the alphabet without end
    """

    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    usual: str | None = "I have no script for this."

    def next(self, text: str, tokenizer: Tokenizer) -> int:
        """The id after a text, its control tokens written out."""
        said, answer = self._place(_MEDIA.sub("", text))
        if answer is None:
            return tokenizer.encode("abcdefghijklmnopqrstuvwxyz"[len(said) % 26], add_bos=False)[0]
        ids = tokenizer.encode(answer, add_bos=False, parse_special=True)
        done = len(tokenizer.encode(said, add_bos=False, parse_special=True))
        return ids[min(done, len(ids) - 1)]

    def _place(self, text: str) -> tuple[str, str | None]:
        """What the model said of its answer so far, and the whole answer."""
        _, turn, last = text.rpartition("<|turn>user\n")
        if not turn:  # plain text goes on behind the first word that has an answer
            word = next((word for word in self.answers if word in last), None)
            return ("", None) if word is None else (last.partition(word)[2], self._ended(self.answers[word][0]))
        asked, _, spoken = last.partition("<|turn>model\n")
        answers = next((texts for word, texts in self.answers.items() if word in asked), None)
        results = spoken.split("<tool_response|>")
        said = results[-1].removeprefix("<|channel>thought\n") if len(results) > 1 else results[0]
        if answers is None:
            return said, None if self.usual is None else self._ended(self.usual)
        return said, self._ended(answers[min(len(results), len(answers)) - 1])

    def _ended(self, answer: str) -> str:
        return answer + ("<|tool_response>" if answer.endswith("<tool_call|>") else END)


class ScriptedGemma(Gemma):
    """The tiny model with the script's logits."""

    script: Script
    llm: LLM

    def forward(self, inputs: Inputs, step: Step) -> Tensor:
        """Also look up whose rows these are: the engine knows every id of a sequence."""
        owners = {id(state.cache): sequence for sequence, state in self.llm.engine.states.items()}
        rows: list[tuple[int, ...]] = []
        for span in step.spans:
            sequence = owners.get(id(span.cache))  # none: a text is scored or embedded beside the engine
            known = () if sequence is None else sequence.ids
            rows += [known[: span.cache.length + row + 1] for row in range(span.stop - span.start)]
        self._wanted = [rows[row] for row in step.logit_rows.tolist()]
        return super().forward(inputs, step)

    def logits(self, hidden: Tensor) -> Tensor:
        """The script's choice for each row. Rows come in the order they were asked for, maybe some at a time."""
        scores = super().logits(hidden)
        wanted, self._wanted = self._wanted[: len(hidden)], self._wanted[len(hidden) :]
        tokenizer = self.llm.tokenizer
        for row, ids in enumerate(wanted):
            id = self.script.next(tokenizer.decode(ids), tokenizer)
            scores[row, id] = scores[row].max() + ABOVE
        return scores


def scripted_llm(folder: Path, script: Script, *, hears: bool = False, **options: Any) -> LLM:
    """An LLM with this script; ``options`` are ``LLM.load``'s. hears: it takes sound, as the 12B does."""
    save_scripted(folder, hears=hears)
    # One thread: products this small are not worth two, and on a busy machine two wait for each other at every one.
    llm = LLM.load(folder, dtype=torch.float32, **{"threads": 1, **options})
    model = llm.model
    model.__class__ = ScriptedGemma
    assert isinstance(model, ScriptedGemma)
    model.script, model.llm, model._wanted = script, llm, []
    return llm


def save_scripted(folder: Path, *, hears: bool = False) -> Path:
    """The tiny model's files, with Gemma 4's control tokens and template."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = fixtures.gemma4_metadata()
    text = {**CONFIG, "vocab_size": len(vocabulary["tokenizer.ggml.tokens"])}
    config = text
    if hears:
        text["model_type"] = "gemma4_unified_text"
        config = {"model_type": "gemma4_unified", "text_config": text, "audio_config": {"audio_embed_dim": 640}}
    read = from_hf(config)
    generator = torch.Generator().manual_seed(7)
    shapes = decoder_shapes(read) | audio_shapes(read)
    weights = {f"model.{name}": torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(fixtures.tokenizer_json(vocabulary)))
    (folder / "chat_template.jinja").write_text((fixtures.DATA / "gemma4_like.jinja").read_text(encoding="utf-8"))
    return folder
