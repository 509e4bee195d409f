"""Many adapters on one model: each request gets the ids it would get alone, whoever is in the batch with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from pocketgem import LLM
from pocketgem.adapters.peft import CONFIG, open_adapter
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.adapters.wardrobe import TEMPLATE
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.engine.request import FinishReason
from pocketgem.errors import BusyError, FormatError, InputError, PromptError, TemplateError, WeightsError
from pocketgem.model.build import build_model
from pocketgem.model.cache import Step
from pocketgem.model.fused import FusedLayer
from pocketgem.model.lora import attach_
from pocketgem.model.low_rank import LowRank, targets
from pocketgem.model.mix import NOBODY, Mix, mix_of
from pocketgem.serve.models import Source
from tests.serving import Running, running
from tests.test_parity import PROMPT_TOKENS, load, prompt, run
from tests.text_fixtures import spm_metadata
from tests.twins import BLOCKS, VOCAB, make_twin

MANY = 16
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 10, "stop_ids": frozenset()}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def random_deltas(shapes: dict[str, tuple[int, ...]], seed: int, size: float = 0.05) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)

    def delta(shape: tuple[int, ...]) -> LowRank:
        *stack, out, inside = shape
        rank = 3 + seed % 4
        a, b = (
            torch.randn(*stack, rank, inside, generator=generator),
            torch.randn(*stack, out, rank, generator=generator),
        )
        return LowRank(a, b * size, 0.5)

    return {name: delta(shape) for name, shape in shapes.items() if name.split(".")[-1] in KINDS}


def save(folder: Path, deltas: dict[str, LowRank], **more: object) -> Path:
    rank = next(iter(deltas.values())).A.shape[0]
    save_adapter(folder, deltas, Label("twin", rank, 0.5 * rank))
    if more:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **more}))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 twin in blocks, and sixteen adapters for it."""
    folder = tmp_path_factory.mktemp("many")
    source = open_checkpoint(resolve(make_twin("gemma3", folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", StoredType.Q8_0, vocabulary=spm_metadata())
    shapes = targets(build_model(source, torch.float32))
    for number in range(MANY):
        save(folder / f"a{number}", random_deltas(shapes, number))
    return folder


def loaded(files: Path, **options: Any) -> LLM:
    llm = LLM.load(files / "twin.gguf", **options)
    for number in range(MANY):
        llm.adapters.offer(f"a{number}", files / f"a{number}")
    return llm


@pytest.fixture(scope="module")
def llm(files: Path) -> LLM:
    return loaded(files)


def prompts(count: int, length: int = 11) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, VOCAB, (length + i % 5,), generator=generator).tolist() for i in range(count)]


# ---- one batch -------------------------------------------------------------------------------------------------------


@pytest.mark.native
def test_sixteen_in_a_batch_each_as_alone(llm: LLM) -> None:
    texts, names = prompts(MANY + 2), [*(f"a{number}" for number in range(MANY)), "", ""]
    together = llm.generate_many(texts, adapter=names, **SEEDED)
    llm.engine.prefixes.clear()
    alone = [llm.generate(text, adapter=name, **SEEDED) for text, name in zip(texts, names, strict=True)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert isinstance(llm.model.layers[0], FusedLayer), "an adapter took the layers apart"
    llm.engine.prefixes.clear()
    same_prompt = llm.generate_many([texts[0]] * 4, adapter=["a1", "a2", "", "a3"], **SEEDED)
    assert len({one.ids for one in same_prompt}) == 4, "adapters that change nothing prove nothing"


@pytest.mark.native
def test_rows_of_no_adapter_are_the_bases_to_the_bit(files: Path, llm: LLM) -> None:
    bare = LLM.load(files / "twin.gguf")
    number = llm.adapters.take("a3").worn.number
    mix = mix_of(llm.model)
    assert mix is not None
    tokens = prompt()
    expected = run(bare.model, [PROMPT_TOKENS])
    for owners in ([NOBODY] * PROMPT_TOKENS, [number] * 9 + [NOBODY] * (PROMPT_TOKENS - 9)):
        caches = [llm.model.new_cache(), llm.model.new_cache()]
        both = torch.tensor([*tokens, *tokens])
        step = Step.packed(caches, [PROMPT_TOKENS] * 2, logits=[PROMPT_TOKENS] * 2)
        with torch.inference_mode(), mix.rows([*owners, *[NOBODY] * PROMPT_TOKENS]):
            found = llm.model.logits(llm.model(llm.model.embed(both), step))
        assert torch.equal(found[PROMPT_TOKENS:], expected)
        assert torch.equal(found[:PROMPT_TOKENS], expected) == (number not in owners)


@pytest.mark.native
@pytest.mark.parametrize("layout", ["gemma3", "E2B", "12B", "26B-A4B", "31B"])
def test_mixed_logits_are_those_of_each_adapter_alone(layout: str, tmp_path: Path) -> None:
    """Over packed weights to the bit, and near the same change of the same weights unpacked; zero changes no bit."""
    source = open_checkpoint(resolve(make_twin(layout, tmp_path / "twin", BLOCKS).folder))
    export_gguf(source, tmp_path / "twin.gguf", StoredType.Q8_0, vocabulary=spm_metadata())
    model, checkpoint = LLM.load(tmp_path / "twin.gguf").model, open_checkpoint(resolve(tmp_path / "twin.gguf"))
    shapes = {name: shape for name, shape in targets(model).items() if name != "lm_head"}
    before = run(model, [PROMPT_TOKENS])
    mix = Mix(model)
    changes = [random_deltas(shapes, seed, 0.02) for seed in (1, 2)]
    numbers = [mix.put(deltas) for deltas in changes]
    nothing = mix.put({name: replace(one, B=torch.zeros_like(one.B)) for name, one in changes[0].items()})
    alone = [logits(mix, [[number]]) for number in (*numbers, nothing, NOBODY)]
    assert torch.equal(alone[2], before), "a change of nothing changed something"
    assert torch.equal(alone[3], before)
    together = logits(mix, [[numbers[1]], [NOBODY], [numbers[0]], [nothing]])
    for found, expected in zip(together.split(PROMPT_TOKENS), (alone[1], before, alone[0], before), strict=True):
        assert torch.equal(found, expected)
    plain = build_model(checkpoint, torch.float32)
    rounding = distance(before, run(plain, [PROMPT_TOKENS]))  # of activations to int8
    attach_(plain, changes[0])
    assert distance(alone[0], run(plain, [PROMPT_TOKENS])) < 3 * rounding
    assert distance(alone[0], before) > 3 * rounding
    mix.close()
    assert torch.equal(run(model, [PROMPT_TOKENS]), before)
    assert mix_of(model) is None


@torch.inference_mode()
def logits(mix: Mix, owners: list[list[int]]) -> torch.Tensor:
    """Of the prompt for each owner, in one pass."""
    model, count = mix.model, len(owners)
    step = Step.packed([model.new_cache() for _ in owners], [PROMPT_TOKENS] * count, logits=[PROMPT_TOKENS] * count)
    with mix.rows([owner for (owner,) in owners for _ in range(PROMPT_TOKENS)]):
        return model.logits(model(model.embed(torch.tensor(prompt() * count)), step))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt())


@pytest.mark.parametrize("layout", ["gemma3n", "26B-A4B"])
def test_over_plain_weights_experts_are_mixed_too(layout: str, tmp_path: Path) -> None:
    model = load(make_twin(layout, tmp_path / "twin").folder)
    shapes = dict(targets(model))
    before, mix = run(model, [PROMPT_TOKENS]), Mix(model)
    changes = [random_deltas(shapes, seed) for seed in (1, 2)]
    changes[0] |= {  # stacks of experts
        name: LowRank(torch.randn(shape[0], 2, shape[2]), torch.randn(*shape[:2], 2) * 0.05, 1.0)
        for name, shape in shapes.items()
        if len(shape) == 3
    }
    one, two = (mix.put(deltas) for deltas in changes)
    found = logits(mix, [[two], [NOBODY], [one]]).split(PROMPT_TOKENS)
    torch.testing.assert_close(found[1], before, atol=1e-4, rtol=0)
    mix.close()
    for got, deltas in ((found[2], changes[0]), (found[0], changes[1])):
        twin = load(tmp_path / "twin")
        attach_(twin, deltas)
        torch.testing.assert_close(got, run(twin, [PROMPT_TOKENS]), atol=1e-4, rtol=0)
    assert torch.equal(run(model, [PROMPT_TOKENS]), before), "something of an adapter stayed"


def test_dora_is_mixed_over_plain_weights(tmp_path: Path) -> None:
    model = load(make_twin("gemma3", tmp_path / "twin").folder)
    deltas = random_deltas(targets(model), 1)
    lengthened = {name: replace(one, magnitude=torch.rand(one.shape[0]) + 0.5) for name, one in deltas.items()}
    twin = load(tmp_path / "twin")
    attach_(twin, lengthened)
    mix = Mix(model)
    number = mix.put(lengthened)
    found = logits(mix, [[NOBODY], [number]]).split(PROMPT_TOKENS)
    torch.testing.assert_close(found[1], run(twin, [PROMPT_TOKENS]), atol=1e-4, rtol=0)


# ---- pasts -----------------------------------------------------------------------------------------------------------


@pytest.mark.native
def test_after_another_adapter_a_request_is_as_cold(files: Path) -> None:
    cold, warm = loaded(files), loaded(files)
    text = prompts(1, 40)[0]
    expected = cold.generate(text, adapter="a1", logprobs=3, **SEEDED)
    for name in ("a2", "", "a3"):
        warm.generate(text, adapter=name, **SEEDED)
    found = warm.generate(text, adapter="a1", logprobs=3, **SEEDED)
    assert found.logprobs == expected.logprobs, "another adapter's past, or its numbers, reached this request"
    assert found.stats is not None
    assert found.stats.reused_tokens == 0
    assert found.stats.reuse_reason == "another adapter's past is kept"
    again = warm.generate(text, adapter="a1", **SEEDED)
    assert again.ids == expected.ids
    assert again.stats is not None
    assert again.stats.reused_tokens > 30


# ---- coming and going ------------------------------------------------------------------------------------------------


@pytest.mark.native
def test_the_budget_drops_who_was_of_use_longest_ago(files: Path) -> None:
    size = loaded(files).adapters.take("a3").worn.nbytes
    llm = loaded(files, adapter_memory=int(3.5 * size))
    for name in ("a3", "a7", "a11", "a3", "a15"):  # of one rank, and so of one size
        llm.generate(prompts(1)[0], adapter=name, **SEEDED)
    assert [name for name in llm.adapters.names if llm.adapters.is_loaded(name)] == ["a3", "a11", "a15"]
    held = [llm.adapters.take(name) for name in ("a3", "a11", "a15")]
    with pytest.raises(BusyError, match="in use"):
        llm.generate(prompts(1)[0], adapter="a7", **SEEDED)
    with pytest.raises(BusyError, match="'a3' is in use"):
        llm.adapters.drop("a3")
    del held[0]
    assert llm.generate(prompts(1)[0], adapter="a7", **SEEDED).ids
    assert not llm.adapters.is_loaded("a3")
    with pytest.raises(InputError, match="all adapters may take"):
        loaded(files, adapter_memory=size // 2).adapters.take("a3")


@pytest.mark.native
def test_a_request_that_waits_keeps_its_adapter(files: Path) -> None:
    size = loaded(files).adapters.take("a3").worn.nbytes
    llm = loaded(files, adapter_memory=int(1.5 * size))
    request = llm.request(prompts(1)[0], adapter="a3", **SEEDED)
    with pytest.raises(BusyError):
        llm.adapters.take("a7")
    run_ = llm.flights.start(request)
    del request
    with pytest.raises(BusyError):
        llm.adapters.take("a7")
    assert list(llm.flights.outputs(run_))
    assert run_.finish is FinishReason.LENGTH
    del run_
    assert llm.adapters.take("a7")


@pytest.mark.native
def test_when_the_last_is_dropped_the_model_is_as_before(files: Path) -> None:
    llm = LLM.load(files / "twin.gguf")
    before = run(llm.model, [PROMPT_TOKENS])
    llm.adapters.add("one", files / "a1")
    llm.adapters.add("two", files / "a2")
    with pytest.raises(PromptError, match="taken"):
        llm.adapters.add("one", files / "a3")
    for name in ("one", "two"):
        llm.adapters.drop(name)
    assert mix_of(llm.model) is None
    assert torch.equal(run(llm.model, [PROMPT_TOKENS]), before)
    with pytest.raises(InputError, match="no such adapter"):
        llm.generate("a", adapter="one")


@pytest.mark.native
def test_one_that_does_nothing_is_refused_and_not_kept(files: Path, tmp_path: Path) -> None:
    llm = LLM.load(files / "twin.gguf")
    idle = {name: replace(one, B=one.B * 1e-30) for name, one in open_adapter(files / "a1").deltas.items()}
    with pytest.raises(WeightsError, match="no effect"):
        llm.adapters.add("idle", save(tmp_path / "idle", idle))
    assert llm.adapters.names == []
    assert mix_of(llm.model) is None


@pytest.mark.native
def test_the_one_of_load_answers_who_names_none(files: Path) -> None:
    llm, text = loaded(files, adapter=files / "a4"), prompts(1)[0]
    named = llm.generate(text, adapter="a4", **SEEDED).ids
    assert llm.generate(text, **SEEDED).ids == named != llm.generate(text, adapter="", **SEEDED).ids
    scored = [llm.score(text, adapter=name).logprobs for name in (None, "a4", "")]
    assert scored[0] == scored[1] != scored[2]


def test_a_base_without_a_template_chats_by_its_adapters(files: Path, tmp_path: Path) -> None:
    llm = LLM.load(files / "twin.gguf", dtype=torch.float32)
    folder = save(tmp_path / "chats", dict(open_adapter(files / "a1").deltas))
    (folder / TEMPLATE).write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}answer:")
    llm.adapters.offer("chats", folder)
    messages = [{"role": "user", "content": "hello"}]
    assert not llm.can_chat
    with pytest.raises(TemplateError):
        llm.chat_prompt(messages)
    asked = llm.chat_prompt(messages, adapter="chats")
    assert llm.detokenize(asked).endswith("hello\nanswer:")
    assert llm.chat(messages, adapter="chats", **SEEDED).ids == llm.generate(asked, adapter="chats", **SEEDED).ids


# ---- activated LoRA --------------------------------------------------------------------------------------------------


def alora(tmp_path: Path, invocation: list[int]) -> tuple[Path, Path, Any]:
    """A plain twin's folder, an adapter that begins to act at ``invocation``, and PEFT over both."""
    twin = make_twin("gemma3", tmp_path / "twin")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(KINDS), init_lora_weights=False, task_type="CAUSAL_LM",
        alora_invocation_tokens=invocation,
    )  # fmt: skip
    torch.manual_seed(7)
    model = peft.get_peft_model(twin.oracle, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "adapter")
    return twin.folder, tmp_path / "adapter", model


