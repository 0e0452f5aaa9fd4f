"""What the stand-in model says: directives, and small valid instances of a JSON Schema.  All of it deterministic.

A directive is text in double square brackets within the last user message, or the same text without the brackets
as a model's configuration.  It holds words separated by blanks: `name` or `name=value`, quoted as in a shell:

    [[id=r17 tokens=40 delay_ms=5]]   [[answer="Forty-two."]]   [[model=small json=bad]] [[fail=503 times=2 id=x]]

A message may hold several; one with `model=` counts for that model only.  What a message says wins over what the
model is configured to do.

    id=TEXT            names the call in the log
    answer=TEXT        the answer, word by word
    tokens=N           an answer of N words
    empty              no text at all
    refuse             a refusal, in words; as a structured one where the protocol has it with `refuse=structured`
    reasoning=TEXT     thinking before the answer
    json=KIND          for a request with a schema: `bad` (no JSON), `prose`, `wrong` (violates the schema), `fence`
                       (valid, in a Markdown fence), `think` (valid, after a <think> block)
    schemaless         passes over the fields that a schema comes in, and sees only one that is put to it in words
    call[=NAME]        calls a tool: that one, or the first that is offered
    args=JSON          its arguments, in place of an instance of its parameters' schema
    turnN=CALLS        calls tools in the N-th turn of a conversation: name, arguments as JSON, name, arguments...; in a
                       turn without any, and where no tool is offered, the answer is text: by default what the tools
                       have answered
    window=N           as Ollama, with a window of N tokens: a longer prompt is an error where the request says
                       `truncate: false`, and else loses its front
    unaware            passes over `truncate`, as an Ollama of before it
    tells=WHERE        its window: in `ps` (by default), in `show`, or `nowhere`
    first              the answer is the first word of the prompt, as far as it was read
    length             ends with the finish reason `length`
    first_ms=N         time before the first token
    delay_ms=N         time before each further token
    fail=STATUS        an HTTP error; `fail=context`: the prompt is too long; with `retry_after=SECONDS`
    times=N            `fail` only for the first N calls with this `id`
    error_after=N      an error object in the stream after N tokens
    stall_after=N      nothing more after N tokens, until the client leaves
    cut_after=N        the connection drops after N tokens
    end_after=N        the stream ends cleanly after N tokens, without its terminal event
    bench              the whole answer from precomputed bytes in one write
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

_DIRECTIVE = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_WORDS = (
    "a",
    "stand-in",
    "answers",
    "with",
    "plain",
    "words,",
    "one",
    "after",
    "the",
    "other,",
    "and",
    "no",
    "sense.",
)
REFUSAL = "I'm sorry, but I can't help with that."
_FORMATS = {
    "date": "2026-11-20",
    "date-time": "2026-11-20T12:00:00Z",
    "time": "12:00:00Z",
    "email": "someone@example.org",
    "uri": "https://example.org/",
    "uuid": "12345678-1234-4234-8234-123456789abc",
    "ipv4": "192.0.2.1",
    "hostname": "example.org",
}
_DEEP = 6
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Script:
    """The directives that count for one call: names and their values, "" where there is none."""

    words: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.words

    def text(self, name: str, default: str = "") -> str:
        """A directive's value."""
        return self.words.get(name, default)

    def number(self, name: str) -> int | None:
        """A directive's value as a number; None where the directive is missing."""
        return int(self.words[name]) if name in self.words else None

    def seconds(self, name: str) -> float:
        """A directive in milliseconds, as seconds; 0 where it is missing."""
        return float(self.words.get(name, "0")) / 1000


def script_for(model: str, configured: str, message: str) -> Script:
    """The model's own directives, overridden by those of the message."""
    words = _parse(configured)
    if "[[" in message:
        for found in _DIRECTIVE.finditer(message):
            own = _parse(found[1])
            if own.get("model", model) == model:
                words.update(own)
    return Script(words)


def planned_calls(text: str) -> list[tuple[str, Any]]:
    """The calls of a turn: names and arguments from a text that has them in turn."""
    calls, rest = [], text.strip()
    while rest:
        name, _, rest = rest.partition(" ")
        arguments, end = _JSON.raw_decode(rest.lstrip())
        calls.append((name, arguments))
        rest = rest.lstrip()[end:].strip()
    return calls


