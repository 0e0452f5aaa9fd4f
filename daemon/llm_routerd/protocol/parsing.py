"""From the fields of a stream entry to a request, or to the reason why it is none.

The schema that producers are given, `request.schema.json`, is the one that decides.  What is written here is
what JSON Schema cannot say (sizes, depth, the two forms of an entry) and how a fault is told: by its JSON
path and what was expected, with the nearest valid name of a mistyped property, and without a word of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import jsonschema_rs
import msgspec
import orjson

from llm_routerd.jsonschema.compiled import SchemaProblem, quote
from llm_routerd.jsonschema.path import json_path, printable, way_to
from llm_routerd.jsonschema.values import depth_of
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.cut import MOST_FIELDS, CutList, extent_of
from llm_routerd.protocol.numbers import holds_inexact
from llm_routerd.protocol.reply_address import reply_address
from llm_routerd.protocol.request import AgentSpec, Request, RequestError, StreamMode
from llm_routerd.protocol.schema_files import load_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.jsonschema.compiled import AnswerSchema, SchemaCache
    from llm_routerd.protocol.cut import Fields

_STREAM_MODES = {
    False: StreamMode.OFF,
    True: StreamMode.PROBE,
    "probe": StreamMode.PROBE,
    "live": StreamMode.LIVE,
}
# Deeper values could be read, but not be written again into an event or a call to a model.
_MAX_DEPTH = 100
# An oversized entry is still parsed for its id and metadata up to here; beyond, that would hold up everybody else.
_MOST_READ_FOR_ID = 4
_DATA_URLS = {"url": "data:image/png;base64,…", "file_data": "data:application/pdf;base64,…"}
_SCALARS = ("boolean", "integer", "number")
_MASK = "\0"
_FEW = 5  # names, which are told all


class _FaultError(Exception):
    """An entry is no request; never leaves this module."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
        super().__init__(message)
        self.code = code


class _Form:
    """What the schema says of the properties of a request, as the parser asks for it.

    Attributes:
        names, params: the properties, and those of `params`.
        within: the properties of those that have some of their own, by name.
        strings: in the form of one field per property these are taken as they are; all others are JSON.
        words: for people at a shell, values that need no JSON quotes, by property.
        integers: JSON Schema takes 5.0 for one; models do not.
        quoted: those whose value may be told.  Messages, schemas and tools may hold what nobody else should see, and
            names and labels too: never quoted, however short.
    """

    def __init__(self, properties: dict[str, Any]) -> None:
        self.names = tuple(properties)
        self.params = tuple(properties["params"]["properties"])
        self.within = {"params": self.params, "agent": tuple(properties["agent"]["properties"])}
        typed = {**properties["params"]["properties"], **properties}
        self.strings = frozenset(name for name, each in properties.items() if each.get("type") == "string")
        choices = {name: each.get("then", each).get("enum", ()) for name, each in properties.items()}
        self.words = {
            name: frozenset(word for word in choice if isinstance(word, str)) for name, choice in choices.items()
        }
        self.integers = frozenset(name for name, each in typed.items() if each.get("type") == "integer")
        scalars = frozenset(name for name, each in properties.items() if "enum" in each or each.get("type") in _SCALARS)
        self.quoted = scalars | {"params", "tool_choice"}


@cache  # each configuration's parser has the same
def _request_validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        load_schema("request"), offline=True, mask=_MASK, pattern_options=jsonschema_rs.RegexOptions()
    )


