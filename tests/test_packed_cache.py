"""Packed weights kept beside a model: the same bytes as packing anew, whatever happened to the file in between."""

from __future__ import annotations

import ctypes
import errno
import math
import multiprocessing
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketgem import kernels
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import StoredType, tensor_bytes
from pocketgem.errors import CheckpointError, RunError, WeightsError
from pocketgem.memory import packed, packed_draft, packed_file, packed_place
from pocketgem.memory.packed import PackedWeights, packed_weights
from pocketgem.memory.packed_place import default_cache

HEADER = 5000  # bytes before the first tensor of the made-up model
SHAPES: dict[str, tuple[StoredType, int, int, int]] = {  # type, rows, columns, tensors of the part
    "small": (StoredType.Q8_0, 3, 32, 1),
    "head": (StoredType.Q6_K, 300, 256, 1),
    "experts": (StoredType.Q4_0, 16, 64, 5),
}
Parts = dict[str, list[StoredTensor]]


TURNED = bytes(range(255, -1, -1))


@dataclass
class SilentPacker:
    """Turns every byte over and brings the whole to 64 bytes; does not say what layout this is."""

    packed: int = 0  # tensors packed so far
    before: Callable[[int], None] = field(default=lambda number: None)  # called with the number of the tensor

    def packed_bytes(self, type: str, rows: int, cols: int, /) -> int:
        return -(-tensor_bytes((rows, cols), StoredType(type)) // 64) * 64

    def pack(
        self, pool: object, type: str, source: int, source_bytes: int, rows: int, cols: int, target: int, size: int, /
    ) -> None:
        assert target % 64 == 0
        assert size == self.packed_bytes(type, rows, cols)
        self.before(self.packed)
        self.packed += 1
        turned = ctypes.string_at(source, source_bytes).translate(TURNED)
        ctypes.memmove(target, turned.ljust(size, b"\0"), size)


@dataclass
class FakePacker(SilentPacker):
    layout_version: int = 1


def write_model(path: Path, seed: int = 0) -> None:
    size = HEADER + sum(count * tensor_bytes((rows, cols), kind) for kind, rows, cols, count in SHAPES.values())
    numbers = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    path.write_bytes(numbers.numpy().tobytes())


def parts_of(path: Path) -> Parts:
    file, at = MappedFile(path), HEADER
    parts: Parts = {}
    for name, (kind, rows, cols, count) in SHAPES.items():
        size = tensor_bytes((rows, cols), kind)
        starts = range(at, at + count * size, size)
        parts[name] = [StoredTensor(f"{name}.{s}", (rows, cols), kind, file, s, s + size) for s in starts]
        at += count * size
    return parts


def pack(model: Path, cache: Path | None, packer: SilentPacker | None = None, **options: Any) -> PackedWeights:
    parts = options.pop("parts", None) or parts_of(model)
    return packed_weights(parts, source=model, pool=None, cache=cache, packer=packer or FakePacker(), **options)


def check(weights: PackedWeights, model: Path) -> None:
    """Every byte is what packing gives."""
    raw = model.read_bytes()
    for name, tensors in parts_of(model).items():
        each = weights.bytes(name).view(len(tensors), -1)
        for tensor, row in zip(tensors, each, strict=True):
            expected = raw[tensor.start : tensor.end].translate(TURNED)
            assert row.numpy().tobytes() == expected.ljust(row.numel(), b"\0"), name


def kept_anew(model: Path, cache: Path, **options: Any) -> bool:
    """Whether opening ``cache`` again packs; the result is right and kept either way."""
    packer = options.pop("packer", None) or FakePacker()
    weights = pack(model, cache, packer, **options)
    check(weights, model)
    assert weights.kept == cache
    assert packer.packed in (0, 7)
    return packer.packed > 0


def drafts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_model(path)
    return path


@pytest.fixture
def cache(model: Path) -> Path:
    """A good cache of ``model``."""
    path = model.with_name("model.gguf.pocketgem")
    assert kept_anew(model, path)
    return path


def test_what_is_kept_is_found_again_and_packed_once(model: Path, cache: Path) -> None:
    before = cache.stat()
    packer = FakePacker()
    weights = pack(model, cache, packer)
    check(weights, model)
    assert packer.packed == 0
    assert weights.note is None
    assert cache.stat().st_ino == before.st_ino
    assert drafts(cache.parent) == []
    assert all(weights.bytes(name).data_ptr() % 64 == 0 for name in SHAPES)
    assert weights.bytes("experts").numel() == 5 * FakePacker().packed_bytes("Q4_0", 16, 64)


def test_the_mapping_tells_when_the_cache_is_changed_in_use(model: Path, cache: Path) -> None:
    weights = pack(model, cache)
    assert weights.mapped is not None
    weights.mapped.check_unchanged()
    with cache.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="changed while in use"):
        weights.mapped.check_unchanged()