@pytest.mark.parametrize("at", [[12], [3, 12], [0], []], ids=["once", "the last of two", "at the start", "nowhere"])
def test_an_activated_adapter_begins_where_pefts_does(at: list[int], tmp_path: Path) -> None:
    invocation = [501, 502, 503]
    folder, adapter, oracle = alora(tmp_path, invocation)
    source = open_checkpoint(resolve(folder))
    export_gguf(source, tmp_path / "twin.gguf", StoredType.F32, vocabulary=spm_metadata())
    llm = LLM.load(tmp_path / "twin.gguf", dtype=torch.float32)
    llm.adapters.add("late", adapter)
    ids = [id if id not in invocation else 9 for id in prompts(1, 20)[0]]
    for start in at:
        ids[start : start + 3] = invocation
    with torch.no_grad():
        made = oracle.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    expected = made[0, len(ids) :].tolist()
    found = llm.generate(ids, adapter="late", temperature=0, max_tokens=6, stop_ids=frozenset())
    assert list(found.ids) == expected
    known = torch.tensor([*ids, *expected])
    with torch.no_grad():
        scores = oracle(input_ids=known[None], use_cache=False).logits[0].log_softmax(-1)
    late, base = (llm.score(known.tolist(), adapter=name).logprobs for name in ("late", ""))
    torch.testing.assert_close(torch.tensor(late), scores[:-1].gather(1, known[1:, None])[:, 0], atol=1e-4, rtol=0)
    begins = at[-1] if at else len(known)
    assert late[:begins] == pytest.approx(base[:begins], abs=1e-4)
    assert all(abs(a - b) > 1e-4 for a, b in zip(late[begins:], base[begins:], strict=True))


