"""The providers that are known by name, a row each: where one is unlike another, the code reads its row.

The part of a deployment's `model` before its first slash names the provider.  Whoever has no row is called through
litellm, which knows a hundred more.

A backend has the name of the provider whose protocol it speaks, and is the module of that name in `backends`.  What
holds for all that a backend calls (`loads`, `lends_protocol`) stands in the row of that name.  So a new backend is a
module there and a row here; another server that speaks a protocol we know is a row.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct


class Provider(Struct, frozen=True, kw_only=True):
    """A row.

    Attributes:
        backend: who calls it where the deployment says `backend = "auto"`.
        home: its own address, for a deployment that gives no `api_base`.
        key_variable: holds the key to its own address; the credential of systemd's has this name in small letters.
        address_variable: says where its servers are, in the place of `home`.
        model_variable: says which model of it the deployment `local` is.
        loads: what the first call would wait for: the model, as the server tells and as it may be asked to; a library
            of ours, once and for all.
        lends_protocol: others speak its protocol at addresses of their own, so that each but itself has to give one.
    """

    backend: str
    home: str | None = None
    key_variable: str | None = None
    address_variable: str | None = None
    model_variable: str | None = None
    loads: Literal["model", "library"] | None = None
    lends_protocol: bool = False

    def is_home(self, api_base: str | None) -> bool:
        """Whether this is the provider's own address, which alone gets the key that its variable holds."""
        return self.key_variable is not None and (
            api_base is None or api_base == self.home or api_base.startswith(f"{self.home}/")
        )


_OLLAMA: Final = Provider(
    backend="ollama",
    home="http://127.0.0.1:11434",
    address_variable="OLLAMA_API_BASE",
    model_variable="OLLAMA_MODEL",
    loads="model",
)
_LIKE_OPENAI: Final = Provider(backend="openai")
_OTHER: Final = Provider(backend="litellm", loads="library")

PROVIDERS: Final[dict[str, Provider]] = {
    "ollama": _OLLAMA,
    "ollama_chat": _OLLAMA,
    "openai": Provider(
        backend="openai", home="https://api.openai.com", key_variable="OPENAI_API_KEY", lends_protocol=True
    ),
    "openai_like": _LIKE_OPENAI,
    "hosted_vllm": _LIKE_OPENAI,
    "lm_studio": _LIKE_OPENAI,
    "llamafile": _LIKE_OPENAI,
    "anthropic": Provider(backend="anthropic", home="https://api.anthropic.com", key_variable="ANTHROPIC_API_KEY"),
    "litellm": _OTHER,
}
BACKENDS: Final = tuple(name for name, row in PROVIDERS.items() if row.backend == name)
"""What may stand in `backend`, beside "auto"."""


def provider_of(model: str) -> Provider:
    """The row of a model's provider, by the model's whole name (`ollama/qwen2.5:7b`)."""
    return PROVIDERS.get(model.partition("/")[0], _OTHER)
