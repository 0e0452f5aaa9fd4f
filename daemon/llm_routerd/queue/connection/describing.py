"""What is wrong with Redis, in one line for a person, and what to do about it.

Never an address with a password (redis-py quotes host and port only), nor what a server may quote of a command: of one
that an ACL refuses or that the server does not know it has the name, and no key, value or user.  Nor where in a script
of ours a command was refused, which tells an operator nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.errors import BrokerError, NotAllowedError, UnsuitableServerError

NO_CONNECTION = "Timeout connecting to server"  # redis-py's word for a TCP connection that did not come about
_MOST_CHARACTERS = 200


class Told(NamedTuple):
    """What is wrong, and the remedy; "" where that is not known."""

    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.detail}; {self.remedy}" if self.remedy else self.detail


class SetupError(RedisConnectionError):
    """The server is there, and no connection comes about until somebody changes something."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.told = Told(detail, remedy)


class NobodyTells(RedisConnectionError):  # noqa: N818 - said of a search, which is made again
    """Where the server is could not be found out now."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.told = Told(detail, remedy)


# Of a server's refusals these quote users, keys or arguments.
_REFUSALS = (
    (re.compile(r"no permissions to run the '([\w|.-]{1,64})' command"), "the user may not run"),
    (re.compile(r"permissions to access (?:a|one of the|the '.*') (key|channel)"), "the user may not access a"),
    (re.compile(r"unknown (?:sub)?command [`'\"]?([\w|.-]{1,64})"), "unknown command"),
)
_PASSWORDS = (
    (
        re.compile(r"Authentication required|already authenticated"),
        Told(
            "the server wants a password, and the Redis URL has none", "put them there, before the host: user:password@"
        ),
    ),
    (
        re.compile(r"without any password|no password is set"),
        Told("the server has no password, and the Redis URL has one", "leave it out there, or set it on the server"),
    ),
    (
        re.compile(r"invalid username-password pair|invalid password"),
        Told("the server does not take the user and password of the Redis URL", "correct them there, or on the server"),
    ),
)
# What a server says when it takes no writes, or nothing, for now.
_NOT_NOW = (
    (
        re.compile(r"OOM command not allowed|used memory > 'maxmemory'"),
        Told("the server is out of memory (maxmemory)", "raise maxmemory, or wait until answers have expired"),
    ),
    (
        re.compile(r"against a read only replica"),
        Told("the server is a replica, which takes no writes", "name its primary in the Redis URL"),
    ),
    (
        re.compile(r"\AMISCONF\b"),
        Told("the server takes no writes, for it cannot save its data (MISCONF)", "look at its log and at its disk"),
    ),
    (
        re.compile(r"\ANOREPLICAS\b"),
        Told(
            "the server takes no writes without its replicas (NOREPLICAS)", "look at them, and at min-replicas-to-write"
        ),
    ),
    (
        re.compile(r"\ABUSY "),
        Told("the server is busy with a script (BUSY)", "wait for it, or end it with SCRIPT KILL"),
    ),
)
_BY_TYPE = {
    BusyLoadingError: Told("the server is loading its data (BusyLoadingError)", "wait until it has"),
    AskError: Told("a slot of the Cluster is being moved to another node", "wait until it has been"),
    TryAgainError: Told("a slot of the Cluster is being moved to another node", "wait until it has been"),
    ClusterDownError: Told("the Cluster is down (CLUSTERDOWN)", "see that each slot has a node that serves it"),
}
_SILENT = Told(
    "the server takes connections and does not answer",
    "check whether its process is stopped, is swapping, or is busy with one long command",
)
_UNREACHED = Told("no connection could be made in time", "look at the address, at the network, and at firewalls")
# Where it was in a script: `script: 0a1b…, on @user_script:82.` behind it (without a hash in Valkey 9),
# `user_script:82: ` before it.
_INNARDS = re.compile(
    r"[ ,]*\bscript: ?(?:[0-9a-f]{40}\b[ ,]*)?(?:on @?user_script:\s?\d+\.?|\Z)|[ ,]*\bon @?user_script:\s?\d+\.?"
    r"|@?user_script:\s?\d+: ?|Error running script \(call to \w+\): ?"
)


def explain(error: BaseException) -> Told:
    """What is wrong with Redis, and the remedy."""
    match error:
        case BrokerError():
            return Told(error.detail, error.remedy)
        case SetupError() | NobodyTells():
            return error.told
        case MovedError():
            where = f"{error.host}:{error.port}" if error.host else f"port {error.port} of the same host"
            return Told("this node of the cluster does not have our keys", f"they are at {where}")
        case RedisTimeoutError() if NO_CONNECTION in str(error):
            return _UNREACHED
        case RedisTimeoutError() | TimeoutError():
            return _SILENT
        case _:
            return _by_words(error)


def _by_words(error: BaseException) -> Told:
    if (told := _BY_TYPE.get(type(error))) is not None:
        return told
    kind, text = type(error).__name__, str(error)
    for pattern, begins in _REFUSALS:
        if match := pattern.search(text):
            where = " (in a script)" if "in script" in text else ""
            return Told(f"{kind}: {begins}{''.join(f' {name}' for name in match.groups())}{where}")
    for pattern, told in _PASSWORDS if isinstance(error, AuthenticationError) else _NOT_NOW:
        if pattern.search(text):
            return told
    if isinstance(error, (AuthenticationError, NoPermissionError)):
        return Told(f"{kind}: not allowed")
    first = next((line for line in text.splitlines() if line.strip()), "")
    said = without_innards(first)
    return Told(f"{kind}: {said}" if said else kind)


def describe(error: BaseException) -> str:
    """The same in one line."""
    return str(explain(error))


def without_innards(said: str) -> str:
    """What a server said, without the place in a script of ours; bounded."""
    return _INNARDS.sub("", said).strip()[:_MOST_CHARACTERS]


def lasts(error: BaseException) -> bool:
    """Whether no later try can succeed until somebody changes the server, its users or our configuration."""
    kinds = (UnsuitableServerError, SetupError, AuthenticationError, AuthorizationError, NoPermissionError)
    return isinstance(error, kinds)


def as_broker_error(error: RedisError, stream: str = "") -> BrokerError:
    """The error for whoever does not know redis-py; `stream`: the key that was to be one, where it is known."""
    if stream and "WRONGTYPE" in str(error):
        remedy = "RENAME or DEL it"
        return BrokerError(f"{stream} is not a stream but a key of another type", remedy, is_refusal=True)
    told = explain(error)
    kind: type[BrokerError] = BrokerError
    if isinstance(error, UnsuitableServerError):
        kind = UnsuitableServerError
    elif isinstance(error, NoPermissionError):
        kind = NotAllowedError
    return kind(told.detail, told.remedy, is_refusal=_is_refusal(error))


def _is_refusal(error: RedisError) -> bool:
    """Whether it was said before anything was done, or a connection made: else the command may have been run."""
    said = (ResponseError, BusyLoadingError, AuthenticationError, AuthorizationError, SetupError, UnsuitableServerError)
    return isinstance(error, (*said, NobodyTells))
