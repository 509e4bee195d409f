"""Small vocabularies in all the forms that real ones come in, and lines of text in every script. All deterministic."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pocketgem.text.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6

_WORDS = "the then there their they hello help world word work works and answer thought user model turn channel bread "
_WORDS += "ing ed er est ab abab ababab aa aaa aaaa -- ---- -------- 00 01 10 100 1000 été über 日本 日本語 मन नम"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>|\"'[]{}()_-=+*/.,:;!?#éüтд日本語मनेा안"
_HTML = ("<table>", "</table>", "<h1>", "</h1>")
_GEMMA_4_CONTROL = ("<|tool>", "<tool|>", "<|think|>", "<|turn>", "<turn|>", "<|image|>")
_GEMMA_4_CONTROL += ("<|image>", "<image|>", "<|audio>", "<|audio|>", "<audio|>", "<|video|>")
_GEMMA_3_IMAGE = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
_GEMMA_4_VISIBLE = (
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|channel>", "<channel|>",
)  # fmt: skip

_FUNCTION_TOKENS = (
    "<start_function_declaration>", "<end_function_declaration>", "<start_function_call>", "<end_function_call>",
    "<start_function_response>", "<end_function_response>", "<escape>",
)  # fmt: skip


def words() -> list[str]:
    """Spellings, best first: every beginning of every word, with and without a space before it."""
    spelled = [start + word for word in _WORDS.split() for start in ("", "▁")]
    pieces = {word[:length] for word in spelled for length in range(2, len(word) + 1)}
    return sorted(pieces, key=lambda piece: (random.Random(piece).random(), piece))


def spm_metadata(normal: Sequence[str] | None = None) -> dict[str, Any]:
    """A GGUF vocabulary like Gemma 3's: SentencePiece scores, no merges, runs of spaces spelled with real spaces."""
    typed = [(text, CONTROL) for text in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")]
    typed += [(text, USER_DEFINED) for text in ("[multimodal]", *_GEMMA_3_IMAGE, *_HTML)]
    typed += [(char * count, USER_DEFINED) for char in "\n\t" for count in range(1, 6)]
    typed += [(" " * count, USER_DEFINED) for count in range(2, 6)]
    typed += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    reserved = len(typed)
    typed += [(text, NORMAL) for text in (words() if normal is None else normal)]
    typed += [(letter, NORMAL) for letter in "▁" + _LETTERS]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _ in typed],
        "tokenizer.ggml.token_type": [kind for _, kind in typed],
        "tokenizer.ggml.scores": [-1000.0] * reserved + [-float(rank) for rank in range(len(typed) - reserved)],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def gemma4_metadata() -> dict[str, Any]:
    """A GGUF vocabulary like Gemma 4's: listed merges, runs of newlines and spaces made by them, ▁ everywhere."""
    typed = [(text, CONTROL) for text in ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_GEMMA_4_CONTROL)]
    typed += [(text, USER_DEFINED) for text in _GEMMA_4_VISIBLE]
    typed += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    runs = [char * count for char in "\n▁\t" for count in range(2, 6)]
    typed += [(text, NORMAL) for text in (*runs, *_HTML, *words(), "\n", "\t", "▁", *_LETTERS)]
    typed += [(f"<unused{number}>", UNUSED) for number in (7, 49)]
    merges = _merges([text for text, kind in typed if kind == NORMAL])
    return spm_metadata() | {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [text for text, _ in typed],
        "tokenizer.ggml.token_type": [kind for _, kind in typed],
        "tokenizer.ggml.scores": [0.0] * len(typed),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


def tokenizer_json(metadata: dict[str, Any]) -> dict[str, Any]:
    """The ``tokenizer.json`` that says the same as a vocabulary of ``gemma4_metadata``."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [id for id, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED, UNUSED)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": tokens[id], **flags} for id in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {text: id for id, text in enumerate(tokens)},
            "merges": [str(merge).split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }  # fmt: skip


@cache
def spm_tokenizer() -> Tokenizer:
    """Gemma 3's kind: no channels."""
    return Tokenizer.from_gguf(spm_metadata())


@cache
def gemma4_tokenizer() -> Tokenizer:
    """Gemma 4's kind: channels, tool calls and turns."""
    return Tokenizer.from_gguf(gemma4_metadata())


@cache
def functiongemma_tokenizer() -> Tokenizer:
    """FunctionGemma's kind: Gemma 3's vocabulary with tokens for calls."""
    metadata = spm_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], *_FUNCTION_TOKENS]
    kinds = [*metadata["tokenizer.ggml.token_type"], *[USER_DEFINED] * len(_FUNCTION_TOKENS)]
    scores = [*metadata["tokenizer.ggml.scores"], *[-1000.0] * len(_FUNCTION_TOKENS)]
    keys = {"tokens": tokens, "token_type": kinds, "scores": scores}
    return Tokenizer.from_gguf(metadata | {f"tokenizer.ggml.{name}": value for name, value in keys.items()})