class RequestParser:
    """Parses stream entries; made once for each configuration.

    Args:
        max_request_bytes: bound of all field names and values together.
        schemas: cache of compiled answer schemas.
    """

    def __init__(self, *, max_request_bytes: int, schemas: SchemaCache) -> None:
        request_schema = load_schema("request")
        self._validator = _request_validator()
        self._form = _Form(request_schema["properties"])
        self._max_request_bytes = max_request_bytes
        self._schemas = schemas
        self._makers: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(self._form.integers, int),
            "agent": lambda given: msgspec.convert(given, AgentSpec, strict=False),
            "messages": tuple,
            "schema": self._compiled,
            "stream": _STREAM_MODES.__getitem__,
            "tools": tuple,
        }

    def parse(self, entry_id: str, fields: Mapping[bytes, bytes] | Fields) -> Request | RequestError:
        """Parse one entry.

        Args:
            entry_id: the entry's ID in its stream; the request's id where it gives none.
            fields: names and values in turn, as Redis sends them, or a mapping; what is cut is no request.

        Returns:
            The request; or the error, with the request's own id and metadata where they could be read.
        """
        flat = [part for pair in fields.items() for part in pair] if isinstance(fields, Mapping) else fields
        size, count = extent_of(flat)
        if size > self._max_request_bytes or count > MOST_FIELDS or isinstance(flat, CutList):
            told = (count, "fields", MOST_FIELDS) if count > MOST_FIELDS else (size, "bytes", self._max_request_bytes)
            message = "$: {} {}, more than the {} that are accepted".format(*told)
            may_parse = size <= _MOST_READ_FOR_ID * self._max_request_bytes
            return self._error(flat, ErrorCode.REQUEST_TOO_LARGE, message, may_parse=may_parse)
        try:
            document = self._document_of(flat)
            if self._validator.is_valid(document):
                if holds_inexact(document.get("metadata")):
                    document["metadata"] = _exact_metadata(flat)
                return self._build(entry_id, document)
            return self._error(flat, ErrorCode.INVALID_REQUEST, self._explain(document))
        except _FaultError as fault:
            return self._error(flat, fault.code, str(fault))

    # ------------------------------------------------------------------ reading the fields

    def _document_of(self, flat: Sequence[bytes]) -> dict[str, Any]:
        if len(flat) == 2 and flat[0] == b"data":  # noqa: PLR2004 - a name and a value
            data = flat[1]
            document: Any = _parse_json(data, "$")
            if not isinstance(document, dict):
                raise _FaultError(f"$: expected a JSON object in `data`, got {_kind_of(document)}")
            openings = data.count(b"{") + data.count(b"[")
        else:
            document, openings = self._collect(flat)
        if openings > _MAX_DEPTH and depth_of(document) > _MAX_DEPTH:
            raise _FaultError(f"$: nested deeper than {_MAX_DEPTH} levels")
        return cast("dict[str, Any]", document)

    def _collect(self, flat: Sequence[bytes]) -> tuple[dict[str, Any], int]:
        """One field per property: the document they make, and how many brackets open in it."""
        document: dict[str, Any] = {}
        openings = 0
        for index in range(0, len(flat), 2):
            name = flat[index].decode("utf-8", "replace")
            value = flat[index + 1]
            path = json_path((name,))
            if name == "data":
                raise _FaultError("$: expected either the one field `data`, or one field per property, not both")
            if name not in self._form.names:
                raise _FaultError(f"$: {self._unknown(name)}")
            if name in document:
                raise _FaultError(f"{path}: this field is given twice")
            document[name] = self._read_field(name, value, path)
            if name not in self._form.strings:
                openings += value.count(b"{") + value.count(b"[")
        return document, openings

    def _read_field(self, name: str, value: bytes, path: str) -> Any:
        if name in self._form.strings:
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise _FaultError(f"{path}: expected UTF-8, got other bytes at position {error.start}") from None
        if value.isalpha() and (word := value.decode("ascii", "replace")) in self._form.words[name]:
            return word
        return _parse_json(value, path)

    # ------------------------------------------------------------------ making the request

    def _build(self, entry_id: str, document: dict[str, Any]) -> Request:
        """The request: its properties as they are, but for those that have another form than on the wire."""
        given: dict[str, Any] = {"id": entry_id}
        for name, value in document.items():
            make = self._makers.get(name)
            given[name] = value if make is None else make(value)
        prompt = given.pop("prompt", None)
        if prompt is not None:
            given["messages"] = ({"role": "user", "content": prompt},)
        if "params" in given:
            params = given["params"]
            for name in self._form.integers & params.keys():
                params[name] = int(params[name])
            given["detect_refusal"] = params.pop("detect_refusal", True)
            given["accept_length"] = params.pop("accept_length", False)
        request = Request(**given)
        if request.tool_choice is not None:
            _check_tool_choice(request)
        if request.agent is not None and (request.tools or request.tool_choice is not None):
            raise _FaultError("$.agent: expected neither `tools` nor `tool_choice` beside it: a run has its own")
        return request

    def _compiled(self, schema: Any) -> AnswerSchema:
        found = self._schemas.get(schema)
        if isinstance(found, SchemaProblem):
            raise _FaultError(f"$.schema{found.message.removeprefix('$')}", ErrorCode.INVALID_SCHEMA)
        return found

    # ------------------------------------------------------------------ telling what is wrong

    def _error(self, fields: Fields, code: ErrorCode, message: str, *, may_parse: bool = True) -> RequestError:
        request_id, metadata = reply_address(fields, may_parse=may_parse)
        if metadata is not None and depth_of(metadata) > _MAX_DEPTH:
            metadata = None
        elif metadata is not None and holds_inexact(metadata):
            metadata = None if isinstance(fields, CutList) else _exact_metadata(fields)
        return RequestError(id=request_id, code=code, message=message, metadata=metadata)

    def _explain(self, document: dict[str, Any]) -> str:
        """What is wrong with a document that the schema refuses."""
        for name in document:
            if name not in self._form.names:
                return f"$: {self._unknown(name)}"
        if "prompt" in document and "messages" in document:
            return "$: expected exactly one of `prompt` and `messages`, got both"
        if "prompt" not in document and "messages" not in document:
            return "$: expected exactly one of `prompt` and `messages`, got neither"
        for place, known in self._form.within.items():
            given = document.get(place)
            for name in given if isinstance(given, dict) else ():
                if name not in known:
                    return f"$.{place}: {_unknown(name, known)}"
        try:
            self._validator.validate(document)
        except jsonschema_rs.ValidationError as error:
            return _describe(error, document, self._form.quoted)
        return "$: not a request"  # pragma: no cover - the same validator on the same document

    def _unknown(self, name: str) -> str:
        if name in self._form.params:
            return f"unknown property `{name}`; did you mean `{name}` within `params`?"
        return _unknown(name, self._form.names)


