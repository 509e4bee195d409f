"""How far each way of computing a model strays from the same weights in float32, over one text.

    python -m benchmarks.quality MODEL.gguf [--tokens 2000] [--text FILE] [--peer-python llama/bin/python]

At every position: the Kullback-Leibler divergence of the next token's probabilities from float32's, in nats, and
whether both find the same token most probable. Every way reads the same ids in a process of its own, one after the
other, and pipes its logits here. float32's lie in a temporary file meanwhile, a megabyte a position; in memory are ROWS
of them. benchmarks/peers.md says how to get llama.cpp.

The worker's half runs in the peer's interpreter too, which has neither torch nor the rest of this package's needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pocketgem.bench.peers.llama_cpp import BATCH, LlamaCpp
from pocketgem.convert.quality import Floats, compare
from pocketgem.errors import InputError, PocketgemError, RunError

ROOT = Path(__file__).parents[1]
ROWS = 4  # positions compared at a time: of 262,144 float64 each, they stay within what the allocator gives again


@dataclass(frozen=True)
class Task:
    """What everyone is given. ``ids``: one sequence, the beginning-of-sequence id first."""

    model: str
    ids: list[int]
    vocabulary: int
    threads: int


@dataclass(frozen=True)
class Subject:
    """One way of computing. ``dtype``: as ``LLM.load`` takes it, by name; None for packed weights."""

    name: str
    dtype: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    runtime: str = "ours"
    python: str = sys.executable


PLAIN = {"POCKETGEM_KERNELS": "torch"}  # dense weights and no compiled kernel: the definition itself
REFERENCE = Subject("float32", "float32", PLAIN)
HALF = Subject("bfloat16", "bfloat16", PLAIN)


# ---- the worker: a request on stdin; one line of facts and then raw float32 logits on stdout ------------------------


def serve() -> None:
    """What a runtime prints goes to stderr, so that stdout carries logits only."""
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        reader = (Ours if request["runtime"] == "ours" else Theirs)(request)
        out.write(json.dumps(reader.facts()).encode() + b"\n")
        for rows in reader.logits(request["ids"]):
            out.write(np.ascontiguousarray(rows, dtype=np.float32).data)


class Ours:
    """A loaded LLM that reads in chunks, as its engine does."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        import torch

        from pocketgem.llm import LLM

        dtype = request["dtype"] and getattr(torch, request["dtype"])
        self.llm = LLM.load(request["model"], dtype=dtype, threads=request["threads"], offline=True)

    def facts(self) -> dict[str, object]:
        from pocketgem import kernels

        return {"kernels": kernels.status.reason, "layers": type(self.llm.model.layers[0]).__name__}

    def logits(self, ids: Sequence[int]) -> Iterator[Floats]:
        """Those of every position, in order: arrays ``[rows, vocabulary]``."""
        import torch

        from pocketgem.model.cache import Step

        model, cache = self.llm.model, self.llm.model.new_cache()
        for start in range(0, len(ids), BATCH):
            piece = torch.tensor(ids[start : start + BATCH])
            step = Step.packed([cache], [len(piece)], logits=[len(piece)])
            with torch.inference_mode():
                hidden = model(model.embed(piece), step)
                step.commit()
                yield from (model.logits(rows).numpy() for rows in hidden.split(ROWS))


class Theirs(LlamaCpp):
    """llama.cpp, set up as where its speed is measured."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        super().__init__({**request, "context": len(request["ids"])})

    def logits(self, ids: Sequence[int]) -> Iterator[Floats]:
        """As ours; each array is good until the next is asked for."""
        for start in range(0, len(ids), BATCH):
            piece = ids[start : start + BATCH]
            self._run([(id, start + row, 0) for row, id in enumerate(piece)], wanted=range(len(piece)))
            yield np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (len(piece), self.vocabulary))


# ---- the worker's other end ----------------------------------------------------------------------------------------


@contextmanager
def at_work(subject: Subject, task: Task) -> Iterator[tuple[dict[str, object], Iterator[Floats]]]:
    """Facts about a subject, and its logits as they come. Raises RunError when its process fails."""
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as log:
        request.write(json.dumps({**asdict(task), "runtime": subject.runtime, "dtype": subject.dtype}).encode())
        request.seek(0)
        with start(subject, request, log) as process:
            assert process.stdout is not None
            try:
                facts = json.loads(process.stdout.readline() or b"{}")
                yield facts, arrays(process.stdout, len(task.ids), task.vocabulary)
            except EOFError:
                process.wait()
                raise RunError(f"{subject.name}: {last_words(log)}") from None


def start(subject: Subject, request: IO[bytes], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A peer's interpreter finds the package beside this page; ours where it is installed."""
    paths = {} if subject.python == sys.executable else {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [subject.python, "-c", "from benchmarks.quality import serve; serve()"],
        stdin=request,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        env={**os.environ, **paths, **subject.environment},
    )


