"""Local boxes: machines with model servers, that several deployments and all workers share."""

from typing import Annotated, Literal

from llm_routerd.config.table import Table, key

_DISCARD_PORT = 9  # which nobody listens at: the packet is for the network card

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
    wake: Annotated[
        str,
        key(
            "Its MAC address: it is woken by Wake-on-LAN when a request wants it and it does not answer; empty: never.",
            pattern=r"^([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(-[0-9A-Fa-f]{2}){5})?$",
            expected="a MAC address like aa:bb:cc:dd:ee:ff",
        ),
    ] = ""
    wake_seconds: Annotated[
        float,
        key(
            "From the packet until its server answers, until that has been seen; twice that is waited.", ge=1, le=3_600
        ),
    ] = 90.0
    wake_address: Annotated[
        str,
        key(
            "Where the packet goes: a broadcast address, a subnet's own for a box in another; port 9 unless given.",
            pattern=r"^[^\s:/@]+(:[0-9]{1,5})?$",
            expected="an address like 192.168.2.255 or 192.168.2.255:9",
        ),
    ] = "255.255.255.255"
    sleep_after: Annotated[
        float,
        key("Seconds without a call, of all workers, after which `sleep_command` runs; 0: never.", ge=0, le=604_800),
    ] = 0.0
    sleep_command: Annotated[
        tuple[str, ...],
        key(
            "What puts it to sleep: a program and its arguments, run without a shell, as the daemon's user.",
            max_length=64,
            is_secret=True,
        ),
    ] = ()

    @property
    def wake_at(self) -> tuple[str, int]:
        """Host and port that the packet goes to."""
        host, _, port = self.wake_address.partition(":")
        return host, int(port or _DISCARD_PORT)


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
