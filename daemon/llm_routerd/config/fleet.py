"""Local boxes: machines with model servers, that several deployments and all workers share."""

from typing import Annotated, Literal

from llm_routerd.config.table import Table, key

BoxKind = Literal["ollama", "llamacpp", "vllm", "openai"]


class Box(Table, frozen=True, kw_only=True):
    """A machine with a model server."""

    name: Annotated[str, key("Its name.", is_ours=True)]
    api_base: Annotated[
        str,
        key(
            "Address of its server; required.",
            pattern=r"^https?://[^/\s]+",
            expected="an address like http://attic.lan:11434",
            is_secret=True,
        ),
    ]
    kind: Annotated[BoxKind, key("What runs there; of an Ollama it is asked which models are in memory.")] = "ollama"
    slots: Annotated[int, key("Calls at once, over all workers and all models.", ge=1, le=1_000)] = 1
    reserve: Annotated[int, key("Of these slots so many are kept for the high lane.", ge=0, le=999)] = 0
    memory_gb: Annotated[
        float,
        key("What its models share, in 10^9 bytes; 0: not known, and then one model fits at a time.", ge=0, le=100_000),
    ] = 0.0


class FleetConfig(Table, frozen=True, kw_only=True):
    """Who goes first on boxes."""

    max_wait: Annotated[
        float, key("Seconds that calls for a model in memory may go before one whose turn it is.", ge=0, le=3_600)
    ] = 30.0
    min_resident: Annotated[
        float, key("Seconds that a model stays which was loaded, while calls wait for it.", ge=0, le=3_600)
    ] = 20.0
    preempt: Annotated[
        bool,
        key(
            "A call of the low lane is broken off, and begun again later, for one of the high lane that finds no slot."
        ),
    ] = False
