"""A tiny model with Gemma 4's kind of vocabulary, and a strict reader of calls: what tests of guides are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pocketgem import LLM
from pocketgem.config import from_hf
from pocketgem.config.counts import decoder_shapes
from pocketgem.text.tokenizer import Tokenizer
from tests.cli_models import CONFIG
from tests.text_fixtures import gemma4_metadata, tokenizer_json

TEMPLATE = """{{ bos_token }}
{%- if enable_thinking or tools -%}<|turn>system
{% if enable_thinking %}<|think|>
{% endif %}{% for tool in tools or [] %}<|tool>{{ tool['function']['name'] }}<tool|>{% endfor %}<turn|>
{% endif -%}
{%- for message in messages -%}
<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{{ message['content'] }}<turn|>
{% endfor -%}
<|turn>model
"""


def save_model(folder: Path, *, template: str = TEMPLATE) -> Path:
    """Random weights under which every token is about as probable as any other."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = gemma4_metadata()
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    config = {**CONFIG, **layers, "vocab_size": len(metadata["tokenizer.ggml.tokens"])}
    generator = torch.Generator().manual_seed(7)
    shapes = decoder_shapes(from_hf(config))
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    save_file({f"model.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(metadata)))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def load(folder: Path) -> LLM:
    """The model, with room for many answers side by side: its steps cost what PyTorch's calls cost."""
    llm = LLM.load(save_model(folder), dtype=torch.float32, threads=1)
    llm.engine.scheduler.max_running = 64
    return llm


class CallReader:
    """``<|tool_call>call:NAME{...}<tool_call|>`` as ids to (name, arguments). Raises ValueError for anything else."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int]) -> None:
        special = {special: f"\0{name}\0" for name, special in tokenizer.special_tokens.items()}
        parts = [special.get(id) or tokenizer.piece(id) for id in ids]
        joined = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
        self.text, self.at = joined.decode("utf-8"), 0

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """All calls up to the end of the ids."""
        found = []
        while self.at < len(self.text):
            self._expect("\0<|tool_call>\0call:")
            name = self._until("{")
            found.append((name, self._object()))
            self._expect("\0<tool_call|>\0")
        return found

    def _value(self) -> Any:
        if self._peek('\0<|"|>\0'):
            return self._string()
        if self._peek("{"):
            return self._object()
        if self._peek("["):
            return self._list()
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ",]}":
            self.at += 1
        return json.loads(self.text[start : self.at])

    def _string(self) -> str:
        self._expect('\0<|"|>\0')
        text = self._until('\0<|"|>\0')
        self._expect('\0<|"|>\0')
        return text

    def _object(self) -> dict[str, Any]:
        self._expect("{")
        found: dict[str, Any] = {}
        while not self._peek("}"):
            if found:
                self._expect(",")
            key = self._string() if self._peek('\0<|"|>\0') else self._until(":")
            self._expect(":")
            if key in found:
                raise ValueError(f"{key} stands there twice")
            found[key] = self._value()
        self._expect("}")
        return found

    def _list(self) -> list[Any]:
        self._expect("[")
        found: list[Any] = []
        while not self._peek("]"):
            if found:
                self._expect(",")
            found.append(self._value())
        self._expect("]")
        return found

    def _peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _expect(self, text: str) -> None:
        if not self._peek(text):
            raise ValueError(f"{text!r} expected at {self.at} of {self.text!r}")
        self.at += len(text)

    def _until(self, text: str) -> str:
        end = self.text.index(text, self.at)
        found, self.at = self.text[self.at : end], end
        return found
