"""Which of litellm's deployments can never answer, for nothing can have brought the key that their provider wants.

litellm's list of keys knows one name of some that it takes, and none of the ways past a key: files, roles, tokens of
other kinds.  Whatever leaves a doubt counts as a key, for a deployment that can answer must not be called unusable.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from llm_routerd.config.providers import PROVIDERS

if TYPE_CHECKING:
    from llm_routerd.config.tree import Deployment

_AWS = frozenset({"bedrock", "sagemaker"})
_KEYS = ("_API_KEY", "_TOKEN")
_OF_OTHERS = frozenset(row.key_variable for row in PROVIDERS.values())
_BRINGS_KEYS = ("key", "token", "secret", "credential", "headers", "aws_", "vertex_", "azure_")


def missing_key(litellm: Any, deployment: Deployment) -> str | None:
    """The key that is missing, in words; None: there is one, or there may be.  May ask a machine's metadata service."""
    if deployment.api_key or deployment.api_base or _brings_its_own(deployment):
        return None
    if deployment.provider in _AWS:
        return None if _may_have_aws() else "no AWS credentials"
    wanted = list(litellm.validate_environment(deployment.model)["missing_keys"])
    if not wanted or not all(name.endswith(_KEYS) for name in wanted) or _has_another_name(deployment.provider):
        return None
    return f"no {' or '.join(wanted)}"


def _brings_its_own(deployment: Deployment) -> bool:
    return any(word in name.lower() for name in deployment.params for word in _BRINGS_KEYS)


def _has_another_name(provider: str) -> bool:
    """Whether a variable is set that may be the provider's key, as `OR_API_KEY` is OpenRouter's."""
    first = provider[:1].upper()
    return any(
        value and name.startswith(first) and name.endswith(_KEYS) and (name not in _OF_OTHERS)
        for name, value in os.environ.items()
    )


def _may_have_aws() -> bool:
    if os.environ.get("AWS_BEARER_TOKEN_BEDROCK"):
        return True
    try:
        session: Any = importlib.import_module("botocore.session")
        return session.Session().get_credentials() is not None
    except Exception:  # noqa: BLE001 - a profile that is not there, for one: a call will tell
        return True
