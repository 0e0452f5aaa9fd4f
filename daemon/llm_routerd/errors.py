"""The exceptions of the project, by what the operator has to do about them.

An answer that is rejected, a request that is malformed, a race that is lost: these are values, not
exceptions.  Exceptions are for bugs, bad configuration and lost connections.
"""

from __future__ import annotations


class RouterdError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigError(RouterdError):
    """The configuration is unsound: mend the file.  The message names file, key and remedy; exit code 78."""


class BrokerError(RouterdError):
    """Redis cannot be used as it is: look at the server.  The message says what it answered.

    Attributes:
        detail: what is wrong.
        remedy: what to do about it; "" where that is not known.
        is_refusal: the server, or whoever knows where it is, has said so: what was asked for last was not done.
    """

    def __init__(self, detail: str, remedy: str = "", *, is_refusal: bool = False) -> None:
        super().__init__(f"{detail}; {remedy}" if remedy else detail)
        self.detail = detail
        self.remedy = remedy
        self.is_refusal = is_refusal


class NotAllowedError(BrokerError):
    """Redis does not let this user do what was asked for: use another, or give it the right; exit code 77."""


class UnsuitableServerError(BrokerError):
    """This server can never serve us as it is: use another, or change what the message names; exit code 78."""


class UnknownRequestError(RouterdError):
    """Nothing is known of a request: it has no events, and no lane has it.  Mend the id, or insist.

    Attributes:
        why_unsure: why it may exist all the same; "": it does not.
        others: ids of requests that were seen in the lanes meanwhile.
    """

    def __init__(self, request_id: str, *, why_unsure: str = "", others: tuple[str, ...] = ()) -> None:
        super().__init__(f"nothing is known of {request_id}" + (f"; {why_unsure}" if why_unsure else ""))
        self.why_unsure = why_unsure
        self.others = others
