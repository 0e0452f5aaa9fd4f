"""The names that a request may give as its model, for people and programs that ask over HTTP."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from llm_routerd.gateway.fault import Fault, RefusedError, refused
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.routing.chains import deployments_of, names, resolve

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

_LATEST = ":latest"
_LONGEST_NAME = 128  # of which a near one is looked for: that takes a second for a million characters


class Model(Struct, frozen=True, kw_only=True):
    """What can be told of one name.

    Attributes:
        name: of a chain, of a deployment, or another name for one of them.
        kind: which of these it is: `chain`, `deployment`, `alias`.
        models: `provider/model` of all who may answer, in the order in which they would be asked.
        is_local: none of them is elsewhere.
        is_usable: not all of them lack their key.
    """

    name: str
    kind: str
    models: tuple[str, ...]
    is_local: bool
    is_usable: bool = True


class Catalogue:
    """Of one configuration.

    Attributes:
        models: what may be shown: all but those that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._aliases = config.gateway.aliases
        chains, deployments = set(config.chains), set(config.deployments)
        every = [self._told(name, "chain" if name in chains else "deployment") for name in names(config)]
        every += [self._told(name, "alias") for name in self._aliases if name not in chains | deployments]
        self._named = {model.name: model for model in every}
        self.models = tuple(model for model in every if model.is_usable)

    def _told(self, name: str, kind: str) -> Model:
        chain = resolve(self._config, self._aliases.get(name, name) if kind == "alias" else name)
        deployments = () if chain is None else deployments_of(self._config, chain)
        return Model(
            name=name,
            kind=kind,
            models=tuple(each.model for each in deployments),
            is_local=all(each.local for each in deployments),
            is_usable=any(each.key_missing is None for each in deployments),
        )

    def find(self, name: str) -> Model:
        """What is known of a name; `:latest`, which Ollama's clients add, may be there or not.

        Raises:
            RefusedError: nothing; the nearest name is told.
        """
        found = self._named.get(name) or self._named.get(name.removesuffix(_LATEST)) or self._named.get(name + _LATEST)
        if found is not None:
            return found
        shown = [model.name for model in self.models] or list(self._named)
        near = get_close_matches(name[:_LONGEST_NAME], shown, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(shown)}"
        told = f"model: no chain, deployment or alias has this name; {hint}"
        raise RefusedError(Fault(status=404, code=ErrorCode.UNKNOWN_MODEL, message=told, param="model"))

    def is_local(self, name: Any) -> bool:
        """Whether only local deployments can answer what gives this name as its model."""
        found = self._named.get(name) if isinstance(name, str) else None
        return found is not None and bool(found.models) and found.is_local

    def model_of(self, body: dict[str, Any], *, default: str | None = None) -> str:
        """What the request is to give as its `model`: the name that a body gives, or what that stands for.

        Raises:
            RefusedError: it gives none, or one that nobody knows.
        """
        given = body.get("model", default)
        if not isinstance(given, str) or not given:
            raise refused("model", "expected the name of a chain or of a deployment")
        name = self.find(given).name
        return self._aliases.get(name, name) if self._named[name].kind == "alias" else name