def test_without_a_place_weights_are_packed_into_memory(model: Path) -> None:
    weights = pack(model, None)
    check(weights, model)
    assert weights.kept is None
    assert weights.mapped is None
    assert weights.note == "there is no place to keep packed weights"
    assert os.listdir(model.parent) == [model.name]


def test_progress_counts_packed_bytes(model: Path) -> None:
    calls: list[tuple[int, int]] = []
    weights = pack(model, None, progress=lambda done, total: calls.append((done, total)))
    total = sum(weights.bytes(name).numel() for name in SHAPES)
    assert len(calls) == 7
    assert calls[-1] == (total, total)
    assert sorted(calls) == calls


def test_nothing_to_pack_is_fine(model: Path, cache: Path) -> None:
    weights = packed_weights({}, source=model, pool=None, cache=cache, packer=FakePacker())
    assert weights.kept == cache


def test_the_largest_part_is_packed_first(model: Path) -> None:
    kinds: list[str] = []
    packer = FakePacker()
    spied = packer.pack
    packer.pack = lambda pool, type, *rest: (kinds.append(type), spied(pool, type, *rest))[1]  # type: ignore[method-assign]
    pack(model, None, packer)
    assert kinds == ["Q6_K", *["Q4_0"] * 5, "Q8_0"]


# Staleness


def touch(path: Path, at: int, keep_time: bool = True) -> None:
    """Change the byte at ``at``, seemingly at no time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_another_time_of_the_model_is_stale(model: Path, cache: Path) -> None:
    os.utime(model, ns=(1, model.stat().st_mtime_ns + 1))
    assert kept_anew(model, cache)
    assert not kept_anew(model, cache)


def test_another_size_of_the_model_is_stale(model: Path, cache: Path) -> None:
    status = model.stat()
    with model.open("ab") as file:
        file.write(b"\0")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept_anew(model, cache)


@pytest.mark.parametrize("at", [0, HEADER - 1, HEADER, HEADER + 103, HEADER + 105, -1])
def test_other_content_at_a_sampled_place_is_stale(model: Path, cache: Path, at: int) -> None:
    touch(model, at % model.stat().st_size)
    assert kept_anew(model, cache)


def test_another_layout_is_stale(model: Path, cache: Path) -> None:
    assert kept_anew(model, cache, packer=FakePacker(layout_version=2))
    assert not kept_anew(model, cache, packer=FakePacker(layout_version=2))


def test_kernels_that_do_not_say_have_the_layout_of_a_constant(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = model.with_name("cache")
    for version, anew in (1, True), (1, False), (2, True):
        monkeypatch.setattr(packed, "LAYOUT_VERSION", version)
        assert kept_anew(model, cache, packer=SilentPacker()) == anew


def test_another_version_of_the_file_is_stale(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "MAGIC", packed_file.NAME + b" 3\r\n\0\0\0\0")
    assert kept_anew(model, cache)


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: {**parts, "other": parts["small"]},
        lambda parts: {name: parts[name] for name in ("small", "head")},
        lambda parts: {**parts, "experts": parts["experts"][::-1]},
        lambda parts: {**parts, "experts": [parts["experts"][i] for i in (0, 2, 1, 3, 4)]},
        lambda parts: {**parts, "experts": parts["experts"][:4]},
        lambda parts: {"tiny" if name == "small" else name: tensors for name, tensors in parts.items()},
    ],
    ids=["one more", "one less", "another order", "inner order", "fewer experts", "another name"],
)
def test_other_parts_are_stale(model: Path, cache: Path, change: Callable[[Parts], Parts]) -> None:
    packer = FakePacker()
    parts = change(parts_of(model))
    weights = pack(model, cache, packer, parts=parts)
    assert packer.packed == sum(map(len, parts.values()))
    assert weights.kept == cache
    fresh = pack(model, None, parts=parts)
    assert all(torch.equal(weights.bytes(name), fresh.bytes(name)) for name in parts)


def test_a_renamed_models_cache_is_not_anothers(model: Path, cache: Path) -> None:
    other = model.with_name("other.gguf")
    model.rename(other)
    assert kept_anew(other, cache)


# Damage


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A model, and a good cache of it as bytes."""
    path = tmp_path_factory.mktemp("damage") / "model.gguf"
    write_model(path)
    cache = path.with_name("good")
    assert kept_anew(path, cache)
    return path, cache.read_bytes()


