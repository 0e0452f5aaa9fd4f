"""A caller's JSON Schema: compiled once, never trusted.

One engine gives every verdict (jsonschema-rs: a third of a microsecond where others take a hundred times as
long).  It is set up so that nothing is ever fetched, patterns are matched in linear time, and `format` is an
annotation; what it does not bound by itself, `safety` bounds before it sees the schema.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jsonschema_rs
import orjson

from llm_routerd.jsonschema.graph import PATTERN_BYTES
from llm_routerd.jsonschema.path import json_path, printable, way_to
from llm_routerd.jsonschema.safety import Examined, examine
from llm_routerd.jsonschema.shape import Shape, shape_of
from llm_routerd.jsonschema.values import depth_of, levels

# What the schemas of one cache may take, by estimate.
_CACHE_BYTES = 128_000_000
_DFA_BYTES = 500_000
# jsonschema-rs writes this where its message would quote the instance.
_MASK = "\0"
_LONGEST_QUOTE = 40
_LONGEST_MESSAGE = 300
# The engine's explanations, unlike its verdicts, walk recursive unions again and again.
_MOST_EXPLAINED_PATHS = 1_000
# What judging may cost: a step is one subschema on one value, or ten states of a pattern on one character, and
# takes some 50 ns.  The engine holds the interpreter's lock meanwhile, so this bounds how long all else waits.
_MOST_STEPS = 40_000_000
# Schemas below both of these need no look at the instance: no answer within the limits is too large for them.  The
# look is five times the verdict (1.6 µs and 0.3 for a small answer, 90 and 15 for one of 14 KB).
_LIGHT_PEAK = 16
_LIGHT_STATES = 300
_STATES_PER_STEP = 10
_TOO_COSTLY = "$: too large to be judged by a schema this complex"
_UNEXPLAINED = "$: does not satisfy the schema"
_PATTERN_REMEDY = (
    "unsupported pattern: it is invalid or too large, or has look-around or back-references, "
    "which cannot be matched in linear time"
)


@dataclass(frozen=True, slots=True)
class SchemaProblem:
    """Why a schema cannot be used: one line that begins with the JSON path of the offending part."""

    message: str


class AnswerSchema:
    """A compiled schema.  Immutable; `validate` may be called from any thread.

    Attributes:
        raw: the schema as the caller gave it, key order included.
        digest: names the schema in logs and caches.
        bytes_estimate: what it may take in memory.
    """

    def __init__(
        self,
        *,
        raw: dict[str, Any] | bool,
        digest: str,
        validator: jsonschema_rs.Validator,
        examined: Examined,
    ) -> None:
        self.raw = raw
        self.digest = digest
        self._validator = validator
        self._examined = examined
        self._is_light = examined.peak <= _LIGHT_PEAK and examined.pattern_states <= _LIGHT_STATES
        self.bytes_estimate = examined.patterns_bytes + 1_000 * examined.paths

    def __repr__(self) -> str:
        return f"AnswerSchema({self.digest})"

    @cached_property
    def shape(self) -> Shape:
        """What the guard of a streamed answer knows of it; made once, for the event loop's thread only."""
        return shape_of(self.raw)

    def validate(self, instance: Any, *, most_steps: int = _MOST_STEPS) -> str | None:
        """Judge an instance as `orjson.loads` made it, unless that could take more steps (of some 50 ns) than these.

        Returns:
            None where it is valid; else what is wrong first, on one line of at most 300 characters that
            begins with a JSON path and quotes no more of the instance than names and one short scalar.
        """
        try:
            looks = not self._is_light or most_steps < _MOST_STEPS
            if looks and self._steps_for(instance) > most_steps:
                return _TOO_COSTLY
            if self._validator.is_valid(instance):
                return None
            cycles = self._examined.cycles
            if cycles > 1 and cycles ** depth_of(instance) > _MOST_EXPLAINED_PATHS:
                return _UNEXPLAINED
            self._validator.validate(instance)
        except jsonschema_rs.ValidationError as error:
            return _describe(_most_telling(error), instance)
        except ValueError:  # an integer or a string that no JSON text can hold
            return "$: holds a value that is not JSON"
        return _UNEXPLAINED  # pragma: no cover - the same engine on the same instance

    def most_steps(self, characters: int) -> int:
        """What judging a JSON text of that length may cost at the worst, in steps of some 50 ns."""
        values = characters // 2  # `[0,0,0,...`: no value takes less than two characters
        return self._examined.peak * values + self._examined.pattern_states * characters // _STATES_PER_STEP

    def _steps_for(self, instance: Any) -> int:
        values, characters = _extent_of(instance)
        return self._examined.peak * values + self._examined.pattern_states * characters // _STATES_PER_STEP


def compile_schema(raw: Any) -> AnswerSchema | SchemaProblem:
    """Compile a schema that came with a request (a parsed JSON value of any kind)."""
    encoded = _encode(raw)
    return encoded if isinstance(encoded, SchemaProblem) else _compile(raw, _digest_of(encoded))