@pytest.mark.native
def test_the_bases_past_is_used_up_to_the_invocation(files: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "late", dict(open_adapter(files / "a1").deltas), alora_invocation_tokens=[501, 502])
    llm, cold = LLM.load(files / "twin.gguf"), LLM.load(files / "twin.gguf")
    for one in (llm, cold):
        one.adapters.offer("late", folder)
    text = [id for id in prompts(1, 60)[0] if id < 500]
    asked = [*text, 501, 502, 7, 8]
    llm.generate(text, **SEEDED)
    found, expected = (one.generate(asked, adapter="late", **SEEDED) for one in (llm, cold))
    assert found.ids == expected.ids
    assert found.stats is not None
    assert len(text) - 1 <= found.stats.reused_tokens <= len(text), "the base's past was not used"
    # the other way round: the part before the invocation is a past of the base
    again = cold.generate([*text, 30, 31, 32], **SEEDED)
    assert again.stats is not None
    assert again.stats.reused_tokens >= len(text) - 1
    assert again.ids == llm.generate([*text, 30, 31, 32], **SEEDED).ids
    # an earlier invocation's past is another past: there the adapter acted from another place on
    longer = [*asked, 501, 502, 9]
    assert llm.generate(longer, adapter="late", **SEEDED).ids == cold_ids(files, folder, longer)


