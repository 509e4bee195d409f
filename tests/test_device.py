"""Models on another device than the CPU: with a card the same answers; without one, nothing is left behind on the CPU.

Torch's ``meta`` device computes nothing but shapes, and refuses a tensor of the CPU's beside one of its own as a card
would: a step over it shows every tensor that somebody forgot to put where the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pocketgem import LLM
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.errors import PromptError
from pocketgem.memory.place import Place
from pocketgem.model.build import build_model, empty_model
from pocketgem.model.cache import CPU, Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.still import StillDecoder
from pocketgem.parts import checked_device
from tests.test_parity import PROMPT_TOKENS, run
from tests.text_fixtures import gemma4_metadata
from tests.twins import BLOCKS, LAYOUTS, make_twin

META = torch.device("meta")
STATIC = [layout for layout in LAYOUTS if layout != "26B-A4B"]  # which experts run depends on numbers meta has not
CARDS = [pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def e2b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    source = open_checkpoint(resolve(make_twin("E2B", folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "e2b.gguf", StoredType.Q4_0, vocabulary=gemma4_metadata())
    return folder / "e2b.gguf"


class Shapes:
    """Rows of the right shape on a device, whatever the ids."""

    def __init__(self, width: int) -> None:
        self.width = width

    def rows(self, ids: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        assert ids.device == CPU
        return torch.empty(len(ids), self.width, device=META)

    def expect(self, ids: Sequence[int]) -> None:
        pass


def on_meta(folder: Path) -> Gemma:
    config = open_checkpoint(resolve(folder)).config
    model = empty_model(config).eval()
    model.tables.to(META)
    if model.per_layer is not None:
        model.per_layer.table = Shapes(model.per_layer.shape[0] * model.per_layer.shape[1])
    return model


@pytest.mark.parametrize("layout", STATIC)
@torch.inference_mode()
def test_no_tensor_of_a_step_is_left_on_the_cpu(layout: str, tmp_path: Path) -> None:
    model = on_meta(make_twin(layout, tmp_path).folder)
    caches = [model.new_cache(), model.new_cache()]
    for counts, wanted in ([9, 5], [0, 1]), ([12, 1], [1, 1]), ([1, 1], [1, 1]):  # over the window, ragged, decode
        step = Step.packed(caches, counts, logits=wanted)
        hidden = model(model.embed(torch.arange(sum(counts))), step)
        assert model.logits(hidden).shape == (sum(wanted), model.config.vocab_size)
        assert model.logits(hidden).device == META
        step.commit()
    assert all(store.k.device == META for store in caches[0].fork().stores.values())


@pytest.mark.parametrize("place", [Place.DEVICE, Place.RAM, Place.DISK])
def test_naming_the_cpu_changes_nothing(e2b: Path, place: Place) -> None:
    plain, named = (
        build_model(open_checkpoint(resolve(e2b)), torch.float32, ple=place, **options)
        for options in ({}, {"device": torch.device("cpu")})
    )
    assert torch.equal(run(plain, [PROMPT_TOKENS]), run(named, [PROMPT_TOKENS]))


def test_a_device_that_is_not_here_is_refused(e2b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PromptError, match="expected one of cpu, cuda, mps"):
        LLM.load(e2b, device="abacus")
    for name, present in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not present:
            with pytest.raises(PromptError, match="finds no such device here"):
                checked_device(name)
            assert main(["run", str(e2b), "hello", "--device", name, "-q"]) == 2
            assert "use cpu" in capsys.readouterr().err


# --- with a card


@pytest.mark.parametrize("device", CARDS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_card_gives_the_same_logits(layout: str, device: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(resolve(make_twin(layout, tmp_path).folder))
    here = run(build_model(checkpoint, torch.float32), [PROMPT_TOKENS])
    there = run(build_model(checkpoint, torch.float32, device=torch.device(device)), [7, 1, PROMPT_TOKENS - 8])
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", CARDS)
def test_rows_have_the_same_bits_on_a_card(e2b: Path, device: str) -> None:
    checkpoint, found = open_checkpoint(resolve(e2b)), []
    ids = torch.tensor([5, 3, 5, 0, 99])
    for place in (Place.DEVICE, Place.RAM, Place.DISK):
        model = build_model(checkpoint, torch.float32, ple=place, device=torch.device(device))
        assert model.per_layer is not None
        found.append(model.per_layer.identity(ids))
        assert found[-1].device.type == device
    plain = build_model(checkpoint, torch.float32).per_layer
    assert plain is not None
    assert all(torch.equal(rows.cpu(), plain.identity(ids)) for rows in found)


@pytest.mark.parametrize("device", CARDS)
def test_a_card_answers(e2b: Path, device: str) -> None:
    answers = [
        LLM.load(e2b, device=device, ple=place).generate("hello world", max_tokens=12, temperature=0).ids
        for place in ("device", "ram", "disk")
    ]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("device", CARDS)
def test_blocks_give_the_same_logits_on_a_card(e2b: Path, device: str) -> None:
    checkpoint, card = open_checkpoint(resolve(e2b)), torch.device(device)
    whole, kept = (
        run(build_model(checkpoint, torch.float32, device=card, blocks=kept), [PROMPT_TOKENS]) for kept in (False, True)
    )
    torch.testing.assert_close(kept, whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", CARDS)
@pytest.mark.parametrize("layout", STATIC)
def test_recorded_steps_write_what_single_ones_do(layout: str, device: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(resolve(make_twin(layout, tmp_path).folder))
    model = build_model(checkpoint, torch.float32, device=torch.device(device))
    request, written = Request("r", tuple(range(5, 26)), SamplingParams(max_tokens=40)), []
    for single in (None, StillDecoder(model)):
        model.shortcut = single
        engine = Engine(model, kept=0)
        sequence = engine.submit(request)
        while sequence.finish is None:
            engine.step()
        written.append(sequence.output_ids)
    assert written[0] == written[1]
