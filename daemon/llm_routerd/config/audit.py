"""The table `[audit]` of the configuration: the stream of what was called."""

from typing import Annotated

from llm_routerd.config.table import Table, key

AuditSecret = Annotated[
    str,
    key(
        "What prompt_sha256 is keyed with, so that nobody can guess prompts; a secret, best given as a reference. "
        "Absent: a new one with each start, so that hashes compare within one worker's life only.",
        min_length=16,
        max_length=1024,
        is_secret=True,
        needs_restart=True,
    ),
]


class AuditConfig(Table, frozen=True, kw_only=True):
    """The stream `<prefix>:audit`: an entry per call to a model or a tool, and per word of a person; never a text."""

    enabled: Annotated[bool, key("Whether it is written.", needs_restart=True)] = True
    stream_maxlen: Annotated[
        int, key("Entries that the stream keeps, roughly; of each shard.", ge=1, le=1_000_000_000, needs_restart=True)
    ] = 100_000
    key: AuditSecret | None = None
