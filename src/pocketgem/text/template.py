"""A checkpoint's own chat template, run as the stranger's code that it is: messages to a prompt, within limits.

The environment is that of Hugging Face's templates (trimmed blocks, loop controls, ``raise_exception``,
``strftime_now``, ``tojson`` without HTML escapes, plain ``Undefined``), less what ``sandbox.py`` leaves out. This is
the only place in the package that renders a template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

import jinja2

from pocketgem.errors import TemplateError
from pocketgem.text.budget import MAX_SOURCE, Limits
from pocketgem.text.metering import metered
from pocketgem.text.sandbox import MAX_DEPTH, Sandbox

_JINJA = version("jinja2")

# What a request may set beside messages and tools. Everything else in a template's namespace is ours.
ALLOWED = frozenset({"enable_thinking", "preserve_thinking", "documents", "date_string"})


class ChatTemplate:
    """One compiled template. Immutable, and safe to share between threads: each rendering has its own budget."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str, limits: Limits | None = None) -> None:
        """Compiles ``source``. Raises TemplateError if it is no template, too long, or needs what is not supported."""
        _check_jinja(_JINJA)
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters, more than {MAX_SOURCE}")
        # Gemma 4's first templates know the results of tools only in the message that called them.
        self.folds_results = "tool_responses" in source and "tool_call_id" not in source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._limits = limits or Limits()
        self._sandbox = Sandbox()
        try:
            self._code = self._sandbox.compile(metered(self._sandbox.parse(source)))
        except Exception as error:  # whatever a parser and a compiler raise on a stranger's input
            raise TemplateError(f"the chat template does not compile: {_one_line(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **options: object,
    ) -> str:
        """The prompt for ``messages``. ``options`` are those of ``ALLOWED``.

        Raises TemplateError with the template's own words when it refuses the messages, and when it breaks a limit.
        """
        if surplus := options.keys() - ALLOWED:
            raise TemplateError(f"the option {min(surplus)!r} is not one of {', '.join(sorted(ALLOWED))}")
        variables = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt, **options}
        plain = {name: _plain(value, name) for name, value in variables.items()}
        try:
            return "".join(self._chunks({**plain, **self._tokens}))
        except Exception as error:
            raise TemplateError(f"the chat template failed: {_one_line(error)}") from error

    def _chunks(self, variables: Mapping[str, object]) -> Iterator[str]:
        sandbox = self._sandbox.started(self._limits)
        template = jinja2.Template.from_code(sandbox, self._code, sandbox.make_globals({}))
        left = self._limits.output
        for chunk in template.generate(variables):
            sandbox.budget.look_at_clock()
            if len(chunk) > left:
                raise TemplateError(f"it writes more than {self._limits.output} characters")
            left -= len(chunk)
            yield chunk


def _check_jinja(installed: str) -> None:
    if tuple(map(int, re.findall(r"\d+", installed)[:3])) < (3, 1, 6):
        raise TemplateError(f"jinja2 {installed} has known holes in its sandbox; install 3.1.6 or newer")


def _plain(value: object, where: str, depth: int = 0) -> object:
    """A copy of ``value`` made of JSON's types alone, so that a template finds no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth == MAX_DEPTH:
        raise TemplateError(f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TemplateError(f"{where} has a key that is not text")
        return {key: _plain(item, f"{where}.{key}"[:80], depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]"[:80], depth + 1) for index, item in enumerate(value)]
    raise TemplateError(f"{where} is a {type(value).__name__}; a chat template takes only JSON values")


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{_one_line(ValueError(error.message))} (line {error.lineno})"
    message = re.sub(r"<[^<>]* at 0x\w+>", "<object>", str(error))  # where things lie in memory is nobody's business
    return re.sub(r"\s+", " ", message).strip()[:300] or type(error).__name__
