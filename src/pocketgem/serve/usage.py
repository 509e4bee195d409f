"""Counts of tokens and log-probabilities, as OpenAI's two dialects write them."""

from __future__ import annotations

from collections.abc import Callable

from pocketgem.answers import Stats, TokenLogprob
from pocketgem.serve.job import Done

LOWEST = -9999.0  # how the API writes a probability of zero, which JSON has no number for


def chat_usage(done: Done) -> dict[str, object]:
    """``cache_reason``, ``prefill_seconds`` and ``decode_seconds`` are extensions."""
    stats = done.stats
    usage: dict[str, object] = {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens, **media_tokens(stats)},
    }
    if done.thought_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": done.thought_tokens}
    return usage | extension(done)


def media_tokens(stats: Stats) -> dict[str, object]:
    """Of the prompt's tokens, those of each kind of media that there is."""
    return {f"{kind}_tokens": count for kind, count in stats.media.items() if count}


def extension(done: Done) -> dict[str, object]:
    """What every dialect's usage has beside its own counts."""
    seconds: dict[str, object] = {
        "prefill_seconds": round(done.stats.prefill_seconds, 4),
        "decode_seconds": round(done.stats.decode_seconds, 4),
    }
    notes: dict[str, object] = {"notes": list(done.notes)} if done.notes else {}
    return notes | seconds if done.reuse is None else {"cache_reason": done.reuse, **notes, **seconds}


def logprobs(found: tuple[TokenLogprob, ...], piece: Callable[[int], bytes] | None) -> list[dict[str, object]]:
    """One entry a token, thoughts included. Without ``piece`` alternatives other than the chosen have no text."""
    return [_entry(one, piece) for one in found]


def _entry(one: TokenLogprob, piece: Callable[[int], bytes] | None) -> dict[str, object]:
    def spelt(id: int, logprob: float) -> dict[str, object]:
        spelling = piece(id) if piece else one.text.encode() if id == one.id else b""
        text = spelling.decode("utf-8", "replace")
        return {"token": text, "bytes": list(spelling), "logprob": max(logprob, LOWEST)}

    return {**spelt(one.id, one.logprob), "top_logprobs": [spelt(id, logprob) for id, logprob in one.top]}
