"""Messages to prompts: checked messages, the checkpoint's own template as Hugging Face runs it, and its ids."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.errors import TemplateError
from pocketgem.text.chat import Chat
from pocketgem.text.messages import drop_past_thoughts, normalize
from pocketgem.text.template import ChatTemplate
from tests import text_fixtures as fixtures

SHARED = Path(os.environ.get("POCKETGEM_SHARED", Path(__file__).parents[2] / "shared")) / "templates"
TEMPLATES = sorted([*fixtures.DATA.glob("*.jinja"), *SHARED.glob("*.jinja")])
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Looks at the <sky>.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where", "enum": ["Oslo", "日本"]}},
            "required": ["city"],
        },
    },
}


def called(city: str, **fields: object) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return {"role": "assistant", "content": "", "tool_calls": [call], **fields}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<bos>", eos_token="<eos>")


def template_of(name: str) -> ChatTemplate:
    return template((fixtures.DATA / name).read_text(encoding="utf-8"))


def user(text: object) -> dict[str, Any]:
    return {"role": "user", "content": text}


# Messages ------------------------------------------------------------------------------------------------------------


def test_roles_and_parts_become_what_templates_expect() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "be kind"},
        user(parts),
        {"role": "model", "content": "three"},
    ]
    assert normalize(messages) == [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "three"},
    ]
    assert messages[1]["content"] == parts  # the caller's own are left alone


def test_arguments_as_json_text_become_values() -> None:
    message = called("Oslo")
    message["tool_calls"][0]["function"]["arguments"] = '{"city": "Oslo"}'
    message["content"] = None
    assert normalize([message]) == [called("Oslo")]


def test_fields_without_a_value_are_left_out() -> None:
    assert normalize([{**user("a"), "refusal": None, "tool_calls": None}]) == [user("a")]
    sent = {
        "role": "assistant",
        "content": "b",
        "refusal": "",
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning_content": "",
        "id": None,
        "metadata": {},
    }
    assert normalize([sent]) == [{"role": "assistant", "content": "b"}]
    assert normalize([user("")]) == [user("")]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("hello", "message 1 is a str"),
        ({"content": "a"}, "message 1 has the role None"),
        ({"role": "root", "content": "a"}, "message 1 has the role 'root'; roles are system"),
        ({"role": ["user"], "content": "a"}, "has the role"),
        ({"role": "user"}, "message 1 has no content"),
        ({"role": "assistant"}, "message 1 has no content"),
        (user(7), "message 1 has no content"),
        (user(b"a"), "message 1 has no content"),
        (user([{"type": "image", "url": "x"}]), "message 1 has a part of type 'image' without image"),
        (user([{"type": "image", "image": b"x", "url": "x"}]), "an unknown field 'url'"),
        (user([{"type": "audio"}]), "a part of type 'audio' without audio"),
        ({"role": "assistant", "content": [{"type": "image", "image": b"x"}]}, "only user and tool can show media"),
        (user(["a"]), "a part of type 'str'"),
        (user([{"type": "text"}]), "a text part that is not just"),
        (user([{"type": "text", "text": 7}]), "a text part that is not just"),
        (user([{"type": "text", "text": "a", "image": "x"}]), "a text part that is not just"),
        ({**user("a"), "temperature": 1}, "unknown field 'temperature'"),
        ({**user("a"), "temperature": 0}, "unknown field 'temperature'"),
        ({"role": "assistant", "content": "", "refusal": "I cannot."}, "unknown field 'refusal'"),
        ({"role": "assistant", "content": "", "function_call": {"name": "w"}}, "unknown field 'function_call'"),
        ({"role": "assistant", "content": "", "reasoning": 7}, "reasoning must be text"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "tool_calls must be a list"),
        ({"role": "assistant", "content": "", "tool_calls": [7]}, "a tool call must be"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}, "a tool call must be"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w", "arguments": "{"}}]},
            "are not JSON",
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w", "arguments": "[1]"}}]},
            "must be an object",
        ),
    ],
)
def test_what_is_no_message_is_named(message: Any, complaint: str) -> None:
    with pytest.raises(TemplateError) as raised:
        normalize([user("fine"), message])
    assert complaint in str(raised.value)


def test_no_messages_is_named() -> None:
    with pytest.raises(TemplateError, match="there are no messages"):
        normalize([])


# Thoughts of the past ------------------------------------------------------------------------------------------------

INLINE = "<|channel>thought\nI should look.\n<channel|>"


def test_thoughts_of_finished_turns_are_dropped() -> None:
    past: dict[str, Any] = {
        "role": "assistant",
        "content": f"{INLINE}It rains.",
        "reasoning": "hm",
        "reasoning_content": "hm",
    }
    kept: dict[str, Any] = {"role": "assistant", "content": "It rains."}
    assert drop_past_thoughts([user("a"), past, user("b")]) == [user("a"), kept, user("b")]
    assert drop_past_thoughts([user("a"), past]) == [user("a"), kept]  # no tool calls: not an ongoing chain


def test_thoughts_of_the_ongoing_tool_chain_are_kept() -> None:
    thought = {"reasoning": "I should look.", "reasoning_content": "I should look."}
    chain = [
        user("a"),
        called("Oslo", content=INLINE),
        {"role": "tool", "content": "sun"},
        called("Oslo", thinking="I should look."),
    ]
    expected = [user("a"), called("Oslo", **thought), chain[2], called("Oslo", **thought)]
    assert drop_past_thoughts(chain) == expected
    # A new question ends the chain.
    bare = [user("a"), called("Oslo"), chain[2], called("Oslo"), user("b")]
    assert drop_past_thoughts([*chain, user("b")]) == bare


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (f"{INLINE}a{INLINE}b", "ab"),
        ("a<|channel>thought\ncut off", "a"),
        ("<|channel>other<channel|>a", "a"),
        ("a <channel|> b", "a <channel|> b"),
        ("thought\na", "thought\na"),
    ],
)
def test_thoughts_inside_content(content: str, left: str) -> None:
    assert drop_past_thoughts([{"role": "assistant", "content": content}]) == [{"role": "assistant", "content": left}]


def test_what_users_and_tools_write_about_thoughts_stays() -> None:
    messages: list[dict[str, Any]] = [
        user(INLINE),
        {"role": "tool", "content": INLINE},
        {"role": "system", "content": INLINE},
    ]
    assert drop_past_thoughts(messages) == messages


# The template, beside Hugging Face ------------------------------------------------------------------------------------


def theirs(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered: str = utilities.render_jinja_template(
        [messages], chat_template=source, bos_token="<bos>", eos_token="<eos>", **variables
    )[0][0]
    return rendered


TEXTS = st.text(st.sampled_from("ab <>|\"'\\{}%\n日é&"), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
CALLS = st.builds(
    lambda arguments: {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}},
    st.dictionaries(st.sampled_from(["city", "day", "B"]), VALUES),
)
TURNS = st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}) | st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS},
    optional={"tool_calls": st.lists(CALLS, max_size=2), "reasoning": TEXTS, "reasoning_content": TEXTS},
)
RESULTS = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": TEXTS, "tool_call_id": st.sampled_from(["c1", "c2"])}
)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@given(
    messages=st.lists(TURNS | RESULTS, min_size=1, max_size=6),
    tools=st.none() | st.just([WEATHER]),
    options=st.fixed_dictionaries(
        {"add_generation_prompt": st.booleans()}, optional={"enable_thinking": st.booleans()}
    ),
)
@settings(deadline=None, max_examples=60)
def test_real_and_own_templates_render_as_in_transformers(path: Path, messages: Any, tools: Any, options: Any) -> None:
    source = path.read_text(encoding="utf-8")
    refusal = ""
    try:
        expected = theirs(source, messages, tools=tools, **options)
    except Exception as error:  # the template's own refusal, which must be ours too
        refusal = str(error)[:100]
    if refusal:
        with pytest.raises(TemplateError) as raised:
            template(source).render(messages, tools=tools, **options)
        assert refusal in str(raised.value)
    else:
        # transformers fills reasoning_content from reasoning; here drop_past_thoughts does, before rendering
        named = [
            {**m, "reasoning_content": m.get("reasoning_content", m.get("reasoning"))} if "reasoning" in m else m
            for m in messages
        ]
        assert template(source).render(named, tools=tools, **options) == expected


SNIPPETS = [
    "{{ messages[0].content | trim }}|{{ missing }}|{{ messages[0].missing }}|{{ eos_token }}",
    "{% for m in messages %}\n  {{ loop.index }}{{ m['role'] }}\n{% endfor %}\nend\n",
    "  {% if true %}\n  a\n  {% endif %}\n",
    "{% for i in range(5) if i != 1 %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}"
    "{% endif %}{% endfor %}",
    "{{ {'b': 1, 'a': ['<é>', none, true, 1.5]} | tojson }}{{ [1] | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}{{ 'é' | tojson(ensure_ascii=true) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ f('a') ~ f(1, y=none) }}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ messages | map(attribute='role') | join(',') }}{{ messages | join(',', attribute='role') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [1, 2] | select('odd') | list }}",
    "{{ ['b', 'a'] | sort | join }}{{ {'y': 1, 'x': 2} | dictsort }}{{ {'y': 1}.items() | list }}",
    "{{ 'a,b'.split(',') }}{{ 'abc'[::-1] }}{{ 'abc'[1:] }}{{ messages[-1:] | length }}{{ ' x '.strip() }}",
    "{{ 'x'.startswith('x') }}{{ 'aba'.replace('a', 'c') }}{{ ','.join(['a', 'b']) }}{{ 'Ab'.lower() }}",
    "{{ 'x' if messages is string else 'y' }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ none is none }}",
    "{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ 1 / 2 }}{{ -3 | abs }}{{ '3' | int + 1 }}{{ 2.5 - 1 }}",
    "{{ 1 < 2 < 3 }}{{ 'a' in ['a'] }}{{ [1, 'a'] == [1, 'a'] }}{{ messages == messages }}{{ 1 and 'x' or 'y' }}",
    "{{ 'a\nb' | indent(2) }}{{ 'aXa' | replace('a', 'b') }}{{ 'aXa' | replace('a', 'b', 1) }}{{ 'aBc' | upper }}",
    "{{ 'aBc' | capitalize }}{{ 'a b' | title }}{{ 'aBc' | lower }}{{ '  a' | trim }}{{ 'xax' | trim('x') }}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x | length }}{% filter upper %}c{% endfilter %}{{ [1, 2, 2] | unique | list }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{{ ',' if not loop.last }}{% else %}none{% endfor %}",
    "{% for a in [[1, [2]], [3]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in{% endcall %}{% with y = 2 %}{{ y }}"
    "{% endwith %}",
    "{{ missing | default('d') }}{{ '' | default('d', true) }}{{ messages | first | length }}{{ [1, 2] | last }}",
    "{{ [1, 2] | reverse | list }}{{ 'ab' | list }}{{ [3, 1] | max }}{{ [3, 1] | min }}{{ '1.5' | float }}",
    "{{ dict(a=1) }}{{ (1, 'b') }}{{ [none, 1.0, 'q\"'] }}{{ true }}{{ none }}{{ 'é' }}{{ [1] + [2] }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner() %}{{ j() }}{{ j() }}",
    "{{ strftime_now('%Y') | length }}{{ [1, 2].index(2) }}{{ messages[0].get('x', 'y') }}",
    "{{ messages[0].keys() | list }}{{ messages[0].values() | list }}",
]  # fmt: skip


@pytest.mark.parametrize("source", SNIPPETS)
def test_jinja_as_templates_use_it_renders_as_in_transformers(source: str) -> None:
    messages = [user(" Hi <there> "), {"role": "assistant", "content": "Hällo"}, user("q")]
    ours = template(source).render(messages, add_generation_prompt=False)
    assert ours == theirs(source, messages, add_generation_prompt=False)


# The template, on its own ---------------------------------------------------------------------------------------------


def test_the_templates_own_words_are_the_error() -> None:
    chat = template_of("gemma3_like.jinja")
    with pytest.raises(TemplateError) as raised:
        chat.render([user("a"), user("b")])
    assert str(raised.value) == ("the chat template failed: user and assistant must take turns, but turn 2 is by user")
    with pytest.raises(TemplateError) as raised:
        template("{{ raise_exception('one\n\n two' ~ 'x' * 1000) }}").render([user("a")])
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{% if %}", "does not compile: Expected an expression"),
        ("{% for m in messages %}", "does not compile"),
        ("{{ x | nofilter }}", "No filter named 'nofilter'"),
        ("{{ x is notest }}", "No test named 'notest'"),
        ("a" * 200_000, "more than 131072"),
        ("{% include 'x' %}", "Include is not supported"),
        ("{% import 'x' as y %}", "Import is not supported"),
        ("{% extends 'x' %}", "Extends is not supported"),
        ("{% block x %}{% endblock %}", "Block is not supported"),
        ("{% macro m() %}{{ varargs }}{% endmacro %}", "varargs is not supported"),
    ],
)
def test_what_is_no_template_is_named(source: str, complaint: str) -> None:
    with pytest.raises(TemplateError) as raised:
        template(source)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_undefined_is_empty_until_it_is_used() -> None:
    assert template("[{{ nothing }}{{ messages[9] }}]").render([user("a")]) == "[]"
    with pytest.raises(TemplateError, match="'nothing' is undefined"):
        template("{{ nothing.at.all }}").render([user("a")])


def test_messages_must_be_json() -> None:
    with pytest.raises(TemplateError, match=r"messages\[0\].content is a PurePosixPath"):
        template("").render([user(PurePosixPath("x"))])
    with pytest.raises(TemplateError, match="a key that is not text"):
        template("").render([{"role": {1: "x"}}])
    deep: object = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(TemplateError, match="nested more than 64 deep"):
        template("").render([user(deep)])


# Prompts --------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_the_template_with_its_control_tokens() -> None:
    tokenizer = fixtures.spm_tokenizer()
    ids = Chat(template_of("gemma3_like.jinja"), tokenizer).prompt(
        [
            {"role": "system", "content": "be kind"},
            user(" hello "),
            {"role": "model", "content": "yes"},
            user("the end"),
        ]
    )
    text = (
        "<bos><start_of_turn>user\nbe kind\n\nhello<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
        "<start_of_turn>user\nthe end<end_of_turn>\n<start_of_turn>model\n"
    )
    assert ids == tokenizer.encode(text, parse_special=True)
    assert ids.count(tokenizer.bos_id) == 1


def test_a_template_that_forgets_the_begin_token_gets_it() -> None:
    tokenizer = fixtures.spm_tokenizer()
    assert Chat(template("{{ messages[0].content }}"), tokenizer).prompt([user("hello")]) == tokenizer.encode("hello")


@pytest.mark.parametrize("thinking", [False, True])
def test_thinking_tools_and_an_ongoing_chain(thinking: bool) -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    chat = Chat(template_of("gemma4_like.jinja"), tokenizer)
    chain = [user("rain?"), called("Oslo", content=INLINE), {"role": "tool", "name": "weather", "content": "sun"}]
    text = tokenizer.decode(chat.prompt(chain, tools=[WEATHER], thinking=thinking))
    assert ("<|turn>system\n<|think|>\n<|tool>declaration:weather{" in text) is thinking
    assert text.endswith(
        "<|turn>model\n<|channel>thought\nI should look.\n<channel|>"
        '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
        '<|tool_response>response:weather{value:<|"|>sun<|"|>}<tool_response|>' + "<|channel>thought\n" * thinking
    )
    later = tokenizer.decode(chat.prompt([*chain, user("thanks")]))
    assert "I should look" not in later


def test_a_checkpoint_without_a_template_says_what_to_do() -> None:
    with pytest.raises(TemplateError, match="no chat template; use plain completion"):
        Chat(None, fixtures.spm_tokenizer()).prompt([user("a")])


def test_private_use_characters_of_a_message_stay() -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    chat = Chat(template("{{ messages[0].content }}"), tokenizer)
    for text in ("\ue000\ue001 <b>", "a \\ue000 <b>", "\\U000f0000<|turn>"):
        assert tokenizer.decode(chat.prompt([user(text)])[1:]) == text


def test_a_template_that_escapes_its_json_does_not_show_the_marks() -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    chat = Chat(template("{{ messages[0].content | tojson(ensure_ascii=true) }}"), tokenizer)
    assert tokenizer.decode(chat.prompt([user("<|turn>é")])[1:]) == '"<|turn>\\u00e9"'
    every = "".join(map(chr, range(0xE000, 0xF900)))
    assert tokenizer.decode(chat.prompt([user(f"<b>{every[:9]}")])[1:]).startswith('"<b>\\ue000\\ue001')
