"""The worker's side: a loaded model obeys commands from stdin, one JSON line each, and answers on stdout.

    {"prefill": 512, "seed": 0}                            -> {"seconds": [time to the first token]}
    {"decode": 64, "depth": 128, "seed": 0}                -> {"seconds": [each step]}
    {"sequences": 10, "decode": 64, "depth": 128, ...}     -> {"seconds": [each step of all together]}

Every answer carries the process's peak memory so far, and of a subject that has ``costs()`` (name -> number, of the
command just done) these too. A worker that waits sits in ``readline`` and uses no processor.
Only the standard library is used here: peers run this in interpreters of their own.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

FIRST_ID = 300  # below are control tokens and single bytes


class Subject(Protocol):
    """A loaded model. Times are in seconds; the next token is always the most probable one."""

    def facts(self) -> dict[str, object]:
        """What was measured: version, build, types, and whatever else a reader should know."""

    def prefill(self, prompt: list[int]) -> float:
        """Read a prompt from nothing, until the first token is known."""

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        """Read the prompts, then write ``steps`` more tokens to each, all advancing together: each step's time.

        Raises NotImplementedError where this runtime cannot.
        """


Load = Callable[[dict[str, Any]], Subject]


def main(load: Load) -> None:
    """Serve one model. The only argument is JSON: model, threads, context, vocabulary, and the peer's own options.

    What the runtime prints goes to stderr, so that stdout carries answers only.
    """
    options = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(load, options, sys.stdin, answers)


def serve(load: Load, options: dict[str, Any], commands: IO[str], answers: IO[str]) -> None:
    """Load, answer the facts, then obey until the commands end. A failure is an answer too, and the end."""
    try:
        began = time.perf_counter()
        subject = load(options)
        _answer(answers, {"load_s": time.perf_counter() - began, "facts": subject.facts()})
        while line := commands.readline():
            answer = obey(subject, json.loads(line), options["vocabulary"])
            _answer(answers, answer | {"costs": getattr(subject, "costs", dict)()})
    except Exception as error:  # whatever a runtime raises: the parent says it in one line
        text = " ".join(str(error).split())[:300]
        _answer(answers, {"error": f"{type(error).__name__}: {text}"})


def obey(subject: Subject, command: dict[str, int], vocabulary: int) -> dict[str, object]:
    """Carry out one command."""
    seed = command["seed"]
    if "prefill" in command:
        return {"seconds": [subject.prefill(prompt_ids(seed, command["prefill"], vocabulary))]}
    number, depth = command.get("sequences", 1), command["depth"]
    prompts = [prompt_ids(f"{seed}/{index}", depth, vocabulary) for index in range(number)]
    try:
        return {"seconds": subject.decode(prompts, command["decode"])}
    except NotImplementedError as error:
        return {"unsupported": str(error)}


def prompt_ids(seed: int | str, length: int, vocabulary: int) -> list[int]:
    """Random ids, the same for every subject that is given the same seed."""
    dice = random.Random(str(seed))
    return [dice.randrange(min(FIRST_ID, vocabulary // 2), vocabulary) for _ in range(length)]


def timed(work: Callable[[], object]) -> float:
    """Seconds the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def memory() -> dict[str, float]:
    """MiB of this process: the most ever resident, and now without pages of mapped files. Empty where /proc is not."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        return {}
    wanted = {"peak_MiB": "VmHWM", "anonymous_MiB": "RssAnon"}
    return {name: int(fields[field].split()[0]) / 1024 for name, field in wanted.items() if field in fields}


def argmax_rows(logits: Any) -> Sequence[int]:
    """The most probable id of each row of a NumPy array or a tensor ``[rows, vocabulary]``."""
    found: Sequence[int] = logits.argmax(-1).tolist()
    return found


def _answer(answers: IO[str], answer: dict[str, object]) -> None:
    answers.write(json.dumps({**answer, "memory": memory()}) + "\n")
    answers.flush()
