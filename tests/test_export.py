"""What `export` writes is the model it was made of: the same bits where types allow, the same ids, the same answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pocketgem import LLM
from pocketgem.checkpoint.card import QualityCard
from pocketgem.checkpoint.draft import Draft, value_bytes
from pocketgem.checkpoint.durable import new_file, new_folder
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.export_vocab import vocabulary_keys
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.header import raw_values
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.manifest import verify
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.config import from_hf
from pocketgem.config.to_hf import to_hf
from pocketgem.convert.export import export_to_gguf, export_to_safetensors
from pocketgem.errors import CheckpointError, RunError
from pocketgem.memory.packed_draft import Draft as PackedDraft
from pocketgem.memory.packed_file import Body, head_of, open_kept
from pocketgem.model.cache import Step
from pocketgem.text.tokenizer import Tokenizer
from pocketgem.text.vocab import Vocabulary
from tests.cli_models import save_model
from tests.test_parity import PROMPT_TOKENS, load, prompt, run
from tests.text_fixtures import CONTROL, corpus, gemma4_metadata, spm_metadata, tokenizer_json
from tests.twins import LAYOUTS, VOCAB, make_twin, oracle_logits

CARD = QualityCard(
    format="q8_0", source="m", compared="float32", text="t", tokens=9, kl_mean=0.5, kl_p99=1.0, kl_max=2.0,
    same_top1=0.75, perplexity=3.0, source_perplexity=2.5, within_limits=True,
)  # fmt: skip


def with_tokenizer(folder: Path) -> Path:
    """A token for every row of a twin's embedding."""
    metadata = gemma4_metadata()
    names = [f"<unused{id}>" for id in range(len(metadata["tokenizer.ggml.tokens"]), VOCAB)]
    metadata["tokenizer.ggml.tokens"] += names
    metadata["tokenizer.ggml.token_type"] += [CONTROL] * len(names)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(metadata)))
    return folder


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_layout_goes_to_gguf_and_back(name: str, tmp_path: Path) -> None:
    """In bfloat16, which is what releases hold; the oracle loads what came back and says what it said."""
    twin = make_twin(name, tmp_path / "twin")
    twin.oracle.to(torch.bfloat16).save_pretrained(with_tokenizer(twin.folder))
    assert export_to_gguf(twin.folder, tmp_path / "x.gguf").dtype in ("BF16", "F32")
    done = export_to_safetensors(tmp_path / "x.gguf", tmp_path / "back")
    assert (done.dtype, done.lossless) == ("bfloat16", True)
    before, after = (open_checkpoint(resolve(path)) for path in (twin.folder, tmp_path / "back"))
    assert before.tensors.keys() - {"lm_head.weight"} == after.tensors.keys()
    for key, tensor in after.tensors.items():
        original = before.tensors[key].dense()
        rows = slice(len(original)) if "per_layer" in key or "embed" in key else slice(None)  # padded in GGUF
        assert torch.equal(tensor.dense()[rows], original), key
    expected, theirs = (
        oracle_logits(replace(twin, oracle=kind.from_pretrained(path, dtype=torch.float32).eval()), prompt())
        for kind, path in ((type(twin.oracle), twin.folder), (transformers.AutoModelForCausalLM, tmp_path / "back"))
    )
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=0)
    ours = run(load(tmp_path / "x.gguf"), [PROMPT_TOKENS])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_config_written_reads_back_as_the_same_shapes(name: str, tmp_path: Path) -> None:
    config = open_checkpoint(resolve(make_twin(name, tmp_path).folder)).config
    back = from_hf(to_hf(config, "bfloat16"))
    assert replace(back, vision=None, audio=None, unified=False) == replace(
        config, vision=None, audio=None, unified=False, layers=back.layers
    )
    for ours, theirs in zip(back.layers, config.layers, strict=True):
        assert replace(ours, sparsity_cutoff=None) == replace(theirs, sparsity_cutoff=None)
        assert ours.sparsity_cutoff == pytest.approx(theirs.sparsity_cutoff, abs=1e-6)


