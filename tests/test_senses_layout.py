"""Ids around media are those of transformers' processors, for the same template and text."""

from __future__ import annotations

import json
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from pocketgem.senses.layout import Layout
from pocketgem.senses.medium import Medium, Wanted
from pocketgem.text.chat import Chat
from pocketgem.text.media import Slot
from pocketgem.text.template import ChatTemplate
from pocketgem.text.tokenizer import Tokenizer
from tests import text_fixtures as fixtures

STAMPS = ("00:00", "00:20", "00:40")
TEXTS = ("\n\n Look: ", "the\n\n", " 12 ", "", "help?\n")


def hf_tokenizer(folder: Path, metadata: dict[str, Any], **names: str) -> Any:
    """The oracle's tokenizer of a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(fixtures.tokenizer_json(metadata)))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        extra_special_tokens=names,
    )  # fmt: skip


def medium(kind: Any, *counts: int, stamps: tuple[str, ...] = ()) -> Medium:
    return Medium(b"k" * 32, Wanted(kind, b"", "auto", 32), counts, stamps)


def ours(metadata: dict[str, Any], template: str, content: Any, media: list[Medium], *, gemma3: bool) -> list[int]:
    tokenizer = Tokenizer.from_gguf(metadata)
    source = (fixtures.DATA / template).read_text(encoding="utf-8")
    chat = Chat(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"), tokenizer)
    return Layout(tokenizer, gemma3=gemma3).lay(chat.parts([{"role": "user", "content": content}]), media).ids


def content(*kinds: str) -> list[dict[str, Any]]:
    """Texts and media in turn."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": TEXTS[0]}]
    for kind, text in zip(kinds, TEXTS[1:], strict=False):
        parts += [{"type": kind, kind: b"x"}, {"type": "text", "text": text}]
    return parts


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The processor with what writes its texts; what reads media is not asked."""
    processor = object.__new__(transformers.Gemma4Processor)
    names = {"boi_token": "<|image>", "image_token": "<|image|>", "eoi_token": "<image|>", "video_token": "<|video|>"}
    names |= {"boa_token": "<|audio>", "audio_token": "<|audio|>", "eoa_token": "<audio|>"}
    for name, value in names.items():
        setattr(processor, name, value)
    processor.tokenizer = hf_tokenizer(tmp_path_factory.mktemp("gemma4"), fixtures.gemma4_metadata())
    return processor


def replaced(processor: Any, kind: str, *counts: int) -> str:
    """What the processor writes for one medium."""
    if kind == "image":
        return processor.replace_image_token({"num_soft_tokens_per_image": counts}, 0)
    if kind == "audio":
        return processor.replace_audio_token({"input_features_mask": [np.ones(4 * counts[0])]}, 0)
    times = types.SimpleNamespace(fps=1.0, timestamps=[20.0 * index + 0.9 for index in range(len(counts))])
    given = {"num_soft_tokens_per_video": [counts[0]], "video_metadata": [times]}
    return processor.replace_video_token(given, 0)


@pytest.mark.parametrize("kinds", [("image",), ("image", "image"), ("audio",), ("image", "audio", "image"), ("video",)])
def test_gemma_4(gemma4: Any, kinds: tuple[str, ...]) -> None:
    counts = {"image": (7,), "audio": (5,), "video": (3, 3, 3)}
    media = [medium(kind, *counts[kind], stamps=STAMPS if kind == "video" else ()) for kind in kinds]
    parts = content(*kinds)
    text = "".join(part["text"].strip() if part["type"] == "text" else f"<|{part['type']}|>" for part in parts)
    for kind in kinds:
        text = text.replace(f"<|{kind}|>", replaced(gemma4, kind, *counts[kind]).replace("<|", "<\0|"), 1)
    text = f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n".replace("\0", "")
    expected = gemma4.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ours(fixtures.gemma4_metadata(), "gemma4_like.jinja", parts, media, gemma3=False) == expected


def test_gemma_3(tmp_path: Path) -> None:
    metadata = fixtures.spm_metadata()
    tokenizer = Tokenizer.from_gguf(metadata)
    parts = content("image", "image")
    found = ours(metadata, "gemma3_like.jinja", parts, [medium("image", 256)] * 2, gemma3=True)
    image = "\n\n<start_of_image>" + "<image_soft_token>" * 256 + "<end_of_image>\n\n"
    # What Gemma3Processor makes of the rendered text; its tokenizer is SentencePiece's, whose twin ours is tested as.
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    known = type("Names", (), {**names, "boi_token_id": 0})()
    processor = Gemma3Processor.__new__(Gemma3Processor)
    with suppress(TypeError, ValueError, AttributeError):  # for parts not given here; the sequence is made before
        Gemma3Processor.__init__(processor, None, known)
    assert processor.full_image_sequence == image
    text = f"<bos><start_of_turn>user\nLook:{image}the{image}12<end_of_turn>\n<start_of_turn>model\n"
    assert found == tokenizer.encode(text, add_bos=False, parse_special=True)


def test_ids_are_read_by_name() -> None:
    metadata = fixtures.gemma4_metadata()
    laid = Layout(Tokenizer.from_gguf(metadata), gemma3=False).lay(["a", Slot("image", 0)], [medium("image", 2)])
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[id] for id in laid.ids[-4:]] == ["<|image>", "<|image|>", "<|image|>", "<image|>"]
