"""Replicas in processes of their own, on this machine or a cluster, started and watched over by Ray Serve.

Requests come in at our own port and pass our own guard; Ray's HTTP proxies are off. Ray is imported by the functions
that need it: it is an extra.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from pocketgem.errors import RunError
from pocketgem.serve.forward import Forward, Lost, Sent, State
from pocketgem.serve.scale import Scale
from pocketgem.serve.worker import Plan, Worker

ROUTER = "pocketgem.serve.ray_router.AffineRouter"
OBJECT_STORE = 256 << 20  # bytes; large requests pass through it
STATE_SECONDS = 5.0  # for a replica to say how it is
HEALTH_SECONDS = 10.0  # between looks of Ray at a replica
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}  # see memory/arena.py; Ray starts threads before a replica's first line runs
SPARE = 64  # requests of a replica beside those the guard lets in: they never wait in Ray


class Replica:
    """What Ray runs in each process."""

    async def __init__(self, plan: Plan, *, local: bool) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from ray import serve

        if local:
            _stay_at_home()
        context = serve.get_replica_context()
        self.worker: Worker = plan.worker(context.replica_id.unique_id, context.rank.rank)
        await self.worker.start()

    async def answer(self, forward: Forward) -> AsyncGenerator[Sent]:
        async for sent in self.worker.answer(forward):
            yield sent

    async def state(self) -> State:
        return await self.worker.state()

    async def check_health(self) -> None:
        """Ray starts a replica anew when this fails: one that has work and makes no step."""
        if (await self.worker.state()).stuck:
            raise RunError("the engine has work and makes no step")

    async def __del__(self) -> None:
        await self.worker.close()


class RayReplicas:
    """The replicas of one deployment, for the server in front."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.stream = handle, handle.options(stream=True, method_name="answer")

    async def answer(self, forward: Forward) -> AsyncGenerator[Sent]:
        """See ``Replicas``."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        response = self.stream.remote(forward)
        try:
            async for sent in response:
                yield sent
        except (RayError, RayServeException) as error:
            raise Lost from error
        finally:
            response.cancel()  # of an answer that is complete it does nothing

    async def states(self) -> list[State]:
        """See ``Replicas``."""
        try:
            found = await self.handle.broadcast("state").results_async(timeout_s=STATE_SECONDS, return_exceptions=True)
        except TimeoutError:
            return []
        return [state for state in found if isinstance(state, State)]


@contextmanager
def started(plan: Plan, scale: Scale) -> Iterator[RayReplicas]:
    """Replicas that are ready; they end with the block. Raises RunError for a cluster or a model that fails."""
    with connected(scale) as name:
        from ray import serve

        try:
            yield RayReplicas(_deploy(plan, scale, name))
        finally:
            if scale.address is not None:
                serve.delete(name)


@contextmanager
def connected(scale: Scale) -> Iterator[str]:
    """Ray, running; a name for what will be deployed. What is started here ends here, its files too."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves the machine unasked
    folder = tempfile.mkdtemp(prefix="pocketgem-") if scale.address is None else None  # for this person only
    if folder is not None:
        os.environ.update(
            RAY_AUTH_MODE="token",  # another person of this machine reaches its ports too
            RAY_AUTH_TOKEN=secrets.token_hex(32),
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # no cluster: Ray then listens at 127.0.0.1 only
            RAY_gcs_rpc_server_reconnect_timeout_s="15",  # so that Ray's helpers see a kill -9 of this process sooner
            RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE="1",  # /dev/shm is small in a container
        )
    import ray

    try:
        _init(ray, scale, folder)
        yield f"pocketgem-{secrets.token_hex(4)}"
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _init(ray: Any, scale: Scale, folder: str | None) -> None:
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if folder is None:
        options["address"] = scale.address
    else:
        options |= {
            "address": "local", "include_dashboard": False, "num_cpus": scale.replicas * (scale.threads or 1),
            "object_store_memory": OBJECT_STORE, "_node_ip_address": "127.0.0.1", "_temp_dir": folder,
        }  # fmt: skip
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if scale.address is None else f"at {scale.address}"
        raise RunError(f"Ray does not run {where}: {_first_line(error)}") from error


def _deploy(plan: Plan, scale: Scale, name: str) -> Any:
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # the import set it
    cards = int(plan.loader.options["device"] == "cuda")  # without a claim Ray hides them from a replica
    if cards * scale.replicas > ray.cluster_resources().get("GPU", 0):
        raise RunError(f"each of {scale.replicas} replicas wants a card of its own, and Ray does not see so many")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    room: dict[str, object] = {"max_replicas_per_node": 1} if scale.threads is None else {}
    deployment = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=scale.replicas,
        ray_actor_options={"num_cpus": scale.threads or 1, "num_gpus": cards, "runtime_env": {"env_vars": ONE_ARENA}},
        max_ongoing_requests=plan.settings.max_requests + SPARE,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=max(1.0, plan.settings.drain_seconds),
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        logging_config=quiet,
        **room,
    )
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        bound = deployment.bind(plan, local=scale.address is None)
        return serve.run(bound, name=name, route_prefix=None)
    except RuntimeError as error:
        raise RunError(f"the replicas do not start: {_first_line(error)}") from error


def _stay_at_home() -> None:
    """Ray Serve opens a port of each replica to the network, token or not, whatever its node's address is: not here."""
    import ray.serve._private.replica as replica

    listen = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: listen(server, address.replace("[::]", "127.0.0.1"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]
