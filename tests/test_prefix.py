"""Kept pasts: what is found, what is shared, what goes first, and that nothing of it changes an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.engine.loop import Engine
from pocketgem.engine.points import keep_points
from pocketgem.engine.prefix import FIRST, NO_MEMORY, PrefixStore, Scope
from pocketgem.engine.prefix_tree import Ids
from pocketgem.engine.reach import Slide
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.engine.request import Sequence as Running
from pocketgem.engine.scheduler import Scheduler
from pocketgem.model.cache import Cache
from pocketgem.model.gemma import Gemma
from pocketgem.model.past import Past
from tests.test_laws import prompt
from tests.test_parity import load
from tests.twins import make_twin

WINDOW = 8  # of the twins, and of the pasts that are made up here


# ---- the tree, over pasts that are made up ---------------------------------------------------------------------------


class MadeRows:
    """Rows that are the ids themselves, ten bytes each, or seven where they are of layers that slide."""

    def __init__(self, first: int, ids: list[int], each: int) -> None:
        self.first, self.count, self.ids, self.each, self.nbytes = first, len(ids), ids, each, each * len(ids)

    def piece(self, first: int, stop: int) -> MadeRows:
        assert self.first <= first < stop <= self.first + self.count
        return MadeRows(first, self.ids[first - self.first : stop - self.first], self.each)

    def joined(self, others: Sequence[MadeRows]) -> MadeRows:
        ids = list(self.ids)
        for one in others:
            assert one.first == self.first + len(ids)
            ids += one.ids
        return MadeRows(self.first, ids, self.each)


class MadePast:
    """first: of the positions that sliding layers have not forgotten."""

    def __init__(self, ids: list[int], first: int = 0) -> None:
        self.ids, self.first = ids, first

    def rows_bytes(self, count: int) -> int:
        return 10 * count

    def rows(self, first: int, stop: int) -> MadeRows:
        return MadeRows(first, self.ids[first:stop], 10)

    def slid_bytes(self, count: int) -> int:
        return 7 * count

    def slid(self, first: int, stop: int) -> MadeRows:
        assert self.first <= first < stop
        return MadeRows(first, self.ids[first:stop], 7)

    def knows(self, first: int, stop: int) -> bool:
        return self.first <= first and stop <= len(self.ids)


Store = PrefixStore[MadeRows]
SLIDE = Slide(WINDOW)
HERE = Scope()


def made(budget: int) -> Store:
    return PrefixStore(budget, SLIDE)


def array(ids: list[int]) -> Ids:
    return np.array(ids, np.int32)


def keep(store: Store, ids: list[int], scope: Scope = HERE, *, modest: bool = False, first: int = 0) -> bool:
    return store.keep(scope, array(ids), MadePast(ids, first), modest=modest)


def position(store: Store, ids: list[int], scope: Scope = HERE) -> int:
    return store.find(scope, array(ids)).position


def check(store: Store) -> None:
    """Counts are right, the budget is kept, every branch leads to a kept position, every node is reached by its first
    id, and sliding rows are there as far as somebody needs them, and no further."""
    size = tokens = 0
    for root in store.roots.values():
        assert root.children
        for node in root.below():
            if node.parent is None:
                continue
            assert node.parent.children[int(node.ids[0])] is node
            assert node.start == node.parent.end
            assert node.children or node.kept
            assert node.rows is not None
            assert (node.rows.first, node.rows.ids) == (node.start, node.ids.tolist())
            nearest = node.nearest()
            assert nearest is not None
            needed = range(max(node.start, SLIDE.oldest(nearest.end)), node.end)
            slid = MadeRows(node.end, [], 7) if node.slid is None else node.slid
            assert (slid.first, slid.ids) == (
                min(needed.start, node.end),
                node.ids[needed.start - node.start :].tolist(),
            )
            size, tokens = size + node.nbytes, tokens + len(node.ids)
    assert (store.nbytes, store.tokens) == (size, tokens)
    assert size <= store.budget


few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=30)


@given(
    steps=st.lists(st.tuples(few_ids, st.booleans(), st.integers(0, 1)), min_size=1, max_size=30),
    budget=st.sampled_from([0, 300, 900, 3000, 10**9]),
)
@settings(max_examples=300)
def test_what_is_found_is_what_was_kept(steps: list[tuple[list[int], bool, int]], budget: int) -> None:
    store = made(budget)
    kept: list[tuple[Scope, list[int]]] = []
    for ids, modest, salt in steps:
        scope = Scope(None, str(salt))
        hit = store.find(scope, array(ids))
        assert (hit.reason is None) == (hit.position >= len(ids) - 1)
        assert _read(hit.rows, 0, hit.position) == ids[: hit.position]
        oldest = SLIDE.oldest(hit.position)
        assert _read(hit.slid, oldest, hit.position) == ids[oldest : hit.position]
        if budget == 10**9:  # nothing goes: the best is known
            pasts = [past for other, past in kept if other == scope]
            assert hit.position == _best(pasts, ids)
        if keep(store, ids, scope, modest=modest):
            kept.append((scope, ids))
            assert position(store, [*ids, 9], scope) == len(ids)
        check(store)


def _read(pieces: list[MadeRows], first: int, stop: int) -> list[int]:
    """The ids that these rows are of, position by position."""
    at = {piece.first + i: id for piece in pieces for i, id in enumerate(piece.ids)}
    return [at[position] for position in range(first, stop)]


def _best(pasts: list[list[int]], ids: list[int]) -> int:
    """The last position all of whose rows some past has, by looking at each of them."""
    best = 0
    for position in range(1, len(ids)):
        alike = [past for past in pasts if past[:position] == ids[:position]]
        near = [past for past in pasts if past[: len(past)] == ids[: len(past)]] + alike
        have = {row for past in near for row in range(SLIDE.oldest(len(past)), len(past))}
        if alike and have.issuperset(range(SLIDE.oldest(position), position)):
            best = position
    return best


def test_the_window_of_least_use_goes_first_and_its_rows_with_it() -> None:
    a, b, c = ([id] * 20 for id in (1, 2, 3))
    store = made(2 * (20 * 14 + 7 * 7))
    assert keep(store, a)
    assert keep(store, b)
    assert position(store, [*a, 5]) == 20
    assert keep(store, c)
    assert [position(store, [*ids, 5]) for ids in (a, b, c)] == [20, 0, 20]
    assert store.find(HERE, array([*b, 5])).reason == "the past kept up to token 20 was dropped for memory"


def test_a_past_too_large_takes_nothing_from_others() -> None:
    store = made(700)
    assert keep(store, [1] * 20)
    assert not keep(store, [2] * 80)
    assert position(store, [*[1] * 20, 5]) == 20


def test_a_talk_shorter_than_the_window_is_held_once() -> None:
    store = made(10**6)
    for end in (2, 4, 7):
        assert keep(store, list(range(end)))
    assert store.nbytes == 7 * (4 + 10 + 7)  # ids, rows and one window
    assert keep(store, [0, 1, 2])  # that window stands for it
    assert store.nbytes == 7 * (4 + 10 + 7)
    assert [position(store, [*range(end), 9]) for end in (7, 5, 3)] == [7, 5, 3]
    assert keep(store, list(range(20)))  # seven have slid out of this one by now
    assert [position(store, [*range(end), 9]) for end in (20, 12, 7, 5)] == [20, 7, 7, 5]


def test_near_positions_share_what_they_see_and_all_between_them_are_of_use() -> None:
    """As two turns of a long talk do: each alone would be a window, seven rows."""
    store = made(10**6)
    ids = list(range(40))
    assert keep(store, ids[:30])
    alone = store.nbytes
    assert keep(store, ids[:34], first=27)  # by now the sliding layers have forgotten what is kept already
    assert store.nbytes == alone + 4 * (4 + 10 + 7)
    assert [position(store, [*ids[:end], 99]) for end in (29, 30, 32, 34, 36)] == [0, 30, 32, 34, 34]
    assert not keep(store, ids, first=35)  # the row between is nowhere
    assert keep(store, ids, first=34)


def test_what_others_need_stays_when_a_position_goes() -> None:
    """A fork: the rows before it are needed by both ways."""
    head, one, two = list(range(20)), [50, 51], [60, 61]
    store = made(20 * 14 + 5 * 7 + 2 * 2 * 21)  # what the two take together
    assert keep(store, head + one)
    assert keep(store, head + two)
    assert position(store, [*head, *one, 9]) == 22
    assert keep(store, [7])
    assert [position(store, [*ids, 9]) for ids in (head + one, head + two, [7])] == [22, 0, 1]
    check(store)


def test_modest_ones_leave_windows_on_their_way() -> None:
    store = made(30 * 14 + 7 * 7 + 20)
    assert keep(store, [1] * 20)
    assert not keep(store, [1] * 30, modest=True)
    assert position(store, [*[1] * 20, 5]) == 20
    assert keep(store, [1] * 30)
    assert position(store, [*[1] * 30, 5]) == 30
    assert position(store, [*[1] * 20, 5]) == 0


def test_why_no_more_was_of_use() -> None:
    store = made(10**6)
    ids = list(range(40))
    assert store.find(HERE, array(ids)).reason == FIRST
    keep(store, ids[:20])
    assert store.find(HERE, array(ids[:21])).reason is None
    assert store.find(HERE, array([7, *ids])).reason == "what is kept differs from this prompt at token 0"
    assert store.find(HERE, array([*ids[:20], 99, 98])).reason == ("what is kept differs from this prompt at token 20")
    assert store.find(HERE, array([*ids[:15], 99, 98])).reason == (
        "what is kept differs from this prompt at token 15; the nearest window kept is at token 0"
    )
    assert store.find(HERE, array(ids[:16])).reason == (
        "the window at token 16 is no longer kept; the nearest window kept is at token 0"
    )
    assert store.find(Scope("poet"), array(ids)).reason == "another adapter's past is kept"
    assert store.find(Scope(None, "salt"), array(ids)).reason == FIRST  # nobody learns what others asked
    assert made(0).find(HERE, array(ids)).reason == NO_MEMORY


def test_no_scope_sees_anothers_pasts() -> None:
    store = made(10**6)
    scopes = [Scope(adapter, salt) for adapter in (None, "a", "b") for salt in (None, "x", "y")]
    for at, scope in enumerate(scopes):
        assert position(store, [1, 2, 3, 4], scope) == 0
        keep(store, [1, 2, 3, at], scope)
    assert [store.find(scope, array([1, 2, 3, 4, 5])).rows[0].ids[3] for scope in scopes] == list(range(9))


# ---- where a prompt is cut -------------------------------------------------------------------------------------------


def points(ids: list[int], turns: set[int], named: tuple[int, ...] = ()) -> list[int]:
    return keep_points(Request("r", tuple(ids), SamplingParams(), checkpoints=named), turns)


def test_points_are_turns_names_and_the_end() -> None:
    ids = [0, *[50, 1, 2, 3] * 6]  # turns begin at 1, 5, 9, 13, 17, 21
    assert points(ids, {50}) == [24, 21, 17, 13, 5]
    assert points(ids, {50}, (3, 0, 24, 25, 10**9, -4)) == [24, 21, 17, 13, 5, 3]
    assert points(ids, set()) == [24]
    assert points([7], {7}) == []
    assert len(points([1] * 100, {2}, tuple(range(100)))) == 8


# ---- on twins: law 1 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gemma3", "E2B", "12B"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return load(make_twin(request.param, tmp_path_factory.mktemp("twin")).folder)


def submit(engine: Engine, ids: list[int], tokens: int = 6, **fields: str) -> Running:
    return engine.submit(Request("r", tuple(ids), SamplingParams(max_tokens=tokens, logprobs=0), **fields))


def finish(engine: Engine, *sequences: Running) -> list[list[tuple[int, float | None]]]:
    found: dict[Running, list[tuple[int, float | None]]] = {one: [] for one in sequences}
    while any(sequence.finish is None for sequence in sequences):
        for output in engine.step():
            if output.sampled is not None and output.sequence in found:
                found[output.sequence].append((output.sampled.id, output.sampled.logprob))
    return [found[one] for one in sequences]


def cold(model: Gemma, ids: list[int], tokens: int = 6, chunk: int = 1) -> list[tuple[int, float | None]]:
    engine = Engine(model, Scheduler(chunk=chunk), kept=0)
    return finish(engine, submit(engine, ids, tokens))[0]


def test_a_hit_changes_no_bit(model: Gemma) -> None:
    """Token by token, so that the same products are made: then every log-probability is the same float."""
    engine = Engine(model, Scheduler(chunk=1), turn_ids=frozenset({7}))
    first = [*prompt(1, 15), 7, *prompt(2, 15), 7, *prompt(3, 9)]
    finish(engine, submit(engine, first))
    for ids, reused in (
        (first, len(first) - 1),  # asked again
        ([*first[:31], 7, *prompt(4, 9)], 31),  # the last question is edited
        ([*first[:15], 7, *prompt(5, 9)], 15),  # ... and the first
        ([*first, *prompt(6, 5)], len(first)),  # the answer came back changed: what its end kept serves here, too
        ([*first[:20], *prompt(7, 30)], 15),
    ):
        again = submit(engine, ids)
        assert finish(engine, again)[0] == cold(model, ids)
        assert again.num_reused == reused
        assert (again.reuse_reason is None) == (reused == len(ids) - 1)


def test_a_short_past_serves_any_beginning(model: Gemma) -> None:
    engine = Engine(model, Scheduler(chunk=1))
    ids = prompt(1, 30)
    finish(engine, submit(engine, ids[:7], 1))  # nothing has slid out of a window of eight
    for cut in (6, 5, 3, 1):
        other = [*ids[:cut], *prompt(2, 20)]
        again = submit(engine, other)
        assert finish(engine, again)[0] == cold(model, other)
        assert again.num_reused == cut


Turn = st.tuples(st.integers(0, 2), st.integers(0, 45), st.integers(1, 25), st.integers(1, 9), st.integers(0, 3))


@given(turns=st.lists(Turn, min_size=2, max_size=6), chunk=st.sampled_from([4, 16, 512]), small=st.booleans())
@settings(max_examples=6)
def test_interleaved_conversations_answer_as_if_alone(
    model: Gemma, turns: list[tuple[int, int, int, int, int]], chunk: int, small: bool
) -> None:
    """Forks at any place, several at a time, some given up, preemption, little room for what is kept."""
    scheduler = Scheduler(chunk=chunk, max_running=3, max_cached=120)
    engine = Engine(model, scheduler, kept=40_000 if small else None, turn_ids=frozenset({7}))
    histories: list[list[int]] = [prompt(1, 12), prompt(2, 20), prompt(1, 9)]
    running: list[Running] = []
    for which, cut, more, tokens, leave in turns:
        ids = [*histories[which][: max(cut, 1)], 7, *prompt(which + cut, more)][:80]
        histories[which] = ids
        sequence = submit(engine, ids, tokens, cache_salt=str(which % 2))
        for _ in range(leave):
            engine.step()
        if leave == 2 and sequence.finish is None:
            engine.abort(sequence)
        else:
            running.append(sequence)
    finish(engine, *running)
    assert engine.prefixes.nbytes <= engine.prefixes.budget
    assert not engine.states
    for sequence in running:
        expected = cold(model, list(sequence.request.prompt_ids), len(sequence.output_ids), 64)
        assert sequence.output_ids == [id for id, _ in expected]


def test_a_preempted_sequence_finds_its_own_past_again(model: Gemma) -> None:
    engine = Engine(model, Scheduler(chunk=6, max_cached=70))
    first, ours = submit(engine, prompt(1, 30), 30), submit(engine, prompt(0), 24)
    steps = [0]
    while ours.finish is None:
        engine.step()
        steps.append(ours.num_computed)
    finish(engine, first)
    away = [at for at in range(2, len(steps)) if steps[at] == 0 < steps[at - 1]]
    assert away, "the budget was meant to be too small for both"
    for at in away:
        back = next(computed for computed in steps[at:] if computed)
        assert back >= steps[at - 1]  # nothing was computed twice
    assert ours.num_reused == 0
    assert ours.output_ids == [id for id, _ in cold(model, prompt(0), 24)]


def test_aborted_prompts_go_on_where_they_were(model: Gemma) -> None:
    engine = Engine(model, Scheduler(chunk=8))
    sequence = submit(engine, prompt(1, 60))
    for _ in range(4):
        engine.step()
    engine.abort(sequence)
    again = submit(engine, prompt(1, 60))
    assert [id for id, _ in finish(engine, again)[0]] == [id for id, _ in cold(model, prompt(1, 60))]
    assert again.num_reused == 32


def test_adapters_and_salts_do_not_meet(model: Gemma) -> None:
    engine = Engine(model)
    finish(engine, submit(engine, prompt(0)))
    for fields in ({"adapter": "poet"}, {"cache_salt": "key"}):
        other = submit(engine, prompt(0), **fields)
        finish(engine, other)
        assert other.num_reused == 0
        again = submit(engine, prompt(0), **fields)
        finish(engine, again)
        assert again.num_reused == 20


def test_a_second_turn_reads_less_than_a_twentieth(model: Gemma) -> None:
    engine = Engine(model, turn_ids=frozenset({7}), kept=64 << 20)
    engine.context = 4096
    talk: list[int] = [2]
    for turn in range(12):
        talk += [7, *prompt(turn, 30)]
    talk = (talk * 6)[:2000]
    first = submit(engine, talk, 3)
    finish(engine, first)
    again = submit(engine, [*talk, *prompt(99, 60)], 3)  # the answer as rendered, and a question
    finish(engine, again)
    assert (again.num_prompt - again.num_reused) / again.num_prompt < 0.05


def test_pieces_are_copies(model: Gemma) -> None:
    """What is kept is not written to by who goes on from it, nor by who left it."""
    engine = Engine(model, Scheduler(chunk=8))
    finish(engine, submit(engine, prompt(1, 40)))
    node = next(node for root in engine.prefixes.roots.values() for node in root.below() if node.slid)
    assert node.rows is not None
    assert node.slid is not None
    pairs = [*node.rows.layers.values(), *node.slid.layers.values()]
    before = [tensor.clone() for pair in pairs for tensor in pair]
    finish(engine, submit(engine, [*prompt(1, 40), *prompt(2, 40)]), submit(engine, [*prompt(1, 39), 5, 6]))
    assert all(torch.equal(a, b) for a, b in zip(before, (t for pair in pairs for t in pair), strict=True))


def test_a_copy_that_fails_costs_nothing_but_itself(model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail] posix_memalign: not enough memory")

    engine = Engine(model)
    for name in ("rows", "slid"):
        with monkeypatch.context() as broke:
            broke.setattr(Past, name, full)
            sequence = submit(engine, prompt(1, 40))
            finish(engine, sequence)
        assert sequence.error is None
        assert not engine.states
        assert (engine.prefixes.nbytes, engine.prefixes.tokens) == (0, 0)
    again = submit(engine, prompt(1, 40))
    assert finish(engine, again)[0] == cold(model, prompt(1, 40), chunk=512)
    assert again.num_reused == 0


def test_sizes_are_told_before_anything_is_copied(model: Gemma) -> None:
    cache: Cache = model.new_cache(100)
    for store in cache.stores.values():
        store.reserve(0, 40)
    cache.length = 40
    past = Past(cache)
    assert past.rows(3, 23).nbytes == past.rows_bytes(20)
    assert past.slid(35, 40).nbytes == past.slid_bytes(5)
    assert past.knows(0, 40)
    assert not past.knows(0, 41)
    for store in cache.stores.values():
        store.reserve(40, 60)
    assert not past.knows(20, 40) or not any(layer.window for layer in model.config.layers)
