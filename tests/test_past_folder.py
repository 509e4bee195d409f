"""Pasts on disk: they come back bit for bit, or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketgem import LLM, InputError, SamplingParams
from pocketgem.engine import past_folder
from pocketgem.engine.loop import DAMAGED, Engine
from pocketgem.engine.past_file import MAGIC, START
from pocketgem.engine.past_folder import PastFolder
from pocketgem.engine.prefix import Kept, Scope
from pocketgem.engine.prefix_tree import Ids
from pocketgem.engine.reach import Slide
from pocketgem.engine.request import Request, Sequence
from pocketgem.engine.scheduler import Scheduler
from pocketgem.model.cache import Cache
from pocketgem.model.gemma import Gemma
from pocketgem.model.past import Past, Rows, Stored
from tests.cli_models import save_model
from tests.test_laws import prompt
from tests.test_parity import load
from tests.twins import make_twin

HERE = Scope()
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has neither owners nor modes like these")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return load(make_twin("E2B", tmp_path_factory.mktemp("twin")).folder)


def opened(path: Path, model: Gemma, *, identity: str = "weights", budget: int = 1 << 30) -> PastFolder:
    return PastFolder(path, budget, identity, model.new_cache(), Slide.of(model.config), least=1)


def filled(model: Gemma, length: int) -> Cache:
    """A cache of random numbers."""
    cache = model.new_cache()
    generator = torch.Generator().manual_seed(length)
    for store in cache.stores.values():
        slot = store.reserve(0, length)
        slot.k.copy_(torch.randn(slot.k.shape, generator=generator))
        slot.v.copy_(torch.randn(slot.v.shape, generator=generator))
    cache.length = length
    return cache


def saved(folder: PastFolder, model: Gemma, ids: list[int], ends: list[int], scope: Scope = HERE) -> Past:
    past = Past(filled(model, len(ids)))
    folder.save(scope, kept(past, ids, ends))
    folder.close()
    return past


def kept(past: Past, ids: list[int], ends: list[int]) -> Kept[Rows]:
    """All of a past, in pieces."""
    rows = [past.rows(0, 3), past.rows(3, len(ids))]
    return Kept(array(ids), rows, [past.slid(0, 5), past.slid(5, 6), past.slid(6, len(ids))], ends)


def array(ids: list[int]) -> Ids:
    return np.array(ids, np.int32)


def found(folder: PastFolder, ids: list[int], scope: Scope = HERE) -> Stored | None:
    _, entry = folder.reach(scope, array(ids))
    return None if entry is None else folder.load(entry)


def same(read: Stored | None, past: Past) -> bool:
    if read is None:
        return False
    pieces = [
        (read.all, past.rows(0, read.all.count)),
        *((one, past.slid(one.first, one.stop)) for one in read.all_slid),
    ]
    pairs = [(pair, theirs.layers[index]) for ours, theirs in pieces for index, pair in ours.layers.items()]
    return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def test_a_past_comes_back_bit_for_bit(model: Gemma, tmp_path: Path) -> None:
    ids = prompt(1, 40)
    past = saved(opened(tmp_path / "pasts", model), model, ids, [12, 30, 40])
    folder = opened(tmp_path / "pasts", model)
    assert same(found(folder, [*ids, 5]), past)
    assert [folder.reach(HERE, array(other))[0] for other in ([*ids, 5], ids, ids[:35], ids[:12], [9])] == [
        40, 30, 30, 0, 0,
    ]  # fmt: skip
    assert folder.nbytes == sum(path.stat().st_size for path in (tmp_path / "pasts").iterdir())


@posix
def test_nobody_else_may_read_or_write(model: Gemma, tmp_path: Path) -> None:
    saved(opened(tmp_path / "a" / "pasts", model), model, prompt(1, 40), [40])
    assert stat.S_IMODE((tmp_path / "a" / "pasts").stat().st_mode) == 0o700
    (file,) = (tmp_path / "a" / "pasts").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("scope", [Scope("poet"), Scope(None, "key"), Scope("poet", "key")])
def test_other_scopes_and_weights_find_nothing(model: Gemma, tmp_path: Path, scope: Scope) -> None:
    ids = prompt(1, 40)
    saved(opened(tmp_path / "pasts", model), model, ids, [40])
    assert found(opened(tmp_path / "pasts", model), [*ids, 5], scope) is None
    assert found(opened(tmp_path / "pasts", model, identity="others"), [*ids, 5]) is None
    (file,) = (tmp_path / "pasts").iterdir()
    assert b"key" not in file.read_bytes()[: 1 << 12]


def test_c8_c9_a_flipped_bit_anywhere_is_seen(model: Gemma, tmp_path: Path) -> None:
    ids = prompt(1, 20)
    past = saved(opened(tmp_path / "pasts", model), model, ids, [20])
    (file,) = (tmp_path / "pasts").iterdir()
    whole = file.read_bytes()
    folder = opened(tmp_path / "pasts", model)
    (entry,) = folder._entries.values()
    places = [*range(entry.about.start), *range(entry.about.start, len(whole), 97), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        assert folder.load(entry) is None, place
    file.write_bytes(whole)
    assert same(folder.load(entry), past)
    assert str(file) in folder.notes[-1]


def test_a_file_of_any_length_is_whole_or_not_used(model: Gemma, tmp_path: Path) -> None:
    ids = prompt(1, 20)
    saved(opened(tmp_path / "pasts", model), model, ids, [20])
    (file,) = (tmp_path / "pasts").iterdir()
    whole = file.read_bytes()
    for size in (0, 1, START - 1, START, START + 5, len(whole) // 2, len(whole) - 1, len(whole) + 1):
        file.write_bytes((whole + b"x")[:size])
        folder = opened(tmp_path / "pasts", model)
        assert found(folder, [*ids, 5]) is None
        assert folder.notes


@pytest.mark.parametrize(
    "change",
    [{"ends": []}, {"ends": [20, 20]}, {"ends": [-1, 20]}, {"ends": [True]}, {"ends": [5]}, {"ids": "!"}, {"ids": 5},
     {"blocks": [[-1, "00"]]}, {"blocks": [[1.5, "00"]]}, {"blocks": []}, {"blocks": 7}, {"owner": None}],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_not_believed(model: Gemma, tmp_path: Path, change: dict[str, object]) -> None:
    """Written on purpose, with a checksum that is right."""
    from pocketgem.engine.past_file import _sum

    saved(opened(tmp_path / "pasts", model), model, prompt(1, 20), [20])
    (file,) = (tmp_path / "pasts").iterdir()
    whole = file.read_bytes()
    length = int.from_bytes(whole[len(MAGIC) : START], "little")
    text = json.dumps(json.loads(whole[START : START + length]) | change).encode()
    head = MAGIC + len(text).to_bytes(8, "little") + text
    file.write_bytes(head + _sum(head) + whole[START + length + 16 :])
    folder = opened(tmp_path / "pasts", model)
    assert found(folder, [*prompt(1, 20), 5]) is None
    assert len(folder.notes) == 1


def test_a_past_of_other_layers_is_not_believed(model: Gemma, tmp_path: Path) -> None:
    ids = prompt(1, 20)
    saved(opened(tmp_path / "pasts", model), model, ids, [20])
    other = load(make_twin("gemma3", tmp_path / "twin").folder)
    folder = opened(tmp_path / "pasts", other)
    assert found(folder, [*ids, 5]) is None
    assert "other layers" in folder.notes[-1]


@posix
def test_links_and_strangers_are_not_followed(model: Gemma, tmp_path: Path) -> None:
    ids = prompt(1, 20)
    saved(opened(tmp_path / "pasts", model), model, ids, [20])
    (file,) = (tmp_path / "pasts").iterdir()
    elsewhere = file.rename(tmp_path / "elsewhere")
    file.symlink_to(elsewhere)
    assert found(opened(tmp_path / "pasts", model), [*ids, 5]) is None
    file.unlink()
    os.link(elsewhere, file)
    assert found(opened(tmp_path / "pasts", model), [*ids, 5]) is None
    file.unlink()
    os.mkfifo(file)
    assert found(opened(tmp_path / "pasts", model), [*ids, 5]) is None
    file.unlink()
    elsewhere.rename(file)
    file.chmod(0o666)
    assert found(opened(tmp_path / "pasts", model), [*ids, 5]) is None
    file.chmod(0o600)
    assert found(opened(tmp_path / "pasts", model), [*ids, 5]) is not None


@posix
def test_folders_that_others_could_write_to_are_refused(
    model: Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pasts"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match="others own it or can write to it"):
        opened(folder, model)
    folder.chmod(0o755)
    opened(folder, model)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_bytes(b"")
    for other in ("link", "file"):
        with pytest.raises(InputError, match="not a folder"):
            opened(tmp_path / other, model)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(InputError, match="others own it"):
        opened(folder, model)


@posix
def test_a_folder_that_is_swapped_is_left_alone(model: Gemma, tmp_path: Path) -> None:
    folder = opened(tmp_path / "pasts", model)
    (tmp_path / "pasts").rename(tmp_path / "gone")
    (tmp_path / "pasts").mkdir()
    saved(folder, model, prompt(1, 20), [20])
    assert not list((tmp_path / "pasts").iterdir())
    assert "changed for another" in folder.notes[-1]


def test_a_conversation_leaves_one_file_and_the_oldest_go_first(model: Gemma, tmp_path: Path) -> None:
    folder = opened(tmp_path / "pasts", model)
    talk = prompt(1, 40)
    saved(folder, model, talk[:20], [19, 20])
    saved(folder, model, talk, [19, 39, 40])
    assert len(list((tmp_path / "pasts").iterdir())) == 1
    one = folder.nbytes
    folder.budget = int(3.5 * one)
    for seed in range(2, 7):
        saved(folder, model, prompt(seed, 40), [19, 39, 40])
        time.sleep(0.01)
    assert folder.nbytes <= folder.budget
    kept = [found(folder, [*prompt(seed, 40), 5]) is not None for seed in range(1, 7)]
    assert kept == [False, False, False, True, True, True]
    saved(folder, model, prompt(9, 400), [400])
    assert "all may have" in folder.notes[-1]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "room"])
def test_l9_a_disk_that_refuses_hurts_no_request(
    model: Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = opened(tmp_path / "pasts", model)

    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "room":
        monkeypatch.setattr(past_folder, "check_room", refuses)
    elif call == "write":
        monkeypatch.setattr(past_folder, "header_of", refuses)
    else:
        monkeypatch.setattr(os, call, refuses)
    engine = Engine(model, folder=folder, kept=1 << 30)
    first = run(engine, prompt(0, 30))
    folder.close()
    assert "No space left" in folder.notes[-1]
    assert not list((tmp_path / "pasts").iterdir())
    assert run(engine, prompt(0, 30)).output_ids == first.output_ids


@posix
def test_a_killed_writer_leaves_nothing_that_loads_wrong(model: Gemma, tmp_path: Path) -> None:
    pasts = {seed: Past(filled(model, 30 + seed)) for seed in range(6)}
    for round in range(6):
        child = os.fork()
        if not child:
            folder = opened(tmp_path / "pasts", model)
            while True:
                for seed, past in pasts.items():
                    job = kept(past, prompt(seed, 30 + seed), [30 + seed])
                    folder._write(past_folder.Job(past_folder.owner_of("weights", HERE), job))
        time.sleep(0.03 + 0.02 * round)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        folder = opened(tmp_path / "pasts", model)
        assert not folder.notes
        assert all(path.suffix == ".past" for path in (tmp_path / "pasts").iterdir())
        for entry in list(folder._entries.values()):
            assert same(folder.load(entry), pasts[len(entry.about.ids) - 30])
    assert folder._entries


# ---- under an engine -------------------------------------------------------------------------------------------------


def run(engine: Engine, ids: list[int], scope: Scope = HERE) -> Sequence:
    sequence = engine.submit(
        Request("r", tuple(ids), SamplingParams(max_tokens=8), adapter=scope.adapter, cache_salt=scope.salt)
    )
    while sequence.finish is None:
        engine.step()
    return sequence


def test_an_engine_goes_on_where_another_stopped(model: Gemma, tmp_path: Path) -> None:
    def engine() -> Engine:
        return Engine(model, Scheduler(chunk=16), folder=opened(tmp_path / "pasts", model), turn_ids=frozenset({7}))

    talk = [*prompt(1, 90), 7, *prompt(2, 20), 7, *prompt(3, 20)]
    first = engine()
    run(first, talk)
    assert first.folder is not None
    first.folder.close()
    for ids, reused in (([*talk, *prompt(4, 30)], len(talk) - 1), ([*talk[:112], *prompt(5, 30)], 111)):
        alone = run(Engine(model, Scheduler(chunk=16), kept=0), ids)
        again = run(engine(), ids)
        assert again.num_reused == reused
        assert again.output_ids == alone.output_ids
        other = run(engine(), ids, Scope(None, f"key {reused}"))
        assert (other.num_reused, other.output_ids) == (0, alone.output_ids)


def test_c7_a_damaged_file_costs_reading_and_nothing_else(model: Gemma, tmp_path: Path) -> None:
    first = Engine(model, folder=opened(tmp_path / "pasts", model))
    expected = run(first, prompt(1, 150)).output_ids
    assert first.folder is not None
    first.folder.close()
    second = Engine(model, folder=opened(tmp_path / "pasts", model))
    (file,) = (tmp_path / "pasts").iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 16
    file.write_bytes(damaged)
    again = run(second, prompt(1, 150))
    assert again.output_ids == expected
    assert (again.num_reused, again.reuse_reason) == (0, DAMAGED)
    assert not second.prefixes.nbytes or second.prefixes.find(HERE, array(prompt(1, 150))).position == 149


def test_a_loaded_model_knows_itself_again(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    ids = [290 + i % 30 for i in range(300)]

    def reused(source: Path, **options: object) -> int:
        llm = LLM.load(source, cache_dir=tmp_path / "pasts", **{"dtype": torch.float32, **options})  # type: ignore[arg-type]
        answer = llm.generate(ids, params=SamplingParams(max_tokens=2))
        assert llm.engine.folder is not None
        llm.engine.folder.close()
        return answer.stats.reused_tokens

    assert [reused(model), reused(model)] == [0, 299]
    assert reused(model, dtype=torch.bfloat16) == 0
    other = save_model(tmp_path / "other" / "model", change=lambda weights: weights + 1e-3)
    assert reused(other) == 0
    with pytest.raises(InputError, match="not a size in bytes"):
        LLM.load(model, cache_dir=tmp_path / "pasts", cache_size="much")
