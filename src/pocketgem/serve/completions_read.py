"""A request for completions, read."""

from __future__ import annotations

from dataclasses import dataclass

from pocketgem.engine.request import MAX_ID, MAX_LOGPROBS
from pocketgem.llm import Prompt
from pocketgem.serve.fields import Fields
from pocketgem.serve.options import EXTENSIONS, adapter_of, at_least, biases, sampling, stops
from pocketgem.serve.prompts import prompts_of

DEFAULT_TOKENS = 16  # what the OpenAI API makes when nobody says how many
MAX_CHOICES = 2048  # prompts x n
MAX_N = 128

_SAMPLING = {**EXTENSIONS, "temperature": "temperature", "top_p": "top_p"}


@dataclass(frozen=True)
class Wanted:
    """A request, checked. ``logprobs`` with ``echo`` are also the prompt's."""

    model: str | None
    prompts: list[Prompt]
    n: int
    max_tokens: int
    echo: bool
    parse_special: bool
    logprobs: int | None
    sampling: dict[str, object]
    stream: bool
    usage: bool
    adapter: str | None = None

    @classmethod
    def read(cls, fields: Fields) -> Wanted:
        """Raises FieldError, also for what this server does not do."""
        _refuse_unsupported(fields)
        stream = fields.flag("stream", False)
        wanted = cls(
            model=fields.text("model", most=256) if fields.has("model") else None,
            prompts=prompts_of(fields, "prompt"),
            n=fields.whole("n", 1, low=1, high=MAX_N),
            max_tokens=fields.whole("max_tokens", DEFAULT_TOKENS, low=0, high=MAX_ID),
            echo=fields.flag("echo", False),
            parse_special=fields.flag("parse_special", False),
            logprobs=fields.whole("logprobs", low=0, high=MAX_LOGPROBS) if fields.has("logprobs") else None,
            sampling={**sampling(fields, _SAMPLING), **stops(fields, "stop"), **biases(fields), **_least(fields)},
            stream=stream,
            usage=stream and fields.section("stream_options").flag("include_usage", False),
            adapter=adapter_of(fields),
        )
        if wanted.n * len(wanted.prompts) > MAX_CHOICES:
            fields.refuse("n", f"times the number of prompts is more than {MAX_CHOICES}")
        return wanted


def _least(fields: Fields) -> dict[str, object]:
    return at_least(fields, {"max_tokens": fields.whole("max_tokens", DEFAULT_TOKENS, low=0, high=MAX_ID)})


def _refuse_unsupported(fields: Fields) -> None:
    if fields.raw("suffix", ""):
        fields.refuse("suffix", "is not supported: these models have no tokens for a gap to fill")
    best_of = fields.whole("best_of", 1, low=1, high=MAX_N)
    if best_of not in (1, fields.whole("n", 1, low=1, high=MAX_N)):
        fields.refuse("best_of", "is not supported beyond n; ask for n answers and choose")