def opened_damaged(good: tuple[Path, bytes], damaged: bytes) -> PackedWeights:
    model, _ = good
    path = model.with_name("damaged")
    path.write_bytes(damaged)
    weights = pack(model, path)
    check(weights, model)
    return weights


@given(data=st.data(), mask=st.integers(1, 255))
def test_a_flipped_byte_never_shows(good: tuple[Path, bytes], data: st.DataObject, mask: int) -> None:
    head = data.draw(st.booleans())
    at = data.draw(st.integers(0, 2000 if head else len(good[1]) - 1))
    damaged = bytearray(good[1])
    damaged[at] ^= mask
    weights = opened_damaged(good, bytes(damaged))
    ours = at >= len(packed_file.NAME)
    assert (weights.kept is not None) == ours
    assert (weights.kept or good[0]).exists()


@given(data=st.data())
def test_a_cut_file_is_written_anew(good: tuple[Path, bytes], data: st.DataObject) -> None:
    length = data.draw(st.integers(len(packed_file.NAME), len(good[1]) - 1))
    assert opened_damaged(good, good[1][:length]).kept is not None
    assert good[0].with_name("damaged").read_bytes() == good[1]


def test_zeros_and_swapped_pages_in_the_body_are_seen(good: tuple[Path, bytes]) -> None:
    raw, page = good[1], 4096
    body = len(raw) - 5 * page
    zeroed = raw[:body] + bytes(page) + raw[body + page :]
    swapped = raw[:body] + raw[body + page : body + 2 * page] + raw[body : body + page] + raw[body + 2 * page :]
    longer = raw + bytes(page)
    for damaged in (zeroed, swapped, longer):
        assert damaged != raw
        opened_damaged(good, damaged)
        assert good[0].with_name("damaged").read_bytes() == raw