def _parse(text: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(text))
    return {name: value for name, _, value in pairs}


def tokens_of(text: str) -> list[str]:
    """A text as a model would stream it: words with the blanks before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def some_words(count: int) -> list[str]:
    """`count` tokens of running text."""
    return [("" if i == 0 else " ") + _WORDS[i % len(_WORDS)] for i in range(count)]


def answer_tokens(script: Script, message: str, schema: Any) -> list[str]:
    """The tokens of the answer to `message`."""
    if "empty" in script:
        return []
    if "refuse" in script:
        return tokens_of(REFUSAL)
    if "answer" in script:
        return tokens_of(script.text("answer"))
    if (count := script.number("tokens")) is not None:
        return some_words(count)
    if schema is not None:
        return tokens_of(_structured(script.text("json"), schema))
    words = len(_DIRECTIVE.sub("", message).split())
    return tokens_of(f"This is the stand-in model. It read {words} words and understood none of them.")


def _structured(kind: str, schema: Any) -> str:
    value = instance_of(schema, schema)
    match kind:
        case "bad":
            return json.dumps(value)[:-1] + ", oops"
        case "prose":
            return "Sure! Here is what you asked for, in words and not in JSON."
        case "wrong":
            return json.dumps(_violated(value))
        case "fence":
            return f"```json\n{json.dumps(value)}\n```"
        case "think":
            return f"<think>What would fit? </think>\n{json.dumps(value)}"
        case _:
            return json.dumps(value)


def _violated(value: Any) -> Any:
    """A value of the wrong type in the place of the first property, or in the place of everything."""
    if isinstance(value, dict) and value:
        first = next(iter(value))
        return {**value, first: "wrong" if isinstance(value[first], list) else [None]}
    return {"wrong": True}


def instance_of(schema: Any, root: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one per kind of schema
    """A small value that satisfies `schema`, as far as simple schemas go."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return instance_of(_resolve(schema["$ref"], root), root, depth + 1)
    for alternatives in ("anyOf", "oneOf"):
        if schema.get(alternatives):
            return instance_of(schema[alternatives][-1 if depth > _DEEP else 0], root, depth + 1)
    if schema.get("allOf"):
        return instance_of(_merged(schema, root), root, depth + 1)
    return _of_type(_type_of(schema), schema, root, depth)


def _merged(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """A schema with `allOf` as one without."""
    merged: dict[str, Any] = {"properties": {}, "required": []}
    for part in [schema, *schema["allOf"]]:
        target = _resolve(part["$ref"], root) if "$ref" in part else part
        merged["properties"].update(target.get("properties", {}))
        merged["required"] += target.get("required", [])
        merged.update({k: v for k, v in target.items() if k not in {"allOf", "properties", "required"}})
    return merged


def _type_of(schema: dict[str, Any]) -> str:
    declared = schema.get("type")
    if isinstance(declared, list):
        return str(declared[0])
    if isinstance(declared, str):
        return declared
    return "array" if "items" in schema else "object"


def _of_type(kind: str, schema: dict[str, Any], root: Any, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties", {})
            required = schema.get("required", [])
            names = required if depth > _DEEP else [*properties, *(n for n in required if n not in properties)]
            return {name: instance_of(properties.get(name, {}), root, depth + 1) for name in names}
        case "array":
            first = [instance_of(item, root, depth + 1) for item in schema.get("prefixItems", [])]
            wanted = max(schema.get("minItems", 0), 0 if depth > _DEEP else min(1, schema.get("maxItems", 1)))
            missing = wanted - len(first) if schema.get("items", True) is not False else 0
            return first + [instance_of(schema.get("items", {}), root, depth + 1) for _ in range(missing)]
        case "string":
            text = _FORMATS.get(schema.get("format", ""), "a word")
            return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
        case "integer" | "number":
            return _number(schema)
        case _:
            return True if kind == "boolean" else None


def _number(schema: dict[str, Any]) -> int | float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    value = low if low is not None else high if high is not None and high < step else step
    if value == schema.get("exclusiveMinimum"):
        value += step if high is None else min(step, (high - value) / 2)
    if value == schema.get("exclusiveMaximum"):
        value -= step
    return value  # type: ignore[no-any-return]


def _resolve(ref: str, root: Any) -> Any:
    target = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        if part:
            target = target[part.replace("~1", "/").replace("~0", "~")]
    return target