def _merges(best_first: Sequence[str]) -> Iterator[tuple[str, str]]:
    known = {*best_first}
    for text in best_first:
        for cut in range(1, len(text)):
            if text[:cut] in known and text[cut:] in known:
                yield text[:cut], text[cut:]


def lines_of_scripts(per_script: int = 24) -> dict[str, list[str]]:
    """Random words from the letters, marks and digits of each script of ``SCRIPTS``."""
    letters = _letters()
    return {script: _lines(random.Random(script), letters[script], per_script) for script in SCRIPTS}


def _letters() -> dict[str, list[str]]:
    letters: dict[str, list[str]] = {script: [] for script in SCRIPTS}
    for code in range(0x20000):
        names = unicodedata.name(chr(code), "").split(" ")
        script = next((name for count in (3, 2, 1) if (name := " ".join(names[:count])) in letters), None)
        if script and unicodedata.category(chr(code))[0] in "LMN":
            letters[script].append(chr(code))
    return letters


def _lines(rng: random.Random, letters: Sequence[str], count: int) -> list[str]:
    def word() -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 8)))

    return [" ".join(word() for _ in range(rng.randint(2, 7))) for _ in range(count)]


def odd_lines(seed: int = 0, count: int = 400) -> list[str]:
    """Emoji in all their combinations, control characters, runs of white space and of letters, markup, rare planes."""
    rng = random.Random(seed)
    skins, people = "🏻🏼🏽🏾🏿", ("👩", "👨", "🧑", "👋", "🤝", "👍")
    flags = [chr(0x1F1E6 + rng.randrange(26)) + chr(0x1F1E6 + rng.randrange(26)) for _ in range(40)]
    joined = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "🏴‍☠️", "👩🏽‍🚀", "❤️‍🔥", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👁️‍🗨️"]
    parts = [*flags, *joined, *(person + skin for person in people for skin in skins)]
    parts += [chr(code) for code in (*range(32), *range(0x7F, 0xA0))]
    parts += ["\u00ad", "\u200b", "\u200e", "\u202e", "\u2066", "\ufeff", "\ufffd", "\u3000", "\u00a0", "\u2028"]
    parts += ["a\u0301\u0323", "ﬁ", "①", "Ⅷ", "ｆｕｌｌ", "𝔘𝔫𝔦", "\U000e0041", "\U0010fffd", "\r\n"]
    parts += [char * length for char in "\n\t -=.a0_" for length in (1, 2, 3, 7, 16, 31)]
    parts += ["<table>", "</h1>", "<h1", "[multimodal]", "<start_of_turn>", "<0x41>", "<unused7>", "<|turn>", "&lt;"]
    return ["".join(rng.choice(parts) for _ in range(rng.randint(1, 9))) for _ in range(count)]


def corpus() -> list[str]:
    """Every line there is: scripts, sentences in many languages, code, and the odd ones."""
    lines = [line for lines in lines_of_scripts().values() for line in lines]
    lines += (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
    code = (DATA / "code.txt").read_text(encoding="utf-8")
    return [*lines, *code.splitlines(), code, *odd_lines()]


SCRIPTS = (
    "LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "HEBREW", "ARABIC", "SYRIAC", "THAANA", "NKO", "SAMARITAN", "MANDAIC",
    "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA",
    "THAI", "LAO", "TIBETAN", "MYANMAR", "GEORGIAN", "HANGUL", "ETHIOPIC", "CHEROKEE", "CANADIAN SYLLABICS",
    "OGHAM", "RUNIC", "TAGALOG", "HANUNOO", "BUHID", "TAGBANWA", "KHMER", "MONGOLIAN", "LIMBU", "TAI LE",
    "NEW TAI LUE", "BUGINESE", "TAI THAM", "BALINESE", "SUNDANESE", "BATAK", "LEPCHA", "OL CHIKI", "GLAGOLITIC",
    "COPTIC", "TIFINAGH", "HIRAGANA", "KATAKANA", "BOPOMOFO", "CJK", "YI", "LISU", "VAI", "BAMUM", "SYLOTI NAGRI",
    "PHAGS-PA", "SAURASHTRA", "KAYAH LI", "REJANG", "JAVANESE", "CHAM", "MEETEI MAYEK", "LINEAR B", "OLD ITALIC",
    "GOTHIC", "UGARITIC", "OLD PERSIAN", "DESERET", "SHAVIAN", "OSMANYA", "CYPRIOT", "PHOENICIAN", "BRAHMI",
    "CHAKMA", "CUNEIFORM", "ADLAM",
)  # fmt: skip
