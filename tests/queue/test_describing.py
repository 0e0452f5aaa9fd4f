"""What is said of a server's refusal: the server's word, a remedy, and nothing of our scripts."""

from __future__ import annotations

import pytest
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.errors import BrokerError, NotAllowedError, UnsuitableServerError
from llm_routerd.queue.connection.describing import as_broker_error, describe, without_innards
from llm_routerd.queue.connection.fitness import WrongServerError

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"WRONGTYPE Operation against a key script: {SHA}, on @user_script:82.", "WRONGTYPE Operation against a key"),
        (f"Wrong number of args script: {SHA}, on @user_script:8", "Wrong number of args"),
        ("WRONGTYPE Operation against a key script: on @user_script:1.", "WRONGTYPE Operation against a key"),
        ("user_script:82: attempt to index a nil value", "attempt to index a nil value"),
        (
            f"Error running script (call to f_{SHA}): @user_script:82: @user_script: 82: WRONGTYPE Operation",
            "WRONGTYPE Operation",
        ),
        ("the description of a script: short", "the description of a script: short"),
        ("x" * 500, "x" * 200),
        ("", ""),
    ],
)
def test_place_in_a_script_is_left_out(said: str, told: str) -> None:
    """Of Redis 6 to 8 and Valkey; other words stay."""
    assert without_innards(said) == told


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ResponseError(f"WRONGTYPE Operation script: {SHA}, on @user_script:82."), "ResponseError: WRONGTYPE Operation"),
        (
            OutOfMemoryError(f"command not allowed when used memory > 'maxmemory'. script: {SHA}, on @user_script:82."),
            "the server is out of memory (maxmemory); raise maxmemory, or wait until answers have expired",
        ),
        (
            ReadOnlyError(f"You can't write against a read only replica. script: {SHA}, on @user_script:82."),
            "the server is a replica, which takes no writes; name its primary in the Redis URL",
        ),
        (ResponseError("MISCONF Valkey is configured to save RDB snapshots, but it's"), "cannot save its data (MISCONF); look"),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "(NOREPLICAS); look"),
        (MovedError("7494 127.0.0.1:7001"), "this node of the cluster does not have our keys; they are at 127.0.0.1:7001"),
        (AskError("7494 127.0.0.1:7001"), "a slot of the Cluster is being moved to another node; wait"),
        (TryAgainError("Multiple keys request during rehashing of slot"), "a slot of the Cluster is being moved"),
        (ClusterDownError("Hash slot not served"), "the Cluster is down (CLUSTERDOWN); see that each slot has a node"),
        (TimeoutError(), "the server takes connections and does not answer; check whether its process is stopped"),
        (RedisTimeoutError("no reply"), "the server takes connections and does not answer"),
        (RedisTimeoutError("Timeout connecting to server"), "no connection could be made in time; look at the address"),
        (AuthenticationError("of a new kind: secret"), "AuthenticationError: not allowed"),
        (RedisError(""), "RedisError"),
    ],
)  # fmt: skip
def test_line_says_what_is_wrong_and_what_to_do(error: BaseException, says: str) -> None:
    """Where that is known; else the server's word."""
    told = describe(error)
    assert says in told
    assert "secret" not in told
    assert "script" not in told


def test_error_of_the_client_tells_what_to_change() -> None:
    """The user's rights, the server, or neither."""
    no_right = as_broker_error(NoPermissionError("this user has no permissions to run the 'xadd' command"))
    assert type(no_right) is NotAllowedError
    wrong = as_broker_error(WrongServerError("Redis 6.2.14 is too old", "newer is needed"))
    assert type(wrong) is UnsuitableServerError
    assert (wrong.detail, wrong.remedy) == ("Redis 6.2.14 is too old", "newer is needed")
    assert type(as_broker_error(ResponseError("ERR"))) is BrokerError
