"""Which replica a conversation goes to: its own while it grows, moved only by loss, never far above its share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from pocketgem.serve.affinity import SLACK, Affinity, share
from pocketgem.serve.conversation import BLOCK_CHARACTERS, BLOCK_IDS, conversation_of

NAMES = st.sets(st.text("abcdefgh", min_size=3, max_size=8), min_size=1, max_size=12)
KEYS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=32), unique=True, max_size=60)
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def homes(keys: list[str], replicas: set[str]) -> dict[str, str]:
    """Where new conversations go when nobody is busy."""
    return {key: Affinity().order(key, replicas)[0] for key in keys}


@given(NAMES, st.one_of(st.none(), st.text()))
def test_every_replica_is_in_the_order_once(replicas: set[str], key: str | None) -> None:
    order = Affinity().order(key, replicas)
    assert sorted(order) == sorted(replicas)
    assert order == Affinity().order(key, sorted(replicas, reverse=True))


def test_no_replica_no_order() -> None:
    assert Affinity().order("a", []) == []
    assert Affinity().order(None, set()) == []


@given(NAMES, KEYS, st.data())
def test_a_lost_replica_moves_its_own_conversations_only(
    replicas: set[str], keys: list[str], data: st.DataObject
) -> None:
    lost = data.draw(st.sampled_from(sorted(replicas)))
    before, after = homes(keys, replicas), homes(keys, replicas - {lost}) if len(replicas) > 1 else {}
    for key in after:
        assert after[key] == before[key] or before[key] == lost


@given(NAMES, KEYS)
def test_a_new_replica_takes_conversations_and_moves_no_other(replicas: set[str], keys: list[str]) -> None:
    before, after = homes(keys, replicas), homes(keys, replicas | {"new"})
    assert all(after[key] in (before[key], "new") for key in keys)


@given(NAMES, st.lists(st.tuples(st.sampled_from("abcdefghij"), st.booleans()), max_size=120))
def test_nobody_is_far_above_its_share(replicas: set[str], steps: list[tuple[str, bool]]) -> None:
    """Conversations come, all turns at once if they like; some requests end."""
    affinity, running = Affinity(), []
    for number, (key, ends) in enumerate(steps):
        if ends and running:
            affinity.ended(running.pop(0))
            continue
        known = key in affinity.homes
        chosen = affinity.order(key, replicas)[0]
        most = share(len(running), len(replicas)) + (SLACK if known else 0)
        affinity.began(str(number), key, chosen)
        running.append(str(number))
        assert Counter(affinity.running.values())[chosen] <= most


@given(NAMES, st.lists(st.sampled_from("abcdefghij"), max_size=60))
def test_a_conversation_stays_while_nobody_is_busy(replicas: set[str], turns: list[str]) -> None:
    affinity, first = Affinity(), {}
    for number, key in enumerate(turns):
        chosen = affinity.order(key, replicas)[0]
        affinity.began(str(number), key, chosen)
        affinity.ended(str(number))
        assert first.setdefault(key, chosen) == chosen


def test_a_conversation_that_had_to_move_stays_where_it_went() -> None:
    affinity, replicas = Affinity(), ["a", "b", "c"]
    home = affinity.order("key", replicas)[0]
    for number in range(6):
        affinity.began(f"busy {number}", None, home)
    away = affinity.order("key", replicas)[0]
    assert away != home
    affinity.began("one", "key", away)
    for number in range(6):
        affinity.ended(f"busy {number}")
    affinity.ended("one")
    assert affinity.order("key", replicas)[0] == away
    assert affinity.order("key", [one for one in replicas if one != away])[0] != away
    assert not affinity.running


def test_a_request_without_a_past_goes_to_the_least_busy() -> None:
    affinity = Affinity()
    affinity.began("1", None, "a")
    affinity.began("2", None, "a")
    affinity.began("3", None, "b")
    assert affinity.order(None, ["a", "b", "c"]) == ["c", "b", "a"]
    affinity.ended("nobody took this one")


def test_few_conversations_are_spread() -> None:
    counts = Counter(homes([f"conversation {number}" for number in range(400)], {"a", "b", "c", "d"}).values())
    assert min(counts.values()) > 60


def test_what_is_remembered_is_bounded() -> None:
    affinity = Affinity(max_remembered=10)
    for number in range(100):
        affinity.began(str(number), f"key {number}", "a")
        affinity.ended(str(number))
    assert list(affinity.homes) == [f"key {number}" for number in range(90, 100)]


def user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


@given(st.lists(st.text(), min_size=1, max_size=6), st.text())
def test_a_chat_is_the_same_while_it_grows(texts: list[str], system: str) -> None:
    begun: list[dict[str, object]] = [{"role": "system", "content": system}, user(texts[0])]
    first = conversation_of(CHAT, "me", {"messages": begun})
    grown = [*begun, *({"role": "assistant", "content": text} for text in texts), user("and?")]
    assert conversation_of(CHAT, "me", {"messages": grown, "stream": True}) == first
    parts = [{**begun[0]}, user([{"type": "text", "text": texts[0]}])]
    assert conversation_of(CHAT, "me", {"messages": parts}) == first
    assert conversation_of(CHAT, "you", {"messages": begun}) != first
    assert conversation_of(CHAT, "me", {"messages": begun, "model": "other"}) != first
    assert conversation_of(CHAT, "me", {"messages": [begun[0], user(texts[0] + "x")]}) != first
    assert conversation_of(CHAT, "me", {"messages": [{**begun[0], "content": system + "x"}, begun[1]]}) != first


def test_the_dialects_say_the_same_in_their_own_ways() -> None:
    first = conversation_of(RESPONSES, "", {"input": "hi", "instructions": "be kind"})
    again = [user([{"type": "input_text", "text": "hi"}]), {"type": "reasoning"}, user("more")]
    assert conversation_of(RESPONSES, "", {"input": again, "instructions": "be kind"}) == first
    assert conversation_of(RESPONSES, "", {"input": "hi"}) != first
    asked = {"system": "be kind", "messages": [user("hi")]}
    more = {**asked, "messages": [user("hi"), {"role": "assistant", "content": "x"}, user("more")]}
    assert conversation_of(MESSAGES, "", asked) == conversation_of(MESSAGES, "", more)
    assert conversation_of(MESSAGES, "", asked) != conversation_of(MESSAGES, "", {**asked, "system": "be rude"})


@given(st.text(min_size=BLOCK_CHARACTERS, max_size=BLOCK_CHARACTERS + 50), st.text(max_size=50))
def test_a_plain_prompt_is_the_same_from_its_first_block_on(prompt: str, more: str) -> None:
    first = conversation_of("/v1/completions", "", {"prompt": prompt})
    assert conversation_of("/v1/completions", "", {"prompt": prompt + more}) == first
    assert conversation_of("/v1/completions", "", {"prompt": [prompt + more, "another"]}) == first
    assert conversation_of("/v1/completions", "", {"prompt": "\0" + prompt}) != first


def test_a_prompt_of_ids_too() -> None:
    ids = list(range(BLOCK_IDS))
    first = conversation_of("/v1/completions", "", {"prompt": ids})
    assert conversation_of("/v1/completions", "", {"prompt": [*ids, 1, 2]}) == first
    assert conversation_of("/v1/completions", "", {"prompt": [[*ids, 3]]}) == first
    assert conversation_of("/v1/completions", "", {"prompt": ids[1:]}) != first


def test_what_has_no_past_goes_anywhere() -> None:
    for route in ("/v1/embeddings", "/tokenize", "/v1/models", "/v1/responses/{id}"):
        assert conversation_of(route, "", {"prompt": "x", "messages": [user("x")]}) is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
    max_leaves=12,
)


@given(ANYTHING, ANYTHING, st.sampled_from([CHAT, RESPONSES, MESSAGES, "/v1/completions"]))
def test_no_json_is_too_odd(one: Any, other: Any, route: str) -> None:
    body = {"messages": one, "input": one, "prompt": one, "system": other, "model": other}
    assert conversation_of(route, "", body) == conversation_of(route, "", dict(body))


def test_half_a_character_is_no_reason_to_fail() -> None:
    key = conversation_of(CHAT, "\ud83d", {"messages": [user("\ud83d")]})
    assert Affinity().order(key, ["a"]) == Affinity().order("\ud83d", ["a"]) == ["a"]
