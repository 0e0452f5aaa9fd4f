"""What a request is to do next: ask a deployment, find out about one, or give up."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.codes import ErrorCode
    from llm_routerd.protocol.outcome import AttemptRecord


class Ask(Struct, frozen=True, kw_only=True):
    """Ask this deployment.

    Attributes:
        deployment: to be called once.
        wait_seconds: to be waited before the call; 0 for most.
        repair: why its last answer was invalid, to be sent along; None: an ordinary call.
        passed: what was passed over on the way here, to go into `attempts` before this one.
        members: where the deployment is that of one box, all of its model that may be asked now, itself included: any
            of them may be called in its place, see `placed`.
        is_last: there is nobody else to be asked after them.
        is_firm: calls of this request have been cut for others so often that this one is not to be.
    """

    deployment: Deployment
    wait_seconds: float = 0.0
    repair: str | None = None
    passed: tuple[AttemptRecord, ...] = ()
    members: tuple[Deployment, ...] = ()
    is_last: bool = False
    is_firm: bool = False


class Examine(Struct, frozen=True, kw_only=True):
    """Find out whether this deployment answers a call of ours, and say so with `examined`."""

    deployment: Deployment


class GiveUp(Struct, frozen=True, kw_only=True):
    """Nothing is left to be asked.

    Attributes:
        code: `chain_exhausted`, `local_exhausted` or `deadline_exceeded`.
        message: one line that says of each deployment why not.
        passed: as in `Ask`.
    """

    code: ErrorCode
    message: str
    passed: tuple[AttemptRecord, ...] = ()


Decision: TypeAlias = Ask | Examine | GiveUp
