"""What a completion continues, and what an embedding is of: a text, token ids, or a list of either."""

from __future__ import annotations

from pocketgem.llm import LLM, Prompt
from pocketgem.serve.fields import FieldError, Fields, shown, text_of

MAX_PROMPTS = 2048


def prompts_of(fields: Fields, key: str) -> list[Prompt]:
    """One prompt or more. Raises FieldError."""
    value = fields.raw(key)
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        return [_prompt(value, fields.at(key))]
    if not isinstance(value, list) or not value:
        fields.refuse(key, f"must be a text, a list of token ids, or a list of either, not {shown(value)}")
    if len(value) > MAX_PROMPTS:
        fields.refuse(key, f"has {len(value)} prompts; at most {MAX_PROMPTS} are taken")
    return [_prompt(item, f"{fields.at(key)}[{index}]") for index, item in enumerate(value)]


def ids_of(llm: LLM, prompt: Prompt, path: str, *, parse_special: bool = False) -> tuple[int, ...]:
    """The prompt as ids that the model can take. Raises FieldError for an empty one, PromptError for a long one.

    parse_special: names of control tokens in a text are these tokens, not text.
    """
    ids = llm.tokenize(prompt, parse_special=parse_special) if isinstance(prompt, str) else list(prompt)
    if not ids or prompt == "":
        raise FieldError(path, "is empty; give some text or at least one token id")
    if max(ids) >= llm.model.config.vocab_size:
        raise FieldError(path, f"holds the id {max(ids)}, but the vocabulary ends at {llm.model.config.vocab_size - 1}")
    llm.engine.check(ids)
    return tuple(ids)


def _prompt(value: object, path: str) -> Prompt:
    if isinstance(value, str):
        return text_of(value, path)
    if not isinstance(value, list):
        raise FieldError(path, f"must be a text or a list of token ids, not {shown(value)}")
    for index, id in enumerate(value):
        if not _is_id(id) or not 0 <= id < 2**31:
            raise FieldError(f"{path}[{index}]", f"must be a token id, not {shown(id)}")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
