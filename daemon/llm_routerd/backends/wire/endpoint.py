"""Where a deployment's server is, and what every request to it carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from multidict import CIMultiDict
from yarl import URL

from llm_routerd.backends import faults
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call


Body = TypeVar("Body")


class Endpoint:
    """A deployment's `api_base`, with or without the path that its protocol has at the end, and its headers.

    Attributes:
        is_genuine: it is the address of whoever's protocol is spoken there, who may be stricter than others with it.

    Raises:
        ConfigError: `api_base` is no http(s) address.
    """

    def __init__(self, deployment: Deployment, *, strip: tuple[str, ...]) -> None:
        home = deployment.protocol.home or ""
        base = (deployment.api_base or home).rstrip("/")
        for suffix in strip:
            base = base.removesuffix(suffix)
        try:
            url = URL(base)
        except ValueError:
            url = URL()
        if url.scheme not in {"http", "https"} or not url.host:
            raise ConfigError(
                f"deployments.{deployment.name}.api_base is not an http:// or https:// address; "
                "write for example http://127.0.0.1:11434"
            )
        self._base = base
        self.is_genuine = url.host == URL(home).host

    def url(self, path: str) -> URL:
        """The address of `path`, which starts with a slash."""
        return URL(self._base + path)

    def headers(self, own: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of a JSON request, with those of the protocol; as aiohttp keeps them, to be copied cheaply."""
        return CIMultiDict({"Content-Type": "application/json", **own})

    def traced(self, headers: Mapping[str, str], traceparent: str | None) -> Mapping[str, str]:
        """The same with the request's trace context."""
        return headers if traceparent is None else {**headers, "traceparent": traceparent}


def converted(convert: Callable[[Deployment, Call], Body], deployment: Deployment, call: Call) -> Body:
    """The body that `convert` makes of a call.

    Raises:
        BackendError: the call's messages or tools have a shape that nothing can be made of, or content
            that is not in them whole.
    """
    try:
        _refuse_other_parts(call)
        return convert(deployment, call)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise faults.unsupported("a message or a tool does not have OpenAI's form") from None


def _refuse_other_parts(call: Call) -> None:
    """Content is text, or what lies in it whole: no request is to choose what a server fetches, or we do for it."""
    for message in call.messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            match part:
                case {"type": "text", "text": str(), **more} if not more:
                    continue
                case {"type": "image_url", "image_url": {"url": str(data)}, **more} if not more:
                    pass
                case {"type": "file", "file": {"file_data": str(data)}, **more} if (
                    not more and "file_id" not in part["file"]
                ):
                    pass
                case _:
                    raise faults.unsupported("content is text, or an image or a file as a data URL")
            if not data.startswith("data:"):
                raise faults.unsupported("images and files are taken as data URLs only")