@given(data=st.data())
def test_checksums_see_any_change_within_a_word(data: st.DataObject) -> None:
    size = 8 * data.draw(st.sampled_from([1, 2, 1000, packed_file.CHUNK // 8, packed_file.CHUNK // 8 + 3]))
    body = torch.arange(size // 8).mul(0x9E3779B97F4A7C15 - (1 << 64)).view(torch.uint8)
    pieces = packed_file.cut(0, size)
    before = packed_file.checksums(body, pieces)
    assert len(before) == math.ceil(size / packed_file.CHUNK)
    body[data.draw(st.integers(0, size - 1))] += data.draw(st.integers(1, 255))
    assert packed_file.checksums(body, pieces) != before


def test_checksums_are_the_same_for_any_number_of_threads() -> None:
    size = 5 * packed_file.CHUNK + 800
    body = torch.randint(256, (size,), dtype=torch.uint8)
    sums, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            sums.append(packed_file.checksums(body, packed_file.cut(0, size)))
    finally:
        torch.set_num_threads(threads)
    assert sums[0] == sums[1]


@given(
    sizes=st.lists(st.integers(1, 3 * packed_file.CHUNK // 8).map(lambda words: 8 * words), max_size=6),
)
def test_pieces_cover_the_body_and_none_holds_two_tensors(sizes: list[int]) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    pieces = packed_file.Body(tuple(starts), sum(sizes)).pieces
    assert [begin for begin, _ in pieces] == [0, *(end for _, end in pieces)][: len(pieces)]
    assert not pieces or pieces[-1][1] == sum(sizes)
    assert {*starts} <= {begin for begin, _ in pieces}
    assert all(0 < end - begin <= packed_file.CHUNK for begin, end in pieces)


# Parts that somebody else reads


def test_loose_parts_are_where_they_say_and_checked_by_their_reader(model: Path, cache: Path) -> None:
    weights = pack(model, cache, loose=["experts"])
    place, raw = weights.place("experts"), cache.read_bytes()
    assert len(place.sums) == 5
    for index, sums in enumerate(place.sums):
        begin, end = place.of(index)
        body = torch.frombuffer(bytearray(raw[begin:end]), dtype=torch.uint8)
        assert packed_file.checksums(body, packed_file.cut(0, end - begin)) == list(sums)
        kept = weights.bytes("experts").view(5, -1)[index].numpy().tobytes()
        assert raw[begin : begin + place.each] == kept
        assert not any(raw[begin + place.each : end])


def test_damage_of_a_loose_part_is_left_to_its_reader(model: Path, cache: Path) -> None:
    touch(cache, pack(model, cache).place("experts").of(3)[0] + 5)
    packer = FakePacker()
    pack(model, cache, packer, loose=["experts"])
    assert packer.packed == 0
    assert kept_anew(model, cache)


def test_loose_parts_need_a_file(model: Path) -> None:
    packer = FakePacker()
    for path, reason in (None, "no place"), (model.with_name("missing") / "cache", "No such file"):
        with pytest.raises(RunError, match=f"budget for experts needs a file to read them from, but .*{reason}"):
            pack(model, path, packer, loose=["experts"])
    assert packer.packed == 0


# Places that refuse


@pytest.mark.parametrize("content", [b"", b"my letters", b"GGUF" + bytes(100)])
def test_a_file_that_is_not_ours_stays(model: Path, content: bytes) -> None:
    path = model.with_name("letters")
    path.write_bytes(content)
    weights = pack(model, path)
    check(weights, model)
    assert weights.kept is None
    assert "not ours" in (weights.note or "")
    assert path.read_bytes() == content
    assert drafts(path.parent) == []


def test_neither_a_link_nor_a_folder_is_written_through(model: Path, cache: Path) -> None:
    link, folder = model.with_name("link"), model.with_name("folder")
    link.symlink_to(cache)
    folder.mkdir()
    before = cache.read_bytes()
    for path in (link, folder):
        weights = pack(model, path)
        check(weights, model)
        assert weights.kept is None
        assert "not ours" in (weights.note or "")
    assert link.is_symlink()
    assert cache.read_bytes() == before


def test_what_another_person_put_there_is_neither_believed_nor_replaced(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.stat().st_ino
    monkeypatch.setattr(packed_file, "_me", lambda: 1001)
    owners = {cache: 1002, cache.parent: 1003}
    monkeypatch.setattr(packed_file, "_owner", owners.__getitem__)
    weights = pack(model, cache)
    check(weights, model)
    assert "not ours" in (weights.note or "")
    assert cache.stat().st_ino == before
    for owner in (0, 1001, 1003):  # the machine's, mine, the folder's
        owners[cache] = owner
        assert not kept_anew(model, cache)


def test_a_foreign_file_that_comes_while_packing_stays(model: Path) -> None:
    path = model.with_name("cache")
    weights = pack(model, path, FakePacker(before=lambda number: path.write_bytes(b"mine")))
    check(weights, model)
    assert weights.kept is None
    assert path.read_bytes() == b"mine"


def test_a_folder_that_is_missing_or_refuses_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = pack(model, model.with_name("missing") / "cache")
    check(weights, model)
    assert "No such file" in (weights.note or "")

    def refuse(path: Any, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return opened(path, flags, *rest)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    weights = pack(model, model.with_name("cache"))
    check(weights, model)
    assert weights.kept is None
    assert "Permission denied" in (weights.note or "")


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_met_before_anything_is_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, packed_draft.MARGIN + 1000))
    packer = FakePacker()
    weights = pack(model, model.with_name("cache"), packer)
    check(weights, model)
    assert packer.packed == 7
    assert "no room" in (weights.note or "")
    assert os.listdir(model.parent) == [model.name]


def test_a_disk_that_fills_at_the_last_moment_is_met_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    weights = pack(model, model.with_name("cache"))
    check(weights, model)
    assert "No space left" in (weights.note or "")
    assert os.listdir(model.parent) == [model.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_is_met_too(model: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    packer = FakePacker()
    weights = pack(model, model.with_name("cache"), packer)
    check(weights, model)
    assert packer.packed == 14  # the first seven went to the disk that failed
    assert "Input/output error" in (weights.note or "")
    assert os.listdir(model.parent) == [model.name]


def test_a_file_system_that_cannot_allocate_gets_zeros(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    assert kept_anew(model, model.with_name("cache"))
    assert not kept_anew(model, model.with_name("cache"))
    monkeypatch.delattr(os, "posix_fallocate")
    assert kept_anew(model, model.with_name("another"))


# Drafts


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(model: Path, error: type[BaseException]) -> None:
    def stop(number: int) -> None:
        if number == 3:
            assert len(drafts(model.parent)) == 1
            raise error("enough")

    with pytest.raises(error, match="enough"):
        pack(model, model.with_name("cache"), FakePacker(before=stop))
    assert os.listdir(model.parent) == [model.name]


def test_an_interruption_leaves_the_old_cache(model: Path, cache: Path) -> None:
    def stop(number: int) -> None:
        raise ValueError("enough")

    before = cache.read_bytes()
    os.utime(model, ns=(1, 1))
    with pytest.raises(ValueError, match="enough"):
        pack(model, cache, FakePacker(before=stop))
    assert cache.read_bytes() == before


def test_a_model_that_changes_while_it_is_packed_is_not_kept(model: Path) -> None:
    def change(number: int) -> None:
        if number == 6:
            touch(model, HEADER + 200, keep_time=False)

    with pytest.raises(CheckpointError, match="changed while in use"):
        pack(model, model.with_name("cache"), FakePacker(before=change))
    assert os.listdir(model.parent) == [model.name]


def test_a_dead_draft_is_removed_and_other_files_are_not(model: Path) -> None:
    cache = model.with_name("a+b")
    dead = model.with_name(".a+b.123.0123abcd.tmp")
    others = [model.with_name(name) for name in (".a+b.tmp", ".aab.1.0123abcd.tmp", "a+b.1.0123abcd.tmp")]
    for path in (dead, *others):
        path.write_bytes(b"half")
    assert kept_anew(model, cache)
    assert not dead.exists()
    assert all(path.read_bytes() == b"half" for path in others)


def test_a_living_draft_is_left_alone(model: Path) -> None:
    cache = model.with_name("cache")

    def another(number: int) -> None:
        if number == 0:
            assert kept_anew(model, cache)  # a whole second run, in the middle of the first

    assert kept_anew(model, cache, packer=FakePacker(before=another))
    assert not kept_anew(model, cache)
    assert drafts(model.parent) == []


def test_a_draft_swept_before_it_was_locked_is_begun_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(descriptor: int, how: int) -> None:
        swept.extend(drafts(model.parent)[: 1 - len(swept)])
        for name in swept:
            model.with_name(name).unlink(missing_ok=True)
        flock(descriptor, how)

    swept: list[str] = []
    fcntl = pytest.importorskip("fcntl", reason="locks of a POSIX system")
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    assert kept_anew(model, model.with_name("cache"))
    assert len(swept) == 1


def pack_beside_another(model: Path, cache: Path) -> None:
    """Pack when another process has begun, or is done already."""

    def meet(number: int) -> None:
        until = time.monotonic() + 60
        while number == 0 and len(drafts(cache.parent)) < 2 and not cache.exists() and time.monotonic() < until:
            time.sleep(0.005)

    weights = pack(model, cache, FakePacker(before=meet))
    check(weights, model)
    assert weights.kept == cache


def test_two_processes_at_once_both_have_the_weights(model: Path) -> None:
    cache = model.with_name("cache")
    other = multiprocessing.get_context("spawn").Process(target=pack_beside_another, args=(model, cache))
    other.start()
    pack_beside_another(model, cache)
    other.join()
    assert other.exitcode == 0
    assert not kept_anew(model, cache)
    assert drafts(model.parent) == []


# What is asked for


def test_unlike_tensors_are_no_part(model: Path) -> None:
    parts = parts_of(model)
    for name, tensors in {
        "types": [parts["head"][0], parts["small"][0]],
        "none": [],
        "flat": [StoredTensor("flat", (32,), StoredType.Q8_0, parts["head"][0].source, 0, 34)],
        "empty": [StoredTensor("empty", (0, 32), StoredType.Q8_0, parts["head"][0].source, 0, 0)],
    }.items():
        with pytest.raises(WeightsError, match=f"{name}: only matrices of one type and shape"):
            pack(model, None, parts={name: tensors})


def test_without_kernels_the_error_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "native", None)
    with pytest.raises(RunError, match="packed by compiled kernels"):
        packed_weights(parts_of(model), source=model, pool=None, cache=None)


@pytest.mark.native
def test_the_compiled_packer_fits(model: Path) -> None:
    native: Any = kernels.native
    pool, parts = native.Pool(2), parts_of(model)
    for _ in range(2):
        kept = packed_weights(parts, source=model, pool=pool, cache=model.with_name("native"))
        fresh = packed_weights(parts, source=model, pool=pool, cache=None)
        assert kept.note is None
        for name, (kind, rows, cols, count) in SHAPES.items():
            assert kept.bytes(name).numel() == count * native.packed_bytes(kind, rows, cols)
            assert torch.equal(kept.bytes(name), fresh.bytes(name))


# Where it is kept


def test_the_cache_lies_beside_the_model(model: Path) -> None:
    assert default_cache(model) == model.with_name("model.gguf.pocketgem")


def test_else_it_lies_in_the_persons_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != model.parent)
    monkeypatch.setattr(packed_place.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first, second = default_cache(model), default_cache(model.with_name("other.gguf"))
    assert first is not None
    assert second is not None
    assert first.parent == second.parent == tmp_path / "xdg" / "pocketgem" / "packed"
    assert first.parent.is_dir()
    assert first != second
    model.with_name("link.gguf").symlink_to(model)
    assert default_cache(model.with_name("link.gguf")) == first

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    other = default_cache(model)
    assert other is not None
    assert other.parent == tmp_path / "home" / ".cache" / "pocketgem" / "packed"
    monkeypatch.setattr(packed_place.sys, "platform", "darwin")
    other = default_cache(model)
    assert other is not None
    assert other.parent == tmp_path / "home" / "Library" / "Caches" / "pocketgem" / "packed"


def test_or_nowhere(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache(model) is None
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache(model) is None