def arrays(stream: IO[bytes], rows: int, columns: int) -> Iterator[Floats]:
    """float32 ``[ROWS, columns]``, the last one shorter. Raises EOFError when the stream ends before."""
    for first in range(0, rows, ROWS):
        size = min(ROWS, rows - first) * columns * 4
        data = stream.read(size)
        if len(data) < size:
            raise EOFError
        yield np.frombuffer(data, np.float32).reshape(-1, columns)


def last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line[:300] for line in reversed(lines) if line.strip()), "its process ended without a word")


# ---- the comparison ------------------------------------------------------------------------------------------------


def blocks(logits: Floats) -> Iterator[Floats]:
    return (logits[first : first + ROWS] for first in range(0, len(logits), ROWS))


def keep(task: Task, file: IO[bytes]) -> Floats:
    """The reference's logits ``[positions, vocabulary]``, in a file."""
    with at_work(REFERENCE, task) as (_, found):
        for rows in found:
            file.write(rows.data)
    file.flush()
    return np.memmap(file, np.float32, "r", shape=(len(task.ids), task.vocabulary))


def measure(task: Task, subjects: Iterable[Subject]) -> Iterator[tuple[Subject, dict[str, object]]]:
    """Each subject's quality and facts, as soon as they are known; the reference's own first."""
    with tempfile.TemporaryFile() as file:
        reference = keep(task, file)
        yield REFERENCE, {**asdict(compare(blocks(reference), blocks(reference), task.ids))}
        for subject in subjects:
            with at_work(subject, task) as (facts, found):
                yield subject, {**asdict(compare(blocks(reference), found, task.ids)), **facts}


# ---- the command line ----------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a GGUF file, or whatever else pocketgem loads")
    parser.add_argument("--tokens", type=int, default=2000, help="how many of the text's first tokens are read")
    parser.add_argument("--text", type=Path, default=ROOT / "LICENSE", help="a UTF-8 text (default: the licence)")
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python; without it no peer is measured")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[Task, list[Subject]]:
    """Look at everything before minutes of computing. Raises InputError for what cannot be measured."""
    from pocketgem import kernels
    from pocketgem.bench.subjects import chosen
    from pocketgem.checkpoint.load import open_checkpoint
    from pocketgem.checkpoint.resolve import resolve
    from pocketgem.model.build_packed import can_pack
    from pocketgem.parts import tokenizer_of

    checkpoint = open_checkpoint(resolve(options.model))
    ids = tokenizer_of(checkpoint).encode(options.text.read_text(encoding="utf-8"), add_bos=True)
    if not 2 <= options.tokens <= len(ids):
        raise InputError(f"--tokens {options.tokens}: {options.text} has {len(ids)}; name a longer text with --text")
    sets = [one.name for one in kernels.choice().each if one.usable] if can_pack(checkpoint) else []
    subjects = [Subject(f"packed, {name}", environment={"POCKETGEM_KERNELS": name}) for name in sets]
    if options.peer_python:
        (peer,) = chosen(["llama.cpp"], {"llama.cpp": options.peer_python}, {})
        subjects.append(Subject(peer.name, runtime=peer.name, python=peer.python))
    where = str(Path(checkpoint.where).resolve())
    return Task(where, ids[: options.tokens], checkpoint.config.vocab_size, options.threads), [*subjects, HALF]


def main() -> None:
    options = arguments()
    task, subjects = prepare(options)
    print(f"{len(task.ids)} tokens of {options.text.name}; divergence from float32 in nats")
    print(f"{'':18} {'mean':>9} {'99 %':>9} {'most':>9} {'same top-1':>11} {'perplexity':>11}")
    report: dict[str, object] = {"model": Path(task.model).name, "text": options.text.name, "tokens": len(task.ids)}
    for subject, found in measure(task, subjects):
        report[subject.name] = found
        print(
            f"{subject.name:18} {found['kl_mean']:9.2e} {found['kl_p99']:9.2e} {found['kl_max']:9.2e} "
            f"{found['same_top1']:11.2%} {found['perplexity']:11.4f}",
            flush=True,
        )
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except PocketgemError as error:
        sys.exit(f"error: {error}")
