"""How the command ends: exit codes, and the error of who called it wrongly."""

from __future__ import annotations

from enum import IntEnum

from llm_routerd.errors import BrokerError, RouterdError


class Exit(IntEnum):
    """Exit codes; from 64 on as in sysexits.h."""

    OK = 0
    FAILED = 1  # a final event without an answer; a check that failed; a dead letter that is not there
    USAGE = 2
    UNKNOWN = 66  # nothing is known of the request
    UNAVAILABLE = 69  # Redis cannot be used
    TIMED_OUT = 75  # nobody answered in time
    NOT_ALLOWED = 77  # Redis does not let this user do it
    CONFIGURATION = 78  # unsound, or of a server that can never serve it
    INTERRUPTED = 130  # Ctrl-C


def nobody_listens(error: BaseException) -> bool:
    """Whether a connection failed because there is no server at the address."""
    cause: BaseException | None = error
    while cause is not None:
        # asyncio makes one plain OSError of the refusals of several addresses; the last is a Unix socket's.
        if type(cause) in {ConnectionRefusedError, OSError, FileNotFoundError}:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class UsageError(RouterdError):
    """The command was called wrongly: mend the arguments; exit code 2."""


class NotAcceptedError(RouterdError):
    """A request was refused, and is not queued; the exit code is that of the reason."""

    def __init__(self, why: BrokerError) -> None:
        super().__init__(f"not accepted: {why}")
        self.why = why
