"""What goes to a backend and what comes back from it: one call to one deployment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from llm_routerd.errors import RouterdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.protocol.codes import AttemptCode, Lack
    from llm_routerd.protocol.outcome import ToolCall, Usage


class Sending(Struct, kw_only=True):
    """How far a call has come on its way to the server.  Written by a backend that can tell.

    Attributes:
        is_looking_up: its host name is being looked up.
        is_under_way: it may have been sent; False only where it is known that no connection stands for it yet.
    """

    is_looking_up: bool = False
    is_under_way: bool = True


class TokenFactors(Struct, frozen=True):
    """What a model counts of a prompt, as a multiple of what is guessed of it: at least, at most."""

    low: float
    high: float


ANY_FACTORS: Final = TokenFactors(0.0, math.inf)
"""Nothing is known."""


def any_factors(_kind: int) -> TokenFactors:
    """Nothing is known of text of this kind."""
    return ANY_FACTORS


class Call(Struct, frozen=True, kw_only=True):
    """One question to one deployment.

    Attributes:
        messages: OpenAI chat messages.
        schema: JSON Schema of the answer, to be passed on in the backend's native form; None: plain text.
        tools, tool_choice: OpenAI form, passed on in the backend's form.
        params: from the protocol's closed list (`temperature`, `top_p`, `top_k`, `max_tokens`, `stop`, `seed`,
            `presence_penalty`, `frequency_penalty`, `reasoning_effort`, `parallel_tool_calls`), and what the
            operator's configuration adds in `params`.
        connect_seconds: longest time until the connection stands.
        traceparent: W3C trace context to send along, where the request had one.
        sending: how far it has come.
        token_factors: tells by the kind of a text what the model's server has counted of prompts, against what was
            guessed of them.
    """

    messages: tuple[dict[str, Any], ...]
    schema: dict[str, Any] | bool | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    connect_seconds: float = 5.0
    traceparent: str | None = None
    sending: Sending = field(default_factory=Sending)
    token_factors: Callable[[int], TokenFactors] = any_factors

    @property
    def may_call(self) -> bool:
        """Whether the model may call a tool: `tool_choice` `none` offers them in name alone."""
        return bool(self.tools) and self.tool_choice != "none"


class Delta(Struct, frozen=True):
    """What one read from the connection brought, everything in it joined: model text, thinking, in order."""

    text: str = ""
    reasoning: str = ""


class Finish(Struct, frozen=True, kw_only=True):
    """The backend's terminal event, the last thing a stream yields; without it the stream was cut.

    Attributes:
        finish_reason: `stop` or `tool_calls` for a whole answer; `length`, `context_window`, `content_filter`,
            `refusal`; `not_generated`, where the server saw nothing to answer; `truncated`, where it gave a reason
            that we do not know.
        word: the server's own reason, in letters that are safe to repeat.
        usage: as the backend counted; None where it did not say.
        tool_calls: complete, assembled from their deltas.
        text, reasoning: what the same read brought before the terminal event.
        refusal: the backend's structured refusal, if it gave one ("" is one too).
    """

    finish_reason: str
    word: str = ""
    usage: Usage | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    text: str = ""
    reasoning: str = ""
    refusal: str | None = None


class ProbeReport(Struct, frozen=True, kw_only=True):
    """What `check` and the warmer learn of a deployment without spending tokens.

    Attributes:
        ok: it answers and knows the model.
        detail: one line for a person.
        loaded: whether the model is in memory; None where the backend cannot tell.
        is_silent: nobody is there.
    """

    ok: bool
    detail: str
    loaded: bool | None = None
    is_silent: bool = False


class Window(Struct, frozen=True, kw_only=True):
    """How many tokens of prompt and answer together a model takes, as far as its server tells.

    Attributes:
        most: that it takes at all; None: nobody tells.
        now: that it takes as it is loaded, or would be; None: nobody tells.
        is_asked_for: a call may ask for more than `now`, by `num_ctx`; the model is then loaded anew.
        loaded: that it is loaded with; None: it is not loaded, or nobody tells.
    """

    most: int | None = None
    now: int | None = None
    is_asked_for: bool = False
    loaded: int | None = None


class BackendError(RouterdError):
    """One call to one model failed.  Raised by a backend only, turned into a rejected attempt by `running`.

    Attributes:
        code: the code of the rejected attempt, as in the protocol.
        reason: one line for logs and events; holds no prompt, no answer and no key.
        retryable: whether the same deployment may be asked again soon.
        retry_after_seconds: what the server asked for, where it did.
        status: the HTTP status, where there was one.
        refused_field: the optional field of the request that the server refuses by name, if that is why.
        lack: what of our own was missing, if that is why.
    """

    def __init__(
        self,
        code: AttemptCode,
        reason: str,
        *,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        lack: Lack | None = None,
    ) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.lack = lack
        self.refused_field: str | None = None
