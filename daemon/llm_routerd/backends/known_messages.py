"""Messages of servers that are recognised, and said in our own words: they quote prompts and keys."""

from __future__ import annotations

import re
from typing import NamedTuple


class Known(NamedTuple):
    """What a message says.

    `is_callers`: only this request's messages, tools or schema bring it about, whatever the status; another
    request will not meet it, and the deployment is not to blame.
    """

    phrase: str
    is_callers: bool


def known_message(message: str) -> Known | None:
    """What a server's message is known to say; None: nobody knows."""
    return next((known for pattern, known in _MESSAGES if pattern.search(message)), None)


def _callers(pattern: str, phrase: str) -> tuple[re.Pattern[str], Known]:
    return re.compile(pattern, re.IGNORECASE), Known(phrase, is_callers=True)


def _servers(pattern: str, phrase: str) -> tuple[re.Pattern[str], Known]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL), Known(phrase, is_callers=False)


UNKNOWN_MODEL = Known("the model is not known", is_callers=False)
"""Said of the model by its name, at the beginning: not by a message that quotes a prompt."""

_MESSAGES = (
    (
        re.compile(
            r"\A.{0,80}invalid model name passed in model=|\A(?:the )?(?:requested )?model [^\s]{1,200} (?:was |is )?"
            r"(?:not found|does not exist|not (?:a )?(?:known|valid|available|supported|loaded))"
            r"|\A(?:no such|unknown|invalid|unsupported) model\b",
            re.IGNORECASE,
        ),
        UNKNOWN_MODEL,
    ),
    _callers(r"does not support thinking", "the model does not support thinking"),
    _callers(r"does not support tools", "the model does not support tools"),
    _callers(r"does not support (?:images|vision|multimodal)", "the model takes no images"),
    # OpenRouter, with status 404.
    _callers(r"no (?:allowed )?endpoints found that", "no provider of the model takes such a request"),
    _servers(r"credit balance is too low", "the account's credit is used up"),
    _servers(r"requires more system memory", "the model does not fit into memory"),
    # llama.cpp and all that wrap it, Ollama among them, with status 500 (llama.cpp 19851, picoclaw 207,
    # raycast-openai-translator 34, mistral-vibe 1006); mistral.rs 45, fastmlx 22; Go's templates.
    _callers(
        r"jinja|chat.?template|raise_exception|roles? must alternate|role (?:is )?not supported|roles are supported"
        r"|no user query|message must be at the beginning|expected last role|\Atemplate: ",
        "the model's template does not take such messages",
    ),
    _callers(r"json.?schema|response_format|output_config|grammar", "the schema is not accepted"),
    _servers(r"model.{0,300}(?:not found|does not exist)", "the model is not known"),
)
