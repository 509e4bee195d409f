"""``pocketgem tune --ray``: Ray Train starts the workers, on this machine or a cluster; each runs the same command."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from pocketgem.cli.screen import Screen
from pocketgem.errors import PocketgemError, RunError
from pocketgem.serve.scale import Scale


def scale_of(workers: int, threads: int | None, address: str | None) -> Scale:
    """Workers of this machine share its cores; those of a cluster have one each unless ``threads`` says more."""
    return Scale.here(workers, threads) if address is None else Scale(workers, threads, address)


def train_on_ray(verb: Callable[..., None], arguments: Sequence[str], scale: Scale, *, quiet: bool = False) -> None:
    """Run ``verb`` with these words of a command line in ``scale.replicas`` workers. Paths must mean the same on all
    machines.

    Raises InputError where Ray is missing, else what the first worker to fail raised, or RunError.
    """
    from pocketgem.serve.ray import connected

    scale.check()
    Screen(quiet=quiet).note(f"starting {scale.replicas} workers by Ray Train")
    told = {"verb": verb, "arguments": [*arguments[1:]], "folder": os.getcwd(), "argv": sys.argv}
    storage = tempfile.mkdtemp(prefix="pocketgem-train-")
    try:
        with connected(scale):
            _fit(told, scale, storage)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def report(out: Path, *, as_json: bool, quiet: bool) -> None:
    """What the workers left, as ``pocketgem tune`` says it."""
    record = json.loads((out / "adapter" / "run.json").read_text(encoding="utf-8"))
    if as_json:
        wanted = {key: record[key] for key in ("loss", "seconds", "recipe")}
        print(json.dumps({"event": "done", "adapter": str(out / "adapter"), **wanted}))
    Screen(quiet=quiet or as_json).note(
        f"{out / 'adapter'}: {record['parameters']:,} parameters, loss {record['loss']}"
    )


def _fit(told: dict[str, Any], scale: Scale, storage: str) -> None:
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        run_worker,
        train_loop_config=told,
        scaling_config=ScalingConfig(num_workers=scale.replicas, resources_per_worker={"CPU": scale.threads or 1}),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(storage_path=storage, name="tune", worker_runtime_env=_environment(scale)),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error


def _environment(scale: Scale) -> dict[str, Any]:
    variables = {"OMP_NUM_THREADS": str(scale.threads or 1)}
    if scale.address is None and os.path.exists("/sys/class/net/lo"):
        variables["GLOO_SOCKET_IFNAME"] = "lo"  # nobody outside needs to reach them
    return {"env_vars": variables}


def run_worker(told: Mapping[str, Any]) -> None:
    """One worker: Ray has connected the group, so the verb finds its team."""
    os.chdir(told["folder"])
    sys.argv = told["argv"]  # what the person typed, for the run's record
    app = typer.Typer(add_completion=False)
    app.command()(told["verb"])
    typer.main.get_command(app).main([*told["arguments"]], standalone_mode=False, obj=[])


def _cause(error: Exception) -> PocketgemError:
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        while isinstance(failure, BaseException):
            if isinstance(failure, PocketgemError):
                return failure
            failure = failure.__cause__  # type: ignore[assignment]  # None ends it
    lines = str(error).strip().splitlines()
    return RunError(f"Ray Train's workers failed: {lines[-1][:300] if lines else type(error).__name__}")
