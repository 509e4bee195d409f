"""Answers that are kept to a form: formats, calls of tools, thoughts, and every combination of them, random weights."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from pocketgem import LLM, FinishReason, PromptError, SamplingParams
from pocketgem.answers import Finished
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request
from pocketgem.engine.sampler import keep_allowed, make_generator, sample
from pocketgem.engine.scheduler import Scheduler
from pocketgem.text import masks
from pocketgem.text.grammar import Grammars
from pocketgem.text.guides import AnswerGuide, guide_for
from pocketgem.text.loops import MEMORY, PASSAGE, TIMES, LoopDetector
from pocketgem.text.shape import Format, JsonObject, JsonSchema, Regex, Shape, ToolChoice, shaped
from pocketgem.text.tokenizer import Tokenizer
from tests import guided
from tests.guided import CallReader
from tests.text_fixtures import gemma4_tokenizer, spm_tokenizer

SHORT = {"type": "string", "maxLength": 6}
TIME = {
    "type": "object",
    "properties": {"city": SHORT, "offset": {"type": "integer", "minimum": -12, "maximum": 14}},
    "required": ["city"],
}
SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "minLength": 1, "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["a", "b c", 3, None, {"k": ["v"]}]}, "minItems": 1, "maxItems": 3},
        "filter": {
            "type": "object",
            "properties": {"exact": {"type": "boolean"}, "we:ird key": {"const": "ok"}},
            "required": ["exact"],
            "additionalProperties": False,
        },
        "limit": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 50}, {"type": "null"}]},
    },
    "required": ["query", "tags"],
}
TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": ["number", "string"], "maxLength": 3},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value"],
        }
    },
}
MIXED = {
    "type": "object",
    "properties": {
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, SHORT], "items": False, "minItems": 2},
        "code": {"type": "string", "pattern": "^[a-z]{2,4}/\\d$"},
        "any": {"allOf": [{"type": "object", "properties": {"x": {"type": "number"}}}, {"required": ["x"]}]},
        "step": {"type": "number", "multipleOf": 0.5, "minimum": 0, "exclusiveMaximum": 4},
    },
    "required": ["pair", "code", "any"],
}
NOTHING = {"type": "object", "properties": {}}
SCHEMAS = {"time": TIME, "search": SEARCH, "tree": TREE, "mixed": MIXED, "nothing": NOTHING}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return guided.load(tmp_path_factory.mktemp("guided"))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(gemma4_tokenizer())


def special(tokenizer: Tokenizer, name: str) -> int:
    return tokenizer.special_tokens[name]


def hasty(tokenizer: Tokenizer) -> dict[int, float]:
    """A bias to what ends things: random weights are in no hurry."""
    ends = [tokenizer.token_id(text) for text in '}],"'] + [special(tokenizer, '<|"|>')]
    return {id: 4.0 for id in ends if id is not None}


def run_all(llm: LLM, shapes: Sequence[Shape], *, thinking: bool = False, **sampling: Any) -> list[list[int]]:
    """One answer for each shape, side by side; ids without the end. Each ended by itself."""
    tools = shapes[0].tools
    prompt = llm.chat_prompt(HI, tools=[*tools] or None, thinking=thinking)
    params = [
        SamplingParams(**{"temperature": 1.0, "seed": seed, "stop_ids": llm.tokenizer.end_ids, "max_tokens": 900,
                          "logit_bias": hasty(llm.tokenizer), **sampling})
        for seed in range(len(shapes))
    ]  # fmt: skip
    runs = [
        llm.flights.start(Request(str(n), tuple(prompt), one, llm.guide(shape, prompt, thinking=thinking)))
        for n, (shape, one) in enumerate(zip(shapes, params, strict=True))
    ]
    for run in runs:
        for _ in llm.flights.outputs(run):
            pass
    assert [run.finish for run in runs] == [FinishReason.STOP] * len(runs)
    return [run.sequence.output_ids[:-1] for run in runs]


def parts(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], list[int]]:
    """(the thoughts with their marks, the rest)."""
    opener, closer, call = (special(tokenizer, name) for name in ("<|channel>", "<channel|>", "<|tool_call>"))
    thought, rest, inside = list[int](), list[int](), False
    for id in ids:
        inside = (inside or id == opener) and id != call
        (thought if inside else rest).append(id)
        inside = inside and id != closer
    return thought, rest


def check_calls(tokenizer: Tokenizer, ids: list[int]) -> int:
    calls = CallReader(tokenizer, ids).calls()
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])
    return len(calls)


# ---- answers of random weights -------------------------------------------------------------------------------------


def test_five_hundred_calls_all_follow_their_schemas(llm: LLM) -> None:
    counts = dict.fromkeys(SCHEMAS, 0)
    shapes = [shaped(TOOLS, name, parallel=False) for _ in range(100) for name in SCHEMAS]
    for ids in run_all(llm, shapes):
        ((name, arguments),) = CallReader(llm.tokenizer, ids).calls()
        jsonschema.validate(arguments, SCHEMAS[name])
        counts[name] += 1
    assert counts == dict.fromkeys(SCHEMAS, 100)


FORMATS: dict[str, Format | None] = {
    "none": None,
    "object": JsonObject(),
    "schema": JsonSchema(SEARCH),
    "regex": Regex("[a-c]{1,3}(-[0-9]{2})?"),
}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("choice", [None, "none", "auto", "required", "search"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_combination_gives_a_valid_answer(llm: LLM, format: str, choice: str | None, thinking: bool) -> None:
    tools = TOOLS if choice is not None else None
    shape = shaped(tools, choice, format=FORMATS[format], thinking_budget=12)
    bias = hasty(llm.tokenizer) | {
        special(llm.tokenizer, "<|tool_call>"): 3.0,
        special(llm.tokenizer, "<|channel>"): 6.0,
    }
    bias |= dict.fromkeys(llm.tokenizer.end_ids, 3.0) | {special(llm.tokenizer, "<tool_call|>"): 3.0}
    kinds = set()
    for ids in run_all(llm, [shape] * 6, thinking=thinking, logit_bias=bias):
        thought, answer = parts(llm.tokenizer, ids)
        marks = 8 * thought.count(special(llm.tokenizer, "<|channel>"))
        assert len(thought) <= 12 + 3 + marks, "the budget, a character's rest, and what stands around each thought"
        assert thinking or not thought
        kinds.add(check_answer(llm.tokenizer, answer, FORMATS[format], choice))
    assert kinds == {"calls"} if choice in ("required", "search") else kinds <= {"content", "calls", "both"}


def check_answer(tokenizer: Tokenizer, ids: list[int], format: Format | None, choice: str | None) -> str:
    call = special(tokenizer, "<|tool_call>")
    begins = ids.index(call) if call in ids else len(ids)
    content = tokenizer.decode(ids[:begins])
    if begins < len(ids):
        assert choice not in (None, "none")
        check_calls(tokenizer, ids[begins:])
        assert format is None or not content
        assert choice not in ("required", "search") or not content
        return "both" if content else "calls"
    match format:
        case JsonObject():
            assert isinstance(json.loads(content), dict)
        case JsonSchema(schema):
            jsonschema.validate(json.loads(content), schema)
        case Regex(pattern):
            assert re.fullmatch(pattern, content)
    return "content"


def test_parallel_calls_follow_each_other_and_one_is_enough_where_asked(llm: LLM) -> None:
    more = {special(llm.tokenizer, "<|tool_call>"): 2.0} | hasty(llm.tokenizer)
    several = [
        check_calls(llm.tokenizer, ids) for ids in run_all(llm, [shaped(TOOLS, "required")] * 8, logit_bias=more)
    ]
    assert max(several) > 1
    single = shaped(TOOLS, "required", parallel=False)
    assert [check_calls(llm.tokenizer, ids) for ids in run_all(llm, [single] * 8, logit_bias=more)] == [1] * 8


def test_a_completion_has_a_format_too(llm: LLM) -> None:
    options = {"temperature": 1.0, "max_tokens": 400, "logit_bias": hasty(llm.tokenizer)}
    for completion in llm.generate_many(["one", "two", "three"], format=JsonSchema(SEARCH), seed=5, **options):
        jsonschema.validate(json.loads(completion.text), SEARCH)
    assert re.fullmatch("(yes|no)", llm.generate("well?", format=Regex("yes|no"), **options).text)


def test_a_chat_takes_the_shape_by_words(llm: LLM) -> None:
    reply = llm.chat(HI, format=JsonObject(), temperature=1.0, seed=1, max_tokens=600, logit_bias=hasty(llm.tokenizer))
    assert isinstance(json.loads(reply.content), dict)
    with pytest.raises(PromptError, match="names 'nobody'; the tools are time, search"):
        llm.chat(HI, tools=TOOLS, tool_choice="nobody")
    with pytest.raises(PromptError, match="there are no tools"):
        llm.chat(HI, tool_choice="required")
    with pytest.raises(PromptError, match="thinking_budget is '-1'"):
        llm.chat(HI, thinking_budget=-1)


def test_what_is_asked_for_without_stop_ids_still_ends(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=50)
    assert llm.generate("x", params=params, format=Regex("a")).finish is FinishReason.STOP


# ---- the engine ----------------------------------------------------------------------------------------------------


def test_guides_survive_a_preemption(llm: LLM) -> None:
    prompt = llm.chat_prompt(HI, tools=TOOLS)

    def requests() -> list[Request]:
        params = SamplingParams(temperature=1.0, stop_ids=llm.tokenizer.end_ids, max_tokens=300,
                                logit_bias=hasty(llm.tokenizer))  # fmt: skip
        return [
            Request(str(n), tuple(prompt), SamplingParams(**{**vars(params), "seed": n}),
                    llm.guide(shaped(TOOLS, "search", parallel=False), prompt, thinking=False))
            for n in range(4)
        ]  # fmt: skip

    alone = [drained(Engine(llm.model, kept=0), [request])[0] for request in requests()]
    crowded = Engine(llm.model, Scheduler(max_running=4, max_cached=2 * len(prompt) + 60), kept=0)
    assert drained(crowded, requests()) == alone
    for ids in alone:
        assert check_calls(llm.tokenizer, ids[:-1]) == 1


def drained(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    sequences = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    return [sequence.output_ids for sequence in sequences]


class Scripted:
    """A guide that allows what it is told."""

    def __init__(self, *ids: list[int] | None) -> None:
        self.ids, self.pushed = list(ids), list[int]()

    def allowed(self) -> masks.Mask | None:
        wanted = self.ids[min(len(self.pushed), len(self.ids) - 1)]
        return None if wanted is None else masks.only(581, wanted)

    def push(self, id: int) -> None:
        self.pushed.append(id)


def test_an_id_that_cannot_be_chosen_ends_that_request_alone(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4)
    stuck, free = Scripted([300], [], [301]), Scripted([302], [303], [304], [305])
    runs = [llm.flights.start(Request(str(n), (2, 300), params, guide)) for n, guide in enumerate([stuck, free])]
    with pytest.raises(PromptError, match="leave no id to choose"):
        list(llm.flights.outputs(runs[0]))
    list(llm.flights.outputs(runs[1]))
    assert runs[1].sequence.output_ids == free.pushed == [302, 303, 304, 305]
    assert runs[0].sequence.output_ids == stuck.pushed == [300]
    assert runs[0].sequence.finish is FinishReason.ABORT
    assert not llm.engine.states


def test_ids_without_a_guide_are_as_before_and_a_guide_that_allows_all_changes_nothing(llm: LLM) -> None:
    def ids(guide: Scripted | None) -> list[int]:
        params = SamplingParams(temperature=1.0, seed=3, top_k=50, top_p=0.9, max_tokens=24)
        return drained(Engine(llm.model, kept=0), [Request("x", (2, 300, 301), params, guide)])[0]

    assert ids(None) == ids(Scripted(None)) == ids(Scripted(list(range(llm.model.config.vocab_size))))


# ---- the sampler ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 31, 32, 33, 600])
def test_a_mask_removes_what_has_no_bit(size: int) -> None:
    logits = torch.randn(size)
    kept = sorted({0, size // 2, size - 1})
    scores = keep_allowed(logits, masks.only(size, kept))
    assert scores.isfinite().nonzero().flatten().tolist() == kept
    assert torch.equal(scores[kept], logits[kept])


def test_ids_beyond_the_mask_are_removed() -> None:
    scores = keep_allowed(torch.zeros(100), masks.everything(64))
    assert scores.isfinite().nonzero().flatten().tolist() == list(range(64))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 3, "top_p": 0.5}])
def test_a_mask_of_some_ids_gives_one_of_them_and_the_models_own_logprobs(options: dict[str, Any]) -> None:
    logits = torch.randn(500)
    allowed = masks.only(500, [3, 77, 210])
    params = SamplingParams(logprobs=2, **options)
    for seed in range(20):
        one = sample(logits, params, prompt_ids=(1,), output_ids=(), generator=make_generator(seed), allowed=allowed)
        assert one.id in (3, 77, 210)
        assert one.logprob == pytest.approx(float(logits.log_softmax(0)[one.id]), abs=1e-5)
        assert [id for id, _ in one.top] == logits.topk(2).indices.tolist()


def test_one_id_alone_is_taken_without_a_draw_but_not_against_the_options() -> None:
    logits, allowed = torch.randn(500), masks.only(500, [77])
    params = SamplingParams(temperature=1.0)
    assert sample(logits, params, prompt_ids=(1,), output_ids=(), generator=None, allowed=allowed).id == 77
    forbidden = SamplingParams(temperature=1.0, logit_bias={77: -math.inf})
    with pytest.raises(PromptError, match="leave no id"):
        sample(logits, forbidden, prompt_ids=(1,), output_ids=(), generator=None, allowed=allowed)


def test_masks_are_sets() -> None:
    mask = masks.everything(70, but=[3, 69])
    assert np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist() == [
        id for id in range(70) if id not in (3, 69)
    ]
    masks.add(mask, [3, 500])
    masks.remove(mask, [0, 500])
    assert masks.is_empty(masks.nothing(70))
    assert np.bitwise_count(mask).sum() == 68


# ---- thoughts ------------------------------------------------------------------------------------------------------


def guide(grammars: Grammars, *, is_open: bool = False, thinking: bool = True, **shape: Any) -> AnswerGuide:
    ends = grammars.tokenizer.end_ids
    made = guide_for(grammars, Shape(**shape), thought_open=is_open, thinking=thinking, stop_ids=ends)
    assert made is not None
    return made


def allowed(guide: AnswerGuide) -> set[int]:
    mask = guide.allowed()
    vocab = gemma4_tokenizer().vocab_size
    return set(range(vocab)) if mask is None else set(masks_ids(mask))


def masks_ids(mask: masks.Mask) -> list[int]:
    return np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()


def push(guide: AnswerGuide, text: str) -> None:
    """Push what every id allows, as a model would."""
    for id in gemma4_tokenizer().encode(text, add_bos=False, parse_special=True):
        assert id in allowed(guide), gemma4_tokenizer().decode([id])
        guide.push(id)


def test_a_spent_budget_closes_the_thought_and_the_answer_begins(grammars: Grammars) -> None:
    tokenizer = grammars.tokenizer
    newline, close = tokenizer.encode("\n", add_bos=False)[0], special(tokenizer, "<channel|>")
    one = guide(grammars, thinking_budget=3, format=Regex("yes"))
    push(one, "<|channel>thought\n")
    push(one, "the answer w"[:0] or "there")  # one token
    for id in tokenizer.encode("work", add_bos=False) + tokenizer.encode("help", add_bos=False):
        if allowed(one) != {newline}:
            one.push(id)
    assert allowed(one) == {newline}
    one.push(newline)
    assert allowed(one) == {close}
    one.push(close)
    assert special(tokenizer, "<|channel>") not in allowed(one)
    assert all(b"yes".startswith(tokenizer.piece(id)) for id in allowed(one))
    push(one, "yes")
    assert allowed(one) == set(tokenizer.end_ids)


def test_a_thought_ends_neither_the_turn_nor_the_answer(grammars: Grammars) -> None:
    one = guide(grammars)
    push(one, "<|channel>thought\nhelp")
    assert not allowed(one) & grammars.tokenizer.end_ids
    push(one, "<channel|>")
    assert not allowed(one) & grammars.tokenizer.end_ids, "an answer of thoughts alone is none"
    push(one, "yes")
    assert allowed(one) >= grammars.tokenizer.end_ids


def test_without_thinking_no_thought_opens_and_an_open_one_is_closed_at_once(grammars: Grammars) -> None:
    opener, close = (special(grammars.tokenizer, name) for name in ("<|channel>", "<channel|>"))
    assert opener not in allowed(guide(grammars, thinking=False))
    assert opener not in allowed(guide(grammars, thinking_budget=0))
    assert opener in allowed(guide(grammars))
    for one in (guide(grammars, is_open=True, thinking=False), guide(grammars, is_open=True, thinking_budget=0)):
        assert allowed(one) == {close}
        push(one, "<channel|>answer")


def test_a_budget_does_not_cut_a_character(grammars: Grammars) -> None:
    tokenizer = grammars.tokenizer
    one = guide(grammars, is_open=True, thinking_budget=1)
    for byte in "€".encode():
        assert len(allowed(one)) > 1
        one.push(tokenizer.token_id(f"<0x{byte:02X}>"))
    assert len(allowed(one)) == 1


def test_a_thought_in_circles_is_closed_and_stays_closed(grammars: Grammars) -> None:
    tokenizer = grammars.tokenizer
    one = guide(grammars, is_open=True)
    again = tokenizer.encode("wait, let me see: the answer is 10; no, the answer is 100. " * 30, add_bos=False)
    taken = list(itertools.takewhile(lambda id: id in allowed(one) and one.push(id) is None, again))
    assert PASSAGE * TIMES <= len(taken) < len(again)
    push(one, "\n<channel|>")
    assert special(tokenizer, "<|channel>") not in allowed(one)


def test_a_call_ends_an_open_thought(grammars: Grammars) -> None:
    one = guide(grammars, is_open=True, tools=tuple(TOOLS))
    push(one, "help<|tool_call>call:nothing{}<tool_call|>")
    assert not one.thoughts.is_open
    assert allowed(one) == {*grammars.tokenizer.end_ids, special(grammars.tokenizer, "<|tool_call>")}


def test_a_call_cannot_begin_where_it_may_not(grammars: Grammars) -> None:
    opener = special(grammars.tokenizer, "<|tool_call>")
    assert opener in allowed(guide(grammars, tools=tuple(TOOLS)))
    for one in (guide(grammars), guide(grammars, tools=tuple(TOOLS), choice=ToolChoice.NONE)):
        assert opener not in allowed(one)
        push(one, "hello")
        assert opener not in allowed(one)
    formed = guide(grammars, tools=tuple(TOOLS), format=JsonObject())
    assert opener in allowed(formed)
    push(formed, "{")
    assert opener not in allowed(formed)


@pytest.mark.parametrize("period", [1, 2, 7, PASSAGE, 100, 700])
def test_what_repeats_is_noticed_after_so_many_times(period: int) -> None:
    detector = LoopDetector()
    block = [1000 + n for n in range(period)]
    noticed = next(n for n, id in enumerate(itertools.cycle(block)) if detector.push(id)) + 1
    assert noticed <= max(period * TIMES, PASSAGE * (TIMES + 1)) + period + PASSAGE


def test_what_does_not_repeat_is_no_circle() -> None:
    detector = LoopDetector()
    generator = np.random.default_rng(1)
    assert not any(detector.push(int(id)) for id in generator.integers(0, 40, 20_000))
    table = [id for row in range(400) for id in (7, 7, 7, 5, row + 10, 5, 5, row * 31 % 97 + 10, 6)]
    assert not any(detector.push(id) for id in table)


def test_the_detector_forgets() -> None:
    detector = LoopDetector(memory=1000)
    for id in range(20_000):
        detector.push(id)
    assert len(detector._seen) <= 1000
    assert len(detector._order) <= 1000
    assert MEMORY >= PASSAGE * TIMES


# ---- what is refused, what is no guide -----------------------------------------------------------------------------


def test_a_vocabulary_without_calls_says_so_and_has_formats_all_the_same() -> None:
    plain = Grammars(spm_tokenizer())
    ends = plain.tokenizer.end_ids
    with pytest.raises(PromptError, match="no tokens for tool calls, so none can be required; use tool_choice auto"):
        guide_for(plain, shaped(TOOLS, "required"), thought_open=False, thinking=False, stop_ids=ends)
    assert guide_for(plain, shaped(TOOLS, None), thought_open=False, thinking=True, stop_ids=ends) is None
    made = guide_for(plain, Shape(format=Regex("ab")), thought_open=False, thinking=False, stop_ids=ends)
    assert made is not None
    assert {plain.tokenizer.piece(id) for id in allowed(made)} <= {b"a", b"ab"}


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"function": {"parameters": {}}}, r"tools\[0\] needs a function with a name"),
        ({"function": {"name": "a{b"}}, r"tools\[0\] needs a function with a name"),
        ({"function": {"name": "f", "parameters": {"type": "string"}}}, "parameters of tool 'f' describe no object"),
        (
            {"function": {"name": "f", "parameters": {"type": "obj"}}},
            r"tools\[0\]\.function\.parameters/type is \"obj\"",
        ),
        (
            {"function": {"name": "f", "parameters": {"properties": {"x": {"$ref": "http://example.com/x"}}}}},
            r"parameters/properties/x/\$ref is .*: only places in the same schema",
        ),
        (
            {"function": {"name": "f", "parameters": {"$ref": "#/$defs/x"}}},
            r"\$ref is \"#/\$defs/x\", and there is no such place",
        ),
        (
            {"function": {"name": "f", "strict": True, "parameters": {"properties": {"x": {"uniqueItems": True}}}}},
            "ask for uniqueItems, which cannot be enforced; leave it out, or strict",
        ),
        (
            {"function": {"name": "f", "parameters": {"properties": {"s": {"$ref": "#"}}, "required": ["s"]}}},
            "describe no object, or none nested less than 16 deep",
        ),
    ],
)
def test_wrong_tools_are_refused_saying_where(grammars: Grammars, tool: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        guide(grammars, tools=(tool,))


def test_a_tool_twice_is_refused(grammars: Grammars) -> None:
    with pytest.raises(PromptError, match="two tools named 'time'"):
        guide(grammars, tools=(TOOLS[0], TOOLS[0]))


def test_the_page_streams_what_the_whole_says(llm: LLM, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "temperature": 1.0, "seed": 9}
    options |= {"max_tokens": 400, "logit_bias": hasty(llm.tokenizer)}
    *_, end = llm.stream_chat(HI, **options)
    assert isinstance(end, Finished)
    assert end.ids == llm.chat(HI, **options).ids
    assert check_calls(llm.tokenizer, [id for id in end.ids if id not in llm.tokenizer.end_ids])