def cold_ids(files: Path, folder: Path, ids: list[int]) -> tuple[int, ...]:
    llm = LLM.load(files / "twin.gguf")
    llm.adapters.offer("late", folder)
    return llm.generate(ids, adapter="late", **SEEDED).ids


@pytest.mark.parametrize("tokens", ["text", [], [VOCAB + 10**6], [True], [1] * 1000])
def test_an_invocation_that_is_none_is_refused(files: Path, tokens: object, tmp_path: Path) -> None:
    folder = save(tmp_path / "bad", dict(open_adapter(files / "a1").deltas), alora_invocation_tokens=tokens)
    with pytest.raises(FormatError, match="alora_invocation_tokens"):
        LLM.load(files / "twin.gguf", dtype=torch.float32).adapters.add("bad", folder)


# ---- served ----------------------------------------------------------------------------------------------------------

ROUTES = {
    "/v1/completions": {"prompt": "hello world", "max_tokens": 8},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8},
    "/v1/responses": {"input": "hello", "max_output_tokens": 8},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8},
}


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A base with two adapters that bring a template."""
    folders = {}
    for name in ("a1", "a2"):
        folder = folders[name] = tmp_path_factory.mktemp("served") / name
        save(folder, dict(open_adapter(files / name).deltas))
        (folder / TEMPLATE).write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}answer:")
    source = Source("twin", lambda: LLM.load(files / "twin.gguf"), adapters=folders)
    with running({}, sources=[source]) as found:
        yield found


def text_of(answer: dict[str, Any]) -> str:
    """Of an answer of any dialect."""
    for path in (("choices", 0, "text"), ("choices", 0, "message", "content"), ("output", 0, "content", 0, "text")):
        found: Any = answer
        try:
            for key in path:
                found = found[key]
        except (KeyError, IndexError, TypeError):
            continue
        return str(found)
    return str(answer["content"][0]["text"])


@pytest.mark.native
def test_the_server_answers_with_two_at_once(server: Running) -> None:
    for path, body in ROUTES.items():
        body = {**body, "temperature": 0}

        def ask(more: dict[str, object], path: str = path, body: dict[str, Any] = body) -> dict[str, Any]:
            answer = server.http.post(path, json={**body, **more})
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        wishes: list[dict[str, object]] = [
            {"model": "twin:a1"},
            {"model": "twin:a2"},
            {"model": "twin", "adapter": "a1"},
        ]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, wishes * 2))
        texts = [text_of(answer) for answer in answers]
        assert texts[0] == texts[2] == texts[3] == texts[5] != texts[1] == texts[4], path
        assert [answer["model"] for answer in answers[:2]] == ["twin:a1", "twin:a2"]


@pytest.mark.native
def test_the_server_lists_adapters_and_knows_no_others(server: Running) -> None:
    listed = {one["id"]: one for one in server.http.get("/v1/models").json()["data"]}
    assert list(listed) == ["twin", "twin:a1", "twin:a2"]
    assert listed["twin:a1"]["parent"] == "twin"
    assert server.http.get("/v1/models/twin:a2").json()["id"] == "twin:a2"
    for more, field in (({"model": "twin:a9"}, "model"), ({"model": "twin", "adapter": "/etc"}, "adapter")):
        for path, body in ROUTES.items():
            refused = server.http.post(path, json={**body, **more})
            assert refused.status_code == 404, path
            if path != "/v1/messages":
                assert refused.json()["error"]["code"] == "adapter_not_found"
                assert refused.json()["error"]["param"] == field
    both = server.http.post("/v1/completions", json={"prompt": "a", "model": "twin:a1", "adapter": "a2"})
    assert both.status_code == 400
    chat = server.http.post("/v1/chat/completions", json={**ROUTES["/v1/chat/completions"], "model": "twin"})
    assert chat.status_code == 400, "the base has no template"
