"""A connection to Redis, and what can be wrong with it.

`factory` makes a connection, by the `handshake`, which asks for the server's `whereabouts` (`locating` reads the URL;
`sentinels` tell, or nodes of a `cluster`, on connections of `asking`), for its `fitness` and, where nothing comes of
it, for a `diagnosis`; `bounded_parser` and `skimmer` read its replies; `describing` says what is wrong.  `pipe` shares
one among all commands of a worker, bounds the server's `silence`, and asks `replicas` for what is to stand there, too;
a `subscriber` hears many channels on one; `pooled` has those of a client, and `reach` lets the connections of one
worker tell each other that the server is back.
`surroundings` are what Sentinels and a Cluster tell `check`.

Doors: what is named here, `fitness` and `surroundings` for whoever asks what a server is and what is about it, and
`pooled` for the client.
It knows nothing of lanes and requests: a script is to it what the server is told when a connection begins.
"""

from __future__ import annotations

from llm_routerd.queue.connection.describing import as_broker_error, describe, lasts
from llm_routerd.queue.connection.factory import (
    Backoff,
    ConnectionFactory,
    MovedError,
    RedisError,
    ResponseError,
    execute,
    is_missing_group,
    is_passed,
    is_unfit,
    is_wrong_type,
)
from llm_routerd.queue.connection.fitness import Greeting, Needs
from llm_routerd.queue.connection.locating import whereabouts_of
from llm_routerd.queue.connection.pipe import Command, Pipe, PipeState, resolving
from llm_routerd.queue.connection.replicas import Replicas
from llm_routerd.queue.connection.skimmer import Bounds
from llm_routerd.queue.connection.subscriber import Subscriber
from llm_routerd.queue.connection.whereabouts import Whereabouts

__all__ = [
    "Backoff",
    "Bounds",
    "Command",
    "ConnectionFactory",
    "Greeting",
    "MovedError",
    "Needs",
    "Pipe",
    "PipeState",
    "RedisError",
    "Replicas",
    "ResponseError",
    "Subscriber",
    "Whereabouts",
    "as_broker_error",
    "describe",
    "execute",
    "is_missing_group",
    "is_passed",
    "is_unfit",
    "is_wrong_type",
    "lasts",
    "resolving",
    "whereabouts_of",
]
