"""Ray Serve's router with our choice of a replica. Ray imports this module by its name; nothing else does."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from pocketgem.serve.affinity import Affinity
from pocketgem.serve.forward import Forward


class AffineRouter(RequestRouter):
    """Runs where the handle is: in the server in front, which all requests pass, so its counts are everybody's."""

    def initialize_state(self) -> None:
        self.affinity = Affinity()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One a rank, the best first; Ray takes the first that is not full."""
        there = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        forward = _forward_of(pending_request)
        if forward is not None and forward.only in there:
            return [[there[forward.only]]]
        order = self.affinity.order(None if forward is None else forward.conversation, there)
        return [[there[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        forward = _forward_of(pending_request)
        conversation = None if forward is None else forward.conversation
        self.affinity.began(pending_request.metadata.internal_request_id, conversation, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self.affinity.ended(internal_request_id)


def _forward_of(pending: PendingRequest | None) -> Forward | None:
    """The request as the server in front has it."""
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, Forward) else None