def _check_tool_choice(request: Request) -> None:
    """A call can only be demanded of a tool that is offered."""
    if request.tool_choice == "required" and not request.tools:
        raise _FaultError("$.tool_choice: a call is demanded, and `tools` offers none")
    if not request.demanded_tools <= request.offered_tools:
        raise _FaultError("$.tool_choice.function.name: expected the name of one of `tools`")


def _parse_json(value: bytes, path: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        # Its messages name a position and what stands wrong there, and quote nothing.
        raise _FaultError(f"{path}: expected JSON in UTF-8: {error}") from None


def _exact_metadata(flat: Sequence[bytes]) -> Any:
    """The metadata of an entry once more, with its numbers as they were written: it is returned untouched."""
    found = {flat[index]: flat[index + 1] for index in range(0, len(flat), 2)}
    document = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # then the other form tells it
        document = msgspec.json.decode(found.get(b"data", b"null"))
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return metadata if metadata is not None else msgspec.json.decode(found[b"metadata"])


def _unknown(name: str, known: Sequence[str]) -> str:
    """With the nearest name, or with all where they are few."""
    shown = printable(name if len(name) <= 40 else name[:40] + "…")  # noqa: PLR2004 - enough to recognise it
    near = get_close_matches(name[:40], known, n=1)
    if near:
        return f"unknown property `{shown}`; did you mean `{near[0]}`?"
    return f"unknown property `{shown}`" + (f"; there are: {', '.join(known)}" if len(known) <= _FEW else "")


def _describe(error: jsonschema_rs.ValidationError, document: Any, quoted: frozenset[str]) -> str:
    path, value = way_to(document, error.instance_path)
    shown = quote(value) if path and path[0] in quoted else f"this {_kind_of(value).split()[-1]}"
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Type(types=types):
            told = f"expected {' or '.join(types)}, got {_kind_of(value)}"
        case jsonschema_rs.ValidationErrorKind.Enum(options=options):
            allowed = ", ".join(orjson.dumps(option).decode() for option in options)
            told = f"expected one of {allowed}"
        case jsonschema_rs.ValidationErrorKind.Required(property=name):
            told = f"expected a property `{name}`"
        case (
            jsonschema_rs.ValidationErrorKind.AdditionalProperties(unexpected=names)
            | jsonschema_rs.ValidationErrorKind.UnevaluatedProperties(unexpected=names)
        ):
            path, told = [*path, names[0]], "this is not accepted here"
        case jsonschema_rs.ValidationErrorKind.FalseSchema():
            told = "this is not accepted here"
        case jsonschema_rs.ValidationErrorKind.Pattern() if path[-1] in _DATA_URLS:
            told = f"expected a data URL ({_DATA_URLS[path[-1]]}); a request names no address"
        case jsonschema_rs.ValidationErrorKind.Pattern(pattern=pattern):
            told = f"expected a string that matches {pattern}"
        case _:
            told = printable(error.message.replace(_MASK, shown))
    return f"{json_path(path)}: {told}"


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