def test_blocks_become_float32_and_rounding_is_said(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", template="{{ bos_token }}hello")
    source = tmp_path / "q.gguf"
    keys = vocabulary_keys(open_checkpoint(resolve(folder)))
    export_gguf(open_checkpoint(resolve(folder)), source, StoredType.Q8_0, vocabulary=keys)
    exact = export_to_safetensors(source, tmp_path / "exact")
    assert (exact.dtype, exact.lossless, exact.notes) == ("float32", True, ())
    for key, tensor in open_checkpoint(resolve(source)).tensors.items():
        back = open_checkpoint(resolve(tmp_path / "exact")).tensors[key].dense()
        assert torch.allclose(back + ("norm" in key), tensor.dense(), atol=1e-7, rtol=0)
    rounded = export_to_safetensors(source, tmp_path / "half", dtype="bfloat16")
    assert (rounded.dtype, rounded.lossless) == ("bfloat16", False)
    assert "rounded" in rounded.notes[0]
    assert "rounded" in (tmp_path / "half" / "README.md").read_text()
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "half" / "chat_template.jinja").read_text() == "{{ bos_token }}hello"


def test_a_gguf_file_is_copied_byte_for_byte_and_a_split_one_joined(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    export_to_gguf(folder, tmp_path / "a.gguf")
    export_to_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    export_to_gguf(split_in_two(tmp_path / "a.gguf"), tmp_path / "c.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


def split_in_two(path: Path) -> Path:
    """The first of two files that hold the tensors of one."""
    file, content = GGUFFile.open(path), path.read_bytes()
    keys, tensors = raw_values(content, len(content)), list(file.tensors.values())
    parts = (tensors[:5], tensors[5:])
    for number, part in enumerate(parts):
        own = {"split.no": number, "split.count": 2, "split.tensors.count": len(tensors)}
        values = keys if number == 0 else {"general.architecture": keys["general.architecture"]}
        described = [(one.name, one.shape, one.type) for one in part]
        target = path.with_name(f"split-{number + 1:05d}-of-00002.gguf")
        with Draft(target, values | {key: value_bytes(key, value) for key, value in own.items()}, described) as draft:
            draft.fill([memoryview(content[one.start : one.end])] for one in part)
            draft.publish()
    return path.with_name("split-00001-of-00002.gguf")


def test_a_folder_is_copied_with_its_towers_and_cut_into_shards(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", vision=True)
    done = export_to_safetensors(folder, tmp_path / "copy", shard_size=20_000)
    assert sum(name.startswith("model-0") for name in done.files) > 3
    original = load_file(folder / "model.safetensors")
    copies = [load_file(file) for file in sorted((tmp_path / "copy").glob("*.safetensors"))]
    copy = {name: tensor for shard in copies for name, tensor in shard.items()}
    assert copy.keys() == original.keys()
    assert all(torch.equal(copy[name], original[name]) for name in original)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in original.values())


def test_a_quality_card_travels_along(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    checkpoint = open_checkpoint(resolve(folder))
    keys = {**vocabulary_keys(checkpoint), **CARD.to_metadata()}
    export_gguf(checkpoint, tmp_path / "q.gguf", StoredType.F16, vocabulary=keys)
    export_to_safetensors(tmp_path / "q.gguf", tmp_path / "st")
    assert json.loads((tmp_path / "st" / "quality.json").read_text())["kl_mean"] == 0.5
    assert "q8_0" in (tmp_path / "st" / "README.md").read_text()
    export_to_gguf(tmp_path / "st", tmp_path / "again.gguf")
    assert QualityCard.from_metadata(GGUFFile.open(tmp_path / "again.gguf").metadata) == CARD


# ---- vocabularies --------------------------------------------------------------------------------------------------


def folder_with(metadata: dict[str, object], family: str, tmp_path: Path) -> Path:
    """A model folder whose tokenizer.json says what a GGUF vocabulary does."""
    from pocketgem.convert.tokenizer_files import tokenizer_json as written
    from pocketgem.text.vocab import from_gguf

    folder = save_model(tmp_path / "m")
    vocabulary = from_gguf(metadata)
    (folder / "tokenizer.json").write_text(json.dumps(written(vocabulary)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": len(vocabulary.spellings)}
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.randn(len(vocabulary.spellings), 48)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(vocabulary, Vocabulary)
    return folder


@pytest.mark.parametrize("metadata", [spm_metadata, gemma4_metadata], ids=["scores", "merges"])
def test_ids_are_the_same_in_every_form(metadata, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """GGUF -> tokenizer.json -> GGUF, and what transformers makes of the file between."""
    ours = Tokenizer.from_gguf(metadata())
    folder = folder_with(metadata(), "gemma3", tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizerFast"}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    again = Tokenizer.from_gguf(vocabulary_keys(open_checkpoint(resolve(folder))))
    from_file = Tokenizer.from_file(folder)
    lines = [line for line in corpus() if "▁" not in line][::5]
    for line in lines:
        ids = ours.encode(line, parse_special=True)
        assert from_file.encode(line, parse_special=True) == again.encode(line, parse_special=True) == ids, line
        assert theirs(line)["input_ids"] == ids, line


def test_scores_come_back_where_merges_are_those_of_scores(tmp_path: Path) -> None:
    keys = vocabulary_keys(open_checkpoint(resolve(folder_with(spm_metadata(), "gemma3", tmp_path))))
    before = spm_metadata()
    for name in ("model", "tokens", "scores", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"):
        if name == "scores":
            kinds = before["tokenizer.ggml.token_type"]
            normal = [id for id, kind in enumerate(kinds) if kind == 1]
            assert [keys["tokenizer.ggml.scores"][id] for id in normal] == [-float(rank) for rank in range(len(normal))]  # type: ignore[index]
        else:
            assert keys[f"tokenizer.ggml.{name}"] == before[f"tokenizer.ggml.{name}"], name


def test_other_merges_are_listed_instead(tmp_path: Path) -> None:
    folder = folder_with(spm_metadata(), "gemma3", tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text())
    del document["model"]["merges"][3]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    keys = vocabulary_keys(open_checkpoint(resolve(folder)))
    assert keys["tokenizer.ggml.model"] == "gemma4"
    assert len(keys["tokenizer.ggml.merges"]) == len(document["model"]["merges"])  # type: ignore[arg-type]


# ---- the verb ------------------------------------------------------------------------------------------------------


def test_the_verb_writes_says_and_verifies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, target = save_model(tmp_path / "m"), tmp_path / "x.gguf"
    assert main(["export", str(folder), str(target), "--format", "gguf", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["format"], said["lossless"], said["files"]) == ("gguf", True, ["x.gguf", "x.gguf.sha256"])
    expected = hashlib.sha256(target.read_bytes()).hexdigest()
    assert (tmp_path / "x.gguf.sha256").read_text() == f"{expected}  x.gguf\n"
    assert main(["verify", str(target)]) == 0
    assert main(["export", str(folder), str(target), "--format", "gguf"]) == 2  # it is there
    assert main(["export", str(folder), str(target), "--format", "gguf", "--force"]) == 0
    assert main(["export", str(folder), str(tmp_path / "y")]) == 2  # no format
    assert main(["export", str(folder), str(tmp_path / "y.gguf"), "--format", "gguf", "--dtype", "float16"]) == 2
    assert main(["export", str(target), str(target), "--format", "gguf", "--force"]) == 2  # itself
    assert main(["export", str(folder), str(folder), "--format", "safetensors", "--force"]) == 2
    with target.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    capfd.readouterr()
    assert main(["verify", str(target)]) == 1
    assert "x.gguf: changed" in capfd.readouterr().out


def test_a_folder_is_replaced_only_if_an_export_wrote_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, target = save_model(tmp_path / "m"), tmp_path / "st"
    command = ["export", str(folder), str(target), "--format", "safetensors"]
    assert main(command) == 0
    assert [checked.state for checked in verify(target)] == ["good"] * 4
    assert main(command) == 2
    assert main([*command, "--force"]) == 0
    (target / "mine.txt").write_text("keep me")
    capfd.readouterr()
    assert main([*command, "--force"]) == 2
    assert "mine.txt, which no export wrote" in capfd.readouterr().err
    assert (target / "mine.txt").read_text() == "keep me"
    (target / "tokenizer.json").unlink()
    assert main(["verify", str(target)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "st"]


def test_without_litert_torch_the_extra_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert main(["export", str(save_model(tmp_path / "m")), str(tmp_path / "x.litertlm"), "--format", "litertlm"]) == 2
    assert 'pip install "pocketgem[litertlm]"' in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


TOOL = """#!{python}
import sys, pathlib
out = pathlib.Path(sys.argv[3])
out.mkdir()
if {fails}:
    sys.exit("ValueError: no such layer")
(out / "model.litertlm").write_bytes(b"package")
"""


def test_a_converter_that_fails_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose package litert-lm cannot run: here there is none."""
    (tmp_path / "bin").mkdir()
    tool, folder = tmp_path / "bin" / "litert-torch", save_model(tmp_path / "m")
    monkeypatch.setattr("pocketgem.convert.litertlm._program", lambda: tool)
    for fails, message in ((True, "no such layer"), (False, "litert-lm failed")):
        tool.write_text(TOOL.format(python=sys.executable, fails=fails))
        tool.chmod(0o755)
        assert main(["export", str(folder), str(tmp_path / "x.litertlm"), "--format", "litertlm"]) == 1
        assert message in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "m"]


# ---- nothing half-written ------------------------------------------------------------------------------------------


def test_a_full_disk_ends_with_one_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel refuses to write past a limit, as a full disk would."""
    folder = save_model(tmp_path / "m")
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
    code += "from pocketgem.cli import main; sys.exit(main(sys.argv[1:]))"
    for form, target in (("gguf", "x.gguf"), ("safetensors", "st")):
        command = [sys.executable, "-c", code, "export", str(folder), str(tmp_path / target), "--format", form]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "cannot be written" in done.stderr
        assert "nothing was left behind" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
    with pytest.raises(RunError, match=r"no room for 5\.00 GB"), new_file(tmp_path / "x", 5_000_000_000):
        raise AssertionError("not reached")
    assert list(tmp_path.iterdir()) == []


LOOP = """
import sys
from pathlib import Path
from pocketgem.convert.export import export_to_gguf, export_to_safetensors
source, target = map(Path, sys.argv[1:])
print("ready", flush=True)
while True:
    export_to_gguf(source, target / "x.gguf")
    export_to_safetensors(target / "x.gguf", target / "st", replace=True)
    print("round", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_at_any_moment_no_file_loads_wrong(tmp_path: Path) -> None:
    folder, out = save_model(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    stored = {key: tensor.dense() for key, tensor in open_checkpoint(resolve(folder)).tensors.items()}
    in_gguf = {key: weights + float("norm" in key) for key, weights in stored.items()}
    in_folder = {key: weights - float("norm" in key) for key, weights in in_gguf.items()}
    expected = {out / "x.gguf": in_gguf, out / "st": in_folder}
    child = subprocess.Popen([sys.executable, "-c", LOOP, folder, out], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert [child.stdout.readline() for _ in range(2)] == ["ready\n", "round\n"]
    for moment in range(10):
        time.sleep(0.013 * (moment + 1) % 0.11)
        child.kill()
        child.wait()
        child.stdout.close()
        for path, weights in expected.items():
            if path.exists():
                found = open_checkpoint(resolve(path)).tensors
                assert all(torch.equal(found[key].dense(), weights[key]) for key in weights)
        child = subprocess.Popen([sys.executable, "-c", LOOP, folder, out], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
    assert child.stdout.readline() == "round\n"  # it goes on where the dead left off, and takes away what they left
    child.kill()
    child.wait()
    child.stdout.close()
    export_to_gguf(folder, out / "x.gguf")
    export_to_safetensors(out / "x.gguf", out / "st", replace=True)
    assert sorted(path.name for path in out.iterdir()) == ["st", "x.gguf", "x.gguf.sha256"]
    assert all(checked.good for checked in (*verify(out / "st"), *verify(out / "x.gguf")))


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")

    def into_file() -> None:
        with new_file(tmp_path / "x", 10) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    def into_folder() -> None:
        with new_folder(tmp_path / "f", 10) as folder:
            (folder / "a").write_bytes(b"new")
            raise KeyboardInterrupt

    for interrupted in (into_file, into_folder):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path) -> None:
    old = tmp_path / ".f.replaced.old"
    old.mkdir()
    (old / "a").write_bytes(b"kept")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "f", 10):
        raise ZeroDivisionError
    assert (tmp_path / "f" / "a").read_bytes() == b"kept"
    with new_folder(tmp_path / "f", 10) as folder:
        (folder / "b").write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["b"]


def test_what_a_living_writer_holds_is_left_alone_what_a_dead_one_left_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".x.99999999.0123abcd.tmp"
    dead.write_bytes(b"left")
    (tmp_path / ".x.other.tmp").write_bytes(b"not ours")
    with new_file(tmp_path / "x", 1) as first:
        first.write(b"1")
        with new_file(tmp_path / "x", 1) as second:
            second.write(b"2")
    assert not dead.exists()
    assert (tmp_path / "x").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.other.tmp", "x"]


def test_places_that_cannot_be_written_to_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "nowhere" / "x", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match="cannot be written"), new_file(target, 1):
            raise AssertionError("not reached")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


PACKING = """
import struct, sys
from pathlib import Path
import torch
from pocketgem.memory.packed_draft import Draft as PackedDraft
from pocketgem.memory.packed_file import Body, body_start, checksums, head_of
target, size = Path(sys.argv[1]), int(sys.argv[2])
head, body = head_of({"weights": "packed"}), Body((0,), size)
start = body_start(head, len(body.pieces))
print("ready", flush=True)
while True:
    with PackedDraft(target, start + size) as draft:
        draft.data[start:] = torch.arange(size) % 251
        sums = checksums(draft.data[start:], body.pieces)
        first = head + struct.pack(f"<{len(sums)}Q", *sums)
        draft.data[: len(first)] = torch.frombuffer(bytearray(first), dtype=torch.uint8)
        draft.publish()
    print("round", flush=True)
"""


def test_a_packed_cache_whose_writer_was_killed_is_whole_or_not_there(tmp_path: Path) -> None:
    target, size = tmp_path / "m.gguf.pocketgem", 3 << 20
    whole = 0
    for moment in range(10):
        child = subprocess.Popen([sys.executable, "-c", PACKING, target, str(size)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        if moment == 9:  # one whole round at least, however slow the machine is
            child.stdout.readline()
        time.sleep(0.011 * (moment + 1) % 0.09)
        child.kill()
        child.wait()
        child.stdout.close()
        if target.exists():
            kept = open_kept(target, head_of({"weights": "packed"}), Body((0,), size))
            assert kept is not None
            assert torch.equal(kept.body.long(), torch.arange(size) % 251)
            whole += 1
    assert whole > 0
    with PackedDraft(target, 4096):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.weights
def test_the_real_model_in_transformers_has_the_very_same_logits(real_model_path: Path, tmp_path: Path) -> None:
    """float32 here, from the GGUF file; float32 there, from the folder made of it."""
    done = export_to_safetensors(real_model_path, tmp_path / "st")
    assert (done.dtype, done.lossless) == ("float32", True)
    llm = LLM.load(real_model_path, dtype=torch.float32)
    ids = llm.tokenize("def fib(n):\n    return n if n < 2 else fib(n-1)\n\nDie größte Stadt ist 東京.")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "st")(llm.detokenize(ids[1:]))["input_ids"] == ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "st", dtype=torch.float32).eval()
    cache = llm.model.new_cache()
    step = Step.packed([cache], [len(ids)], logits=[len(ids)])
    with torch.inference_mode():
        ours = llm.model.logits(llm.model(llm.model.embed(torch.tensor(ids)), step))
        expected = theirs(input_ids=torch.tensor([ids])).logits[0]
    difference = (ours - expected).abs().max()
    print(f"largest difference {difference:.1e}")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