class SchemaCache:
    """The schemas used last, by what they are written as: 1.2 µs for one that is known, 70 and more to compile it.

    Key order is part of a schema's identity: it decides nothing here, but models write properties in it.
    Problems are remembered too.  Not for use from several threads.
    """

    def __init__(self, maxsize: int = 256) -> None:
        if maxsize < 1:
            raise ValueError(f"maxsize must be at least 1, not {maxsize}")
        self._maxsize = maxsize
        self._entries: OrderedDict[str, AnswerSchema | SchemaProblem] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, raw: Any) -> AnswerSchema | SchemaProblem:
        """As `compile_schema`, the same object for the same schema."""
        encoded = _encode(raw)
        if isinstance(encoded, SchemaProblem):
            return encoded
        digest = _digest_of(encoded)
        found = self._entries.get(digest)
        if found is not None:
            self._entries.move_to_end(digest)
            return found
        compiled = self._entries[digest] = _compile(raw, digest)
        self._bytes += _bytes_of(compiled)
        while len(self._entries) > self._maxsize or self._bytes > _CACHE_BYTES:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _bytes_of(oldest)
        return compiled


def _bytes_of(entry: AnswerSchema | SchemaProblem) -> int:
    return entry.bytes_estimate if isinstance(entry, AnswerSchema) else 0


def _encode(raw: Any) -> bytes | SchemaProblem:
    if not isinstance(raw, (dict, bool)):
        return SchemaProblem("$: expected a JSON Schema, which is an object or a boolean")
    try:
        return orjson.dumps(raw)
    except TypeError:  # nested deeper than orjson writes, or text that is no Unicode
        return SchemaProblem(
            "$: cannot be written as JSON (nested too deep, not Unicode, or an integer beyond 64 bits)"
        )


def _digest_of(encoded: bytes) -> str:
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _compile(raw: dict[str, Any] | bool, digest: str) -> AnswerSchema | SchemaProblem:
    examined = examine(raw)
    if isinstance(examined, str):
        return SchemaProblem(examined)
    try:
        validator = jsonschema_rs.validator_for(
            raw,
            offline=True,
            validate_formats=False,
            mask=_MASK,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES, dfa_size_limit=_DFA_BYTES),
        )
    except jsonschema_rs.ValidationError as error:
        return SchemaProblem(_describe_schema_error(error, raw))
    except (jsonschema_rs.ReferencingError, ValueError):
        return SchemaProblem("$: not a valid JSON Schema")
    return AnswerSchema(raw=raw, digest=digest, validator=validator, examined=examined)


def _describe_schema_error(error: jsonschema_rs.ValidationError, raw: Any) -> str:
    error = _most_telling(error)  # the meta-schemas of older drafts have unions all the way down
    path, _ = way_to(raw, error.instance_path)
    if error.kind.name == "format" and path:
        where = path[:-1] if path[-2:-1] == ["patternProperties"] else path
        return f"{json_path(where)}: {_PATTERN_REMEDY}"
    if error.kind.name == "referencing":
        return "$: a reference leads outside this schema or to nothing, and nothing is fetched"
    keywords = path[:-1] if path and isinstance(path[-1], int) else path  # of a list of types
    if keywords[-1:] == ["type"] and keywords[-2:-1] != ["properties"]:
        return f"{json_path(path)}: expected a type of JSON Schema (string, number, integer, object, …)"
    return _describe(error, raw)


def _most_telling(error: jsonschema_rs.ValidationError) -> jsonschema_rs.ValidationError:
    """Of a failed union the error that lies deepest: the branch that was meant came furthest."""
    while isinstance(
        error.kind, (jsonschema_rs.ValidationErrorKind.AnyOf, jsonschema_rs.ValidationErrorKind.OneOfNotValid)
    ):
        branches = [errors[0] for errors in error.kind.context if errors]
        deepest = max(branches, key=lambda each: len(each.instance_path), default=error)
        if len(deepest.instance_path) <= len(error.instance_path):
            break
        error = deepest
    return error


def _describe(error: jsonschema_rs.ValidationError, instance: Any) -> str:
    path, instance = way_to(instance, error.instance_path)
    message = error.message
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.FalseSchema):
        extra = error.schema_path[-1:] == ["additionalProperties"]
        message = "additional properties are not allowed" if extra else "is not allowed by the schema"
    if _MASK in message:
        message = message.replace(_MASK, quote(instance), 1).replace(_MASK, "the value")
    line = f"{json_path(path)}: {printable(message)}"
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"


def quote(value: Any) -> str:
    """A short scalar as JSON; of everything else only the kind."""
    match value:
        case None | bool():
            return orjson.dumps(value).decode()
        case int() | float():
            return str(value) if len(str(value)) <= _LONGEST_QUOTE else "this number"
        case str():
            return f'"{printable(value)}"' if len(value) <= _LONGEST_QUOTE else "this string"
        case list():
            return "this array"
        case _:
            return "this object"


def _extent_of(instance: Any) -> tuple[int, int]:
    """How many values an instance has, and how many characters in strings and names."""
    values = characters = 0
    for level in levels(instance):
        values += len(level)
        for value in level:
            if isinstance(value, str):
                characters += len(value)
            elif isinstance(value, dict):
                characters += sum(map(len, value))
    return values, characters
