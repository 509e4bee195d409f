"""Plans: exact about what can be exact, near about the rest, and true to the budgets they were made for."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.memory import compare
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem import LLM, InputError, PromptError, kernels
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.cli.plan_svg import svg_of
from pocketgem.cli.run import passed_plan
from pocketgem.config import from_hf, released_config
from pocketgem.info.plan import Bar, answer, as_data, bars_of, held_by
from pocketgem.kernels.compute import Compute
from pocketgem.memory import program
from pocketgem.memory.fit import CAREFUL, Wish, can_budget, largest_context, least_expert_bytes, meets
from pocketgem.memory.holdings import holdings_as, holdings_of
from pocketgem.memory.kv_rows import Room, chunks_of, kv_costs
from pocketgem.memory.options import Options, plan_for
from pocketgem.memory.place import Place
from pocketgem.memory.plan import Placement, Plan, Setting, plan
from pocketgem.memory.program import Base
from pocketgem.memory.rows import HeldRows
from pocketgem.memory.weights import Form
from pocketgem.model import build_packed as build_packed_module
from pocketgem.model.build import build_model
from pocketgem.model.build_packed import build_packed
from pocketgem.model.cache import Cache, Step
from pocketgem.model.towers import Towers
from pocketgem.sizes import parse_size
from tests.cli_models import VOCAB, save_model, vocabulary
from tests.twins import BLOCKS, LAYOUTS, make_twin

MIB, GIB = 1 << 20, 1 << 30
BASE = Base(155 * MIB, 79 * MIB, True)
DENSE = Form(packed=False, kept=False, dtype=StoredType.F32, packs=False)
LAYOUT_NAMES = ("gemma-3-270m", "gemma-3n-E2B", "gemma-4-E2B", "gemma-4-26B-A4B", "gemma-4-31B")


@pytest.fixture(scope="module", params=list(LAYOUTS))
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A twin as Q4_0."""
    folder = tmp_path_factory.mktemp("plan")
    source = open_checkpoint(resolve(make_twin(request.param, folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", StoredType.Q4_0)
    return open_checkpoint(resolve(folder / "twin.gguf"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("plan") / "tiny")
    export_gguf(open_checkpoint(resolve(folder)), folder / "tiny.gguf", vocabulary=vocabulary())
    return folder / "tiny.gguf"


@pytest.fixture(autouse=True)
def no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is a constant here: asking for it takes a second each time."""
    monkeypatch.setattr(program, "base_of_a_new_process", lambda: BASE)


def sizes(made: Plan) -> dict[str, int]:
    return {line.name: line.size for line in made.lines}


# ---- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize(("tokens", "chunk"), [(300, 512), (1025, 200)])
def test_keys_and_values_are_what_the_real_cache_holds(layout: str, tokens: int, chunk: int) -> None:
    config = from_hf(released_config(layout), layout)
    cache = Cache(config, torch.bfloat16, limit=tokens)
    for _, count in chunks_of(tokens, chunk):
        step = Step.packed([cache], [count])
        for index in cache.stores:
            step.reserve(index)
        step.commit()
    assert sum(cost.held for cost in kv_costs(config, tokens, chunk, 2)) == cache.nbytes


@given(window=st.sampled_from([None, 8, 100, 512]), counts=st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_a_room_never_forgets_what_a_query_sees(window: int | None, counts: list[int]) -> None:
    room, start = Room.empty(window), 0
    for count in counts:
        room = room.with_room(start, count)
        assert room.first <= room.oldest(start)
        assert start + count - room.first <= room.capacity
        start += count


@pytest.mark.native
def test_packed_weights_are_planned_to_the_byte(quantised: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    original = build_packed_module.packed_weights

    def watched(parts: Any, **more: Any) -> Any:
        found = original(parts, **more)
        seen.update({name: found.bytes(name).numel() for name in parts})
        return found

    monkeypatch.setattr(build_packed_module, "packed_weights", watched)
    monkeypatch.setattr(build_packed_module, "fuse", lambda model, compute: None)  # it takes norms out of torch's sight
    model, _ = build_packed(quantised, Compute(str(kernels.choice().name), 1))
    held = holdings_of(quantised, "twin")
    form = Form(packed=True, kept=False, dtype=StoredType.F32)
    lines = sizes(plan(held, Setting(64, form), Placement(), BASE))
    small = sum(p.nbytes for p in model.parameters())  # norms and scalars, all that torch holds here
    plain = sum(t.stored for t in held.used if t.is_matrix and not t.in_blocks)  # read from the file as they are
    weights = sum(lines.get(name, 0) for name in ("head", "layers", "experts"))
    assert weights == sum(seen.values()) + small + plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_unpacked_weights_are_planned_to_the_byte(quantised: Checkpoint, dtype: torch.dtype) -> None:
    model = build_model(quantised, dtype)
    stored = {torch.bfloat16: StoredType.BF16, torch.float32: StoredType.F32}[dtype]
    made = plan(holdings_of(quantised, "twin"), Setting(64, replace(DENSE, dtype=stored)), Placement(), BASE)
    real = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    planned = sum(line.size for line in made.lines if line.section == "weights" and line.place == "ram")
    assert planned == sum(real.values())


def test_a_table_in_ram_takes_its_stored_bytes(tmp_path: Path) -> None:
    source = open_checkpoint(resolve(make_twin("E2B", tmp_path / "twin", BLOCKS).folder))
    export_gguf(source, tmp_path / "twin.gguf", StoredType.Q4_0)
    checkpoint = open_checkpoint(resolve(tmp_path / "twin.gguf"))
    made = plan(holdings_of(checkpoint, "twin"), Setting(64, DENSE), Placement("ram"), BASE)
    model = build_model(checkpoint, torch.float32, ple=Place.RAM)
    assert model.per_layer is not None
    table = model.per_layer.table
    assert isinstance(table, HeldRows)
    assert sizes(made)["per-layer table"] == table._data.nbytes
    assert sizes(plan(made.held, made.setting, Placement("disk"), BASE))["per-layer table"] <= table._data.nbytes


def test_a_layout_is_planned_as_a_file_of_that_type_would_be(quantised: Checkpoint) -> None:
    held = holdings_of(quantised, "twin")
    imagined = holdings_as(quantised.config, StoredType.Q4_0, "twin")
    same = {name for name, tensor in held.tensors.items() if name != "embed_tokens.weight"}
    assert {name: held.tensors[name].stored for name in same} == {name: imagined.tensors[name].stored for name in same}


# ---- the peak --------------------------------------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.skipif(not program.status(), reason="this system does not count a process's peak memory")
def test_the_peak_of_the_real_model_is_as_planned() -> None:
    found = compare("gemma-3-270m", 640, threads=2)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.05)
    later = found["phases"]["answers after it"]
    assert later == pytest.approx(found["peaks"]["later"], rel=0.1)


def test_the_base_is_asked_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = program.base_of_a_new_process()
    assert found.measured == bool(program.status())
    assert 50 * MIB < found.private < 2 * GIB
    monkeypatch.setattr(program, "_ASK", "raise SystemExit(3)")
    assert program.base_of_a_new_process() == Base(*program.USUAL, False)


def test_mapped_and_private_bytes_are_told_apart() -> None:
    made = planned("gemma-4-E2B", Wish(context=4096))
    running = made.phase("the first answer")
    if made.setting.form.packed:
        assert running.mapped > 1.3e9  # the weights, in the file that keeps them
        assert made.phase("packing, at the first start").passing > 0
    assert made.needed <= made.peak == max(phase.total for phase in made.phases)


# ---- budgets ---------------------------------------------------------------------------------------------------------


def planned(model: str, wish: Wish, **more: Any) -> Plan:
    return plan_for(held_by(model), wish, Options(threads=2, **more), BASE)


@pytest.mark.native
@settings(deadline=None, max_examples=25)
@given(
    model=st.sampled_from(LAYOUT_NAMES),
    memory=st.integers(256 * MIB, 40 * GIB),
    context=st.sampled_from([None, 1024, 30_000]),
    sequences=st.sampled_from([1, 4]),
)
def test_a_budget_is_met_or_refused_with_one_that_is_met(
    model: str, memory: int, context: int | None, sequences: int
) -> None:
    wish = Wish(memory=memory, context=context)
    try:
        made = planned(model, wish, sequences=sequences)
    except InputError as error:
        found = re.search(r"(?P<size>[\d.]+ [GM]iB) is the smallest budget that can be met", str(error))
        assert found is not None
        enough = parse_size(found["size"])
        assert enough > memory
        tokens = re.search(r"a context of ([\d,]+) it needs", str(error))
        assert tokens is not None
        again = replace(wish, memory=enough, context=int(tokens[1].replace(",", "")))
        assert planned(model, again, sequences=sequences).needed <= enough
    else:
        assert made.needed <= memory
        assert context in (None, made.setting.context)


@pytest.mark.native
def test_the_context_is_the_largest_that_fits() -> None:
    wish = Wish(memory=4 * GIB)
    made = planned("gemma-4-E4B", wish)
    assert meets(made, wish)
    more = replace(made.setting, context=made.setting.context + 256)
    assert made.needed <= CAREFUL * 4 * GIB < plan(made.held, more, made.placement, BASE).needed
    assert largest_context(made.held, made.setting, wish, BASE, made.placement) == made.setting.context


@pytest.mark.native
def test_experts_get_what_the_rest_leaves() -> None:
    made = planned("gemma-4-26B-A4B", Wish(memory=6 * GIB, context=4096))
    budget = made.placement.expert_bytes
    assert budget is not None
    assert least_expert_bytes(made.held) <= budget < 6 * GIB
    assert made.needed == pytest.approx(CAREFUL * 6 * GIB, abs=2 * MIB)
    assert planned("gemma-4-26B-A4B", Wish(memory=20 * GIB, context=4096)).placement.expert_bytes is None
    wish = Wish(memory=6 * GIB)
    assert planned("gemma-4-26B-A4B", wish).setting.context == 4096  # not more, at the experts' cost
    assert "The first start's peak may show" in answer(planned("gemma-4-26B-A4B", wish), wish)


@pytest.mark.native
def test_what_helps_is_said_with_what_it_saves() -> None:
    with pytest.raises(InputError, match=r"smallest budget that can be met.*weights as Q4_0 saves [\d.]+ GiB, enough"):
        plan_for(held_by("gemma-4-31B", StoredType.BF16), Wish(memory=30 * GIB, context=4096), Options(), BASE)
    with pytest.raises(InputError, match=r"one sequence at a time saves"):
        planned("gemma-4-E2B", Wish(memory=1 * GIB, context=20_000), sequences=8)


def test_a_card_is_asked_about_by_itself() -> None:
    wish = Wish(device_memory=80 * GIB, context=4096)
    made = planned("gemma-4-31B", wish, device=True)
    weights = sum(line.size for line in made.lines if line.section == "weights" and line.place == "device")
    assert weights == pytest.approx(2 * 30.7e9, rel=0.01)  # bfloat16, whatever the file has
    assert weights < made.on_device < 80 * GIB
    assert "Yes, it fits" in answer(made, wish)
    tight = planned("gemma-4-31B", Wish(device_memory=24 * GIB, context=4096), device=True)
    assert tight.setting.form.blocks
    assert tight.on_device < 24 * GIB
    with pytest.raises(InputError, match=r"12\.00 GiB on the card are not enough"):
        planned("gemma-4-31B", Wish(device_memory=12 * GIB, context=4096), device=True)
    with pytest.raises(InputError, match=r"24\.00 GiB on the card are not enough.*--dtype stored\) saves .* enough"):
        plan_for(held_by("gemma-4-31B", StoredType.BF16), Wish(device_memory=24 * GIB), Options(device=True), BASE)
    assert planned("gemma-4-E2B", Wish(device_memory=8 * GIB), device=True).setting.context > 4096


def test_memory_for_experts_needs_experts() -> None:
    with pytest.raises(InputError, match="routed experts"):
        planned("gemma-4-E2B", Wish(expert_bytes=GIB))
    held = held_by("gemma-4-26B-A4B")
    if can_budget(held, Form(True, True, StoredType.F32)) and kernels.native is not None:
        with pytest.raises(InputError, match="too little: one token's take"):
            planned("gemma-4-26B-A4B", Wish(expert_bytes=1))
    with pytest.raises(PromptError, match="no per-layer embeddings"):
        planned("gemma-4-31B", Wish(ple=Place.RAM))


# ---- towers ----------------------------------------------------------------------------------------------------------


def test_towers_are_named_and_count_where_they_will_be_used() -> None:
    """E4B's are 169 M and 307 M parameters, released as bfloat16."""
    without, seeing = (planned("gemma-4-E4B", Wish(context=4096), media=media) for media in (set(), {"vision"}))
    idle, used = (next(x for x in made.lines if x.name == "vision tower") for made in (without, seeing))
    assert (idle.size, idle.place) == (0, "disk")
    assert "at the first image" in idle.why
    assert used.stored == pytest.approx(2 * 169.3e6, rel=0.01)
    assert used.size == pytest.approx(used.stored, rel=0.01)
    work = sizes(seeing)["one image"]
    assert 260 * MIB < work < 350 * MIB  # measured by benchmarks/towers.py, for a few patches less
    assert seeing.peak == without.peak + used.size + work
    assert sizes(seeing)["audio tower"] == 0
    both = planned("gemma-4-E4B", Wish(context=4096), media={"vision", "audio"})
    assert sizes(both)["audio tower"] == pytest.approx(2 * 308e6, rel=0.02)
    assert "vision tower" not in sizes(planned("gemma-3n-E2B", Wish(context=4096)))


def test_a_files_tower_is_planned_to_the_byte(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(resolve(save_model(tmp_path / "eyes", vision=True)))
    made = plan_for(holdings_of(checkpoint, "eyes"), Wish(), Options(media=frozenset({"vision"})), BASE)
    towers = Towers.of(checkpoint)
    side = torch.arange(4)
    places = torch.cartesian_prod(side[:2], side[:2]).flip(1)
    assert towers.see(torch.zeros(4, 768), places).shape == (4, 48)
    assert sizes(made)["vision tower"] == towers.nbytes


# ---- LLM.load --------------------------------------------------------------------------------------------------------


def test_load_keeps_to_its_plan(tiny: Path) -> None:
    llm = LLM.load(tiny, memory="8GiB", sequences=2)
    assert llm.plan is not None
    assert llm.engine.context == llm.plan.setting.context
    assert llm.engine.scheduler.max_running == 2
    assert llm.engine.prefixes.budget == llm.plan.kept_bytes
    assert llm.plan.placement.kept == 1
    assert llm.generate("qu", max_tokens=3).ids
    assert LLM.load(tiny, memory=8 * GIB, context=64).engine.context == 64
    assert LLM.load(tiny).plan is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": "1MiB"}, "smallest budget that can be met"),
        ({"memory": "much"}, "not a size in bytes"),
        ({"memory": 0}, "memory is"),
        ({"memory": 1.5}, "memory is"),
        ({"memory": "8GiB", "sequences": 0}, "sequences is"),
        ({"memory": "8GiB", "dtype": torch.int8}, "dtype is"),
        ({"memory": "8GiB", "expert_memory": GIB}, "routed experts"),
    ],
)
def test_load_refuses_before_it_reads(tiny: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        LLM.load(tiny, **options)


def test_a_run_says_when_its_plan_was_wrong(tiny: Path) -> None:
    made = LLM.load(tiny, memory="8GiB").plan
    assert made is not None
    assert passed_plan(None) is None
    assert passed_plan(replace(made, phases=(replace(made.phases[0], private=64 * GIB),))) is None
    if program.status():
        small = replace(made, phases=(replace(made.phases[0], private=MIB, mapped=0),))
        assert "the plan had said 1.0 MiB" in (passed_plan(small) or "")


# ---- the command line ------------------------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_plan_draws_a_table_bars_and_an_answer(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, str(tiny), "--context", "64", "--memory", "4GiB")
    assert (code, err) == (0, "")
    for words in ("keys and values", "RAM", "of 4.00 GiB", "predicted peak (VmHWM)", "Yes, it fits", "tokenizer"):
        assert words in out
    assert f"{VOCAB} tokens" in out


def test_plan_as_json_adds_up(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, str(tiny), "--context", "64", "--json")
    data = json.loads(out)
    assert (code, data["context"], data["memory"]) == (0, 64, None)
    assert data["peak"] == max(phase["total"] for phase in data["phases"])
    running = sum(line["size"] for line in data["lines"])
    assert data["phases"][-1]["total"] >= running  # where torch computes, pages of the file beside them
    assert set(data["placement"]) == {"ple", "expert_bytes", "kept"}


def test_plan_refuses_with_exit_code_2(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        (["gemma-4-31B", "--memory", "1GiB"], "smallest budget"),
        ([str(tiny), "--memory", "lots"], "not a size"),
        ([str(tiny), "--device-memory", "1GiB"], "--device cuda"),
        ([str(tiny), "--format", "q9"], "give one of f32"),
        ([str(tiny), "--context", "99999999"], "context is 99999999"),
        ([str(tiny), "--svg", "no/such/folder/x.svg"], "a folder that exists"),
        (["no-such-model"], "no such file"),
    ]
    for arguments, told in wrong:
        code, out, err = said(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert told in err


def test_a_picture_is_whole_and_harmless(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "plan.svg"
    assert said(capsys, str(tiny), "--context", "64", "--svg", str(target))[0] == 0
    root = ElementTree.fromstring(target.read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]
    odd = svg_of("<script>\x1b[2J&", "a < b", [Bar("RAM", {"weights": GIB, "<x>": 1}, 2 * GIB)])
    assert "<script" not in odd
    ElementTree.fromstring(odd)


def test_bars_hold_every_byte_in_memory() -> None:
    wish = Wish(context=4096)
    made = planned("gemma-4-26B-A4B", wish)
    memory = next(bar for bar in bars_of(made, wish) if bar.place == "RAM")
    assert memory.total == made.at("ram") + made.at("disk")
    assert as_data(made, wish)["fits"] is True
