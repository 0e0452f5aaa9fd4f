"""The list of models, in one shape that OpenAI's clients read and Anthropic's too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import Looked
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

_OWNER: Final = "llm-routerd"
# Nobody knows when a chain was made; both protocols want to be told, and Anthropic's says so with this moment.
_CREATED: Final = 0
_CREATED_AT: Final = "1970-01-01T00:00:00Z"


def look(_: dict[str, Any], catalogue: Catalogue) -> Looked:
    """Chains, deployments and aliases: all at once, whatever page is asked for."""
    found = [_told(model.name) for model in catalogue.models]
    ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": None, "last_id": None}
    return Looked(body=encode({"object": "list", "data": found, "has_more": False, **ends}))


def look_at(named: dict[str, Any], catalogue: Catalogue) -> Looked:
    """One of them.

    Raises:
        RefusedError: there is none of this name.
    """
    return Looked(body=encode(_told(catalogue.find(str(named.get("model", ""))).name)))


def _told(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _CREATED,
        "owned_by": _OWNER,
        "type": "model",
        "display_name": name,
        "created_at": _CREATED_AT,
    }
