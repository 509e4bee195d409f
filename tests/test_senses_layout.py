"""Ids around media are those of transformers' processors, for the same template and text."""

from __future__ import annotations

import json
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
from tests.sensing import picture

SOUND = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
FRAMES = [picture(n, 48, 96).pixels for n in range(3)]
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
    metadata = fixtures.gemma4_metadata()
    tokenizer = hf_tokenizer(
        tmp_path_factory.mktemp("gemma4"), metadata,
        image_token="<|image|>", boi_token="<|image>", eoi_token="<image|>",
        audio_token="<|audio|>", boa_token="<|audio>", eoa_token="<audio|>",
    )  # fmt: skip
    from transformers.models.gemma4 import feature_extraction_gemma4, image_processing_pil_gemma4, video_processing_gemma4

    template = (fixtures.DATA / "gemma4_like.jinja").read_text(encoding="utf-8")
    return transformers.Gemma4Processor(
        feature_extraction_gemma4.Gemma4AudioFeatureExtractor(),
        image_processing_pil_gemma4.Gemma4ImageProcessorPil(),
        tokenizer,
        video_processing_gemma4.Gemma4VideoProcessor(),
        chat_template=template,
    )


def rendered(processor: Any, parts: list[dict[str, Any]]) -> str:
    messages = [{"role": "user", "content": parts}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, bos_token="<bos>")


@pytest.mark.parametrize("kinds", [("image",), ("image", "image"), ("audio",), ("image", "audio", "image"), ("video",)])
def test_gemma_4(gemma4: Any, kinds: tuple[str, ...]) -> None:
    parts = content(*kinds)
    text = rendered(gemma4, parts)
    given: dict[str, Any] = {}
    if images := [picture(n, 60 + 40 * n, 90).pixels for n, kind in enumerate(kinds) if kind == "image"]:
        given["images"] = [images]
    if "audio" in kinds:
        given["audio"] = [SOUND]
    if "video" in kinds:
        given["videos"] = [np.stack(FRAMES)]
        given["video_metadata"] = [{"fps": 0.05, "total_num_frames": 3, "frames_indices": [0, 1, 2], "duration": 60.0}]
        given["do_sample_frames"] = False
    expected = gemma4(text=[text], add_special_tokens=False, **given)["input_ids"][0]
    expected = expected.tolist() if hasattr(expected, "tolist") else expected
    media = _counted(kinds, expected)
    assert ours(fixtures.gemma4_metadata(), "gemma4_like.jinja", parts, media, gemma3=False) == expected


def _runs(ids: list[int]) -> list[tuple[str, int]]:
    """Runs of placeholders, by kind, in order."""
    names = fixtures.gemma4_tokenizer().special_tokens
    places = {names[f"<|{kind}|>"]: kind for kind in ("image", "audio", "video")}
    runs: list[tuple[str, int]] = []
    for before, id in zip([-1, *ids], ids, strict=False):
        if id in places:
            runs = [*runs[:-1], (places[id], runs[-1][1] + 1)] if id == before else [*runs, (places[id], 1)]
    return runs


def _counted(kinds: tuple[str, ...], ids: list[int]) -> list[Medium]:
    if kinds == ("video",):
        return [medium("video", *(count for _, count in _runs(ids)), stamps=("00:00", "00:20", "00:40"))]
    return [medium(kind, count) for kind, (_, count) in zip(kinds, _runs(ids), strict=True)]


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
    try:
        Gemma3Processor.__init__(processor, None, known)
    except (TypeError, ValueError, AttributeError):  # the parts it is not given here; the sequence is made before
        pass
    assert processor.full_image_sequence == image
    text = f"<bos><start_of_turn>user\nLook:{image}the{image}12<end_of_turn>\n<start_of_turn>model\n"
    assert found == tokenizer.encode(text, add_bos=False, parse_special=True)


def test_ids_are_read_by_name() -> None:
    metadata = fixtures.gemma4_metadata()
    laid = Layout(Tokenizer.from_gguf(metadata), gemma3=False).lay(["a", Slot("image", 0)], [medium("image", 2)])
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[id] for id in laid.ids[-4:]] == ["<|image>", "<|image|>", "<|image|>", "<image|>"]
