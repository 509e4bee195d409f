"""What the engine is asked for, and what it keeps of each request: integers and options, never a tensor."""

import dataclasses
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pocketgem.config import ModelConfig
from pocketgem.errors import CheckpointError, PocketgemError, PromptError

if TYPE_CHECKING:
    from pocketgem.engine.guide import Guide  # they speak numpy, which a wrong option must not wait for
    from pocketgem.engine.inserts import Insert

MAX_LOGPROBS = 20  # alternatives an answer may list; what the OpenAI API allows
MAX_STOPS = 64  # every stop string is looked for in every piece of text
MAX_STOP_LENGTH = 1024  # text that may begin a stop string is held back from the reader
MAX_BIASES = 1024  # the biases are laid on anew for every id
MAX_THREADS = 1024
MAX_ID = 2**31 - 1  # ids travel as 32-bit integers in files and in the network's JSON

# Integers that may be None -> their range.
_OPTIONAL = {
    "top_k": (1, MAX_ID),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (0, MAX_ID),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How ids are chosen and when to stop. The defaults are greedy and endless.

    temperature         0 (always the most probable id) to 100; 1 is the model's own distribution
    top_k               keep the k most probable ids, and those tied with the last; None keeps all
    top_p               keep the fewest most probable ids that hold this share of the mass, 0 to 1
    min_p               keep ids at least this share as probable as the most probable, 0 to 1
    repetition_penalty  0.01 to 100; above 1 weakens every id of the prompt and the output
    presence_penalty    -2 to 2, taken off the logit of every id of the output
    frequency_penalty   -2 to 2, taken off once for each time the id stands in the output
    logit_bias          id -> -100 to 100 added to its logit, or -inf to forbid the id
    seed                a signed 64-bit integer; the same seed gives the same ids; None: fresh entropy
    stop                strings that end the answer; the text side looks for them
    stop_ids            ids that end the answer
    suppress_ids        ids that are never chosen, not even greedily
    max_tokens          ids to make at most; None: until the context is full; 0: the prompt is read, and that is all
    min_tokens          ids to make before a stop id may be chosen
    logprobs            None: report none; n: the chosen id's and those of the n most probable, 0 to 20
    prompt_logprobs     the same for every id of the prompt but the first, given those before it; the whole prompt is
                        read for them, whatever of it is kept

    Raises PromptError, naming the option, its value and what is allowed.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    suppress_ids: frozenset[int] = frozenset()
    max_tokens: int | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _OPTIONAL.items():
            if (value := getattr(self, name)) is not None:
                _check_int(name, value, low, high)
        self._check_shape()
        self._check_bias()
        self._check_end()

    def _check_shape(self) -> None:
        """The options that bend the distribution."""
        _check_number("temperature", self.temperature, 0, 100)
        _check_number("top_p", self.top_p, 0, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check_number("presence_penalty", self.presence_penalty, -2, 2)
        _check_number("frequency_penalty", self.frequency_penalty, -2, 2)

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_BIASES:
            raise _refusal("logit_bias", f"a mapping of at most {MAX_BIASES} ids to numbers", self.logit_bias)
        # Our own copy: the caller's may change after it was checked.
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        _check_ids("logit_bias", self.logit_bias)
        for id, bias in self.logit_bias.items():
            if bias != -math.inf:
                _check_number(f"logit_bias[{id}]", bias, -100, 100, "or -inf to forbid the id")

    def _check_end(self) -> None:
        """The options that say when to stop."""
        _check_stops(self.stop)
        for name in ("stop_ids", "suppress_ids"):
            if not isinstance(ids := getattr(self, name), frozenset):
                raise _refusal(name, "a frozenset of ids", ids)
            _check_ids(name, ids)
        _check_int("min_tokens", self.min_tokens, 0, MAX_ID)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refusal("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)

    @classmethod
    def from_generation_config(cls, data: Mapping[str, object], **overrides: Any) -> "SamplingParams":
        """The options a checkpoint recommends, with the caller's on top.

        ``data`` is its parsed generation_config.json, whose keys mean what they mean to transformers: without
        ``do_sample`` the choice is greedy, ``top_k`` 0 is off, null is absent. Keys for other programs are ignored;
        an unknown override is not. Raises CheckpointError for a value of the file, PromptError for an override.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError(f"generation_config.json must hold a JSON object, not {_shown(data)}")
        options: dict[str, Any] = {"temperature": 1.0}
        for key, (name, convert) in _FILE_KEYS.items():
            if (value := data.get(key)) is not None:
                options[name] = _from_file(key, name, convert(value) if convert else value)
        if not _wants_sampling(data):
            options["temperature"] = 0.0
        names = [option.name for option in dataclasses.fields(cls)]
        if unknown := sorted(overrides.keys() - set(names)):
            raise PromptError(f"unknown sampling option {_shown(unknown[0])}; there are: {', '.join(names)}")
        return cls(**options | overrides)


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # a stop id was chosen, or a stop string appeared
    LENGTH = "length"  # max_tokens are made, or the context is full
    ABORT = "abort"  # the caller went away, or the run failed


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    guide        rules for the ids to come, the state of this one request; None: all ids are allowed
    owner        who asks: owners take turns, however many requests each has waiting
    adapter      what the weights are changed by, None for nothing: pasts of one are of no use to another
    adapter_from position of the prompt from which it acts; what is before it is the base's, also as a past
    lease        whatever keeps the adapter where the model finds it while the request lives
    cache_salt   requests of one salt share kept pasts, and with no other salt
    checkpoints  positions of the prompt where another is likely to go on differently, such as the ends of turns:
                 the past up to there is kept if there is memory for it (see ``engine/points.py``)
    inserts      media: rows in place of embeddings, in order of their positions (see ``engine/inserts.py``)

    Raises PromptError for an empty prompt or an id that cannot be one.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    guide: "Guide | None" = field(default=None, compare=False, repr=False)
    owner: str = field(default="", kw_only=True)
    adapter: str | None = field(default=None, kw_only=True)
    adapter_from: int = field(default=0, kw_only=True)
    lease: object = field(default=None, kw_only=True, compare=False, repr=False)
    cache_salt: str | None = field(default=None, kw_only=True)
    checkpoints: tuple[int, ...] = field(default=(), kw_only=True)
    inserts: "tuple[Insert, ...]" = field(default=(), kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise PromptError(f"request {_shown(self.id)}: the prompt is empty; give at least one id")
        _check_ids("prompt_ids", self.prompt_ids)
        at = 0
        for insert in self.inserts:
            if insert.count < 1 or insert.start < at or insert.stop > len(self.prompt_ids):
                raise PromptError(
                    f"request {_shown(self.id)}: media rows {insert.start} to {insert.stop} have no place"
                )
            at = insert.stop


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen id, with natural log-probabilities of the model's own distribution where they were asked for."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]  # (id, log-probability), most probable first; may hold the chosen id


@dataclass(eq=False, slots=True)
class Sequence:
    """A running request. Two sequences are equal only when they are the same one."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    num_computed: int = 0  # leading ids whose keys and values are cached
    num_reused: int = 0  # of these, how many another sequence had computed
    reuse_reason: str | None = None  # why no more of the prompt was, in words; None: all that could be
    num_scored: int = 1  # leading prompt ids whose log-probability was reported; the first has none
    error: PocketgemError | None = None  # why the run failed, where it did

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and output. Made anew at every call; for the length alone ask num_ids."""
        return (*self.request.prompt_ids, *self.output_ids)

    @property
    def num_prompt(self) -> int:
        """How many ids the prompt has."""
        return len(self.request.prompt_ids)

    @property
    def num_ids(self) -> int:
        """How many ids prompt and output have together."""
        return self.num_prompt + len(self.output_ids)


def _check_number(name: str, value: object, low: float, high: float, more: str = "") -> None:
    # NaN fails both comparisons; an integer too big for a float compares without being converted.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refusal(name, f"a number from {low} to {high} {more}".rstrip(), value)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refusal(name, f"an integer from {low} to {high}", value)


def _check_ids(name: str, ids: Iterable[object]) -> None:
    for id in ids:
        # type() and not isinstance(): True is an int, and this loop is long for a long prompt.
        if type(id) is not int or not 0 <= id <= MAX_ID:
            raise _refusal(f"every id in {name}", f"an integer from 0 to {MAX_ID}", id)


def _check_stops(stop: object) -> None:
    if not isinstance(stop, tuple) or len(stop) > MAX_STOPS:
        raise _refusal("stop", f"a tuple of at most {MAX_STOPS} strings", stop)
    for text in stop:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise _refusal("every string in stop", f"a string of 1 to {MAX_STOP_LENGTH} characters", text)


def _refusal(name: str, allowed: str, value: object) -> PromptError:
    return PromptError(f"{name} must be {allowed}, not {_shown(value)}")


def _shown(value: object) -> str:
    """The value as one short piece of a line, however long it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to spell out an integer of thousands of digits
        return f"{type(value).__name__} with a number too long to show"


def _zero_is_off(value: object) -> object:
    return None if type(value) is int and value == 0 else value


def _id_set(value: object) -> object:
    """One id or a list of ids as a frozenset; what cannot be one stays as it is, for the check to name."""
    try:
        return frozenset(value if isinstance(value, list) else [value])
    except TypeError:
        return value


# key of generation_config.json -> our name, and how the value becomes ours where it is not
_FILE_KEYS: dict[str, tuple[str, Callable[[object], object] | None]] = {
    "temperature": ("temperature", None),
    "top_k": ("top_k", _zero_is_off),
    "top_p": ("top_p", None),
    "min_p": ("min_p", None),
    "repetition_penalty": ("repetition_penalty", None),
    "eos_token_id": ("stop_ids", _id_set),
    "suppress_tokens": ("suppress_ids", _id_set),
}


def _from_file(key: str, name: str, value: Any) -> object:
    """The value of one option, checked alone so that the error names the file's key."""
    try:
        return getattr(SamplingParams(**{name: value}), name)
    except PromptError as error:
        raise CheckpointError(f"generation_config.json, key {key!r}: {error}") from error


def _wants_sampling(data: Mapping[str, object]) -> bool:
    wanted = data.get("do_sample")
    if wanted is not None and not isinstance(wanted, bool):
        raise CheckpointError(f"generation_config.json, key 'do_sample': must be true or false, not {_shown(wanted)}")
    return wanted is True


def checked_context(wish: int | None, config: ModelConfig) -> int:
    """Tokens a sequence may have: ``wish``, or the model's limit. Raises PromptError for a wish beyond it."""
    limit = config.max_position_embeddings
    if wish is None:
        return limit
    if not 2 <= wish <= limit:
        raise PromptError(f"context is {wish}, expected 2 to the model's own {limit}")
    return wish


def checked_threads(wish: int) -> int:
    """``wish``. Raises PromptError for a number of threads that makes no sense."""
    if type(wish) is not int or not 1 <= wish <= MAX_THREADS:
        raise PromptError(f"threads is {_shown(wish)}, expected 1 to {MAX_THREADS}")
    return wish
