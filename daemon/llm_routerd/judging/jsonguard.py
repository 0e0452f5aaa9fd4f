"""Judges a JSON answer while it arrives: ends it at the first token after which it cannot become valid.

Accepted is one value of strict JSON, as orjson parses it, with whitespace or a byte order mark around it, and
with or without a Markdown fence: three or more backticks and perhaps a language before it, some after it.
Prose on either side is no JSON: with words after the value one cannot know that the value is still meant.

The schema is applied as far as a `Shape` knows it.  A value must fit even where a later duplicate of its key
would replace it; of everything else the guard forbids only what full validation would forbid as well.

It takes 0.9 µs a token of four characters, nearly all of it for the tokens: the shape is a fifteenth of that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import orjson

from llm_routerd.jsonschema.shape import ARRAY, FALSE, NULL, NUMBER, OBJECT, STRING, TRUE, Shape
from llm_routerd.judging.json_text import BEGUN_OPENING, MAX_DEPTH, MAX_NUMBER_CHARS, SPACE, without_opening
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_OPENING_CHARS = 256
_FENCE_CHARS = 3
# An open string is compared with the allowed ones up to here, a longer one when it is complete.
_MAX_COMPARED_CHARS = 1024
_MAX_NAME_CHARS = 40
_MAX_PATH_CHARS = 160

_HEX = "[0-9a-fA-F]"
_ESCAPE = rf'\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F]){_HEX}{{4}}|u[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}})'
_BEGUN_ESCAPE = re.compile(
    rf"\\(?:u(?:{_HEX}{{0,3}}|[dD][89abAB]{_HEX}{{2}}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?))?"
)
_STRING_RUN = re.compile(rf'[^"\\\x00-\x1f]*+(?:{_ESCAPE}[^"\\\x00-\x1f]*+)*+')
_TOKEN = re.compile(
    rf"""[ \t\r\n]*+(?:
        "({_STRING_RUN.pattern})(")?+   # 1: open string, 2: complete string
        |([-0-9][-+.0-9eE]*+)           # 3: number
        |([A-Za-z_]++)                  # 4: word
        |([{{\[])                       # 5: beginning of a container
        |([}}\]])                       # 6: its end
        |(,)                            # 7
        |(:)                            # 8
    )?+""",
    re.VERBOSE,
)
_NUMBER_BEGINS = frozenset("-0123456789")
_BEGUN_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.(?:[0-9]+(?:[eE](?:[-+]?[0-9]*)?)?)?|[eE](?:[-+]?[0-9]*)?)?)?")
_COMPLETE_STRING = 2
_LITERALS = {"true": TRUE, "false": FALSE, "null": NULL}


# What may come next.  A value is wanted at the first two only.
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _COLON, _COMMA_OR_END, _NOTHING = range(7)
_PLACES = (
    "where a value should be",
    "where a value should be",
    "where a property's name should be",
    "where a property's name should be",
    "after a property's name",
    "after a value",
    "after the end",
)
_AFTER_OPENING = {"{": _KEY_OR_END, "[": _VALUE_OR_END}


class JsonGuard:
    """Judges one answer.  Feed it the text in pieces of any size, then call `finish`.

    Attributes:
        blanks: how many characters of white space, and nothing else, came last after the whole value.
    """

    def __init__(self, shape: Shape) -> None:
        self._rejection: Rejection | None = None
        self._opening: str | None = ""  # None: the value has begun
        self._closing = ""  # backticks after the value
        self.blanks = 0
        self._carry = ""  # a token that may go on in the next piece
        self._has_comma = False
        self._expect = _VALUE
        self._slot = shape  # what the value that comes next, or is open, must fit
        # The innermost open container: its shape, whether it is an object, the item or property that is
        # under way, and the names so far where they matter.
        self._inside = shape
        self._is_object = False
        self._index = 0
        self._name = ""
        self._names: set[str] | None = None
        self._outer: list[tuple[Shape, bool, int, str, set[str] | None]] = []
        # The string that is open.
        self._in_string = False
        self._in_key = False
        self._parts: list[str] = []
        self._length = 0

    @property
    def judged(self) -> bool:
        """The opening is settled: the value has begun, and within a container its first value has."""
        is_value = self._in_string and not self._in_key
        return is_value or self._has_comma or self._expect >= _COMMA_OR_END or len(self._outer) > 1

    def feed(self, text: str) -> Rejection | None:
        """Take the next piece; return why the text cannot become a valid answer, once that is certain."""
        if self._opening is not None:
            text = self._skip_opening(self._opening + text)
        if self._carry:
            text, self._carry = self._carry + text, ""
        position = self._continue_string(text) if self._in_string else 0
        end = len(text)
        while position < end and self._rejection is None:
            if self._expect == _NOTHING:
                self._skip_closing(text[position:])
                break
            # The expression matches always: its token is optional.
            match: re.Match[str] = _TOKEN.match(text, position)  # type: ignore[assignment]
            position = self._HANDLERS[match.lastindex or 0](self, match)
        return self._rejection

    def finish(self) -> Rejection | None:
        """No more text will come: return why the text is no valid answer, as far as the guard can tell."""
        if self._carry[:1] in _NUMBER_BEGINS and not self._in_string and self._rejection is None:
            self._complete_number(self._carry)
        if self._rejection is None and self._expect != _NOTHING:
            self._fail("the text ends before its value does")
        if self._rejection is None and 0 < len(self._closing) < _FENCE_CHARS:
            self._fail("text after the value")
        return self._rejection

    # Around the value

    def _skip_opening(self, text: str) -> str:
        """Return what follows the opening; nothing while it may go on."""
        if len(text) <= _MAX_OPENING_CHARS and BEGUN_OPENING.fullmatch(text):
            self._opening = text
            return ""
        self._opening = None
        return without_opening(text)

    def _skip_closing(self, text: str) -> None:
        marks = text.strip(SPACE)
        self._closing += marks
        self.blanks = 0 if marks else self.blanks + len(text)
        if marks.strip("`") or len(self._closing) > _MAX_OPENING_CHARS:
            self._fail("text after the value")

    # Tokens.  Each takes the match of its token and returns where the next one begins.

    def _on_blank(self, match: re.Match[str]) -> int:
        end = match.end()
        if end < len(match.string):
            self._fail_unexpected("character")
        return end

    def _on_string(self, match: re.Match[str]) -> int:
        is_closed = match.lastindex == _COMPLETE_STRING
        if self._expect <= _VALUE_OR_END:
            if is_closed and self._slot.free_string and self._slot.kinds & STRING:  # an eighth less, in large pieces
                self._expect = _COMMA_OR_END if self._outer else _NOTHING
                return match.end()
            self._open_value_string()
        elif self._expect <= _KEY_OR_END:
            if is_closed:
                self._begin_member(match[1])
                return match.end()
            self._in_string = self._in_key = True
        else:
            self._fail_unexpected("string")
        if self._rejection is None:
            self._extend_string(match[1])
            if is_closed and self._rejection is None:
                self._close_string()
        return match.end() if is_closed else self._stop_in_string(match.string, match.end())

    def _on_number(self, match: re.Match[str]) -> int:
        end = match.end()
        if self._expect > _VALUE_OR_END:
            self._fail_unexpected("number")
        elif not self._slot.kinds & NUMBER:
            self._fail_schema("a number is not allowed here")
        elif end < len(match.string):
            self._complete_number(match[3])
        elif len(match[3]) > MAX_NUMBER_CHARS or not _BEGUN_NUMBER.fullmatch(match[3]):
            self._fail("a malformed number")
        else:
            self._carry = match[3]
        return end

    def _on_word(self, match: re.Match[str]) -> int:
        word = match[4]
        end = match.end()
        meant = next((literal for literal in _LITERALS if literal.startswith(word)), None)
        if self._expect > _VALUE_OR_END or meant is None or (meant != word and end < len(match.string)):
            self._fail_unexpected("word")
        elif not self._slot.kinds & _LITERALS[meant]:
            self._fail_schema(f"{meant} is not allowed here")
        elif meant == word:
            self._end_value()
        else:
            self._carry = word
        return end

    def _on_begin(self, match: re.Match[str]) -> int:
        bracket = match[5]
        slot = self._slot
        if self._expect > _VALUE_OR_END:
            self._fail_unexpected("bracket")
        elif not slot.kinds & (OBJECT if bracket == "{" else ARRAY):
            self._fail_schema("an object is not allowed here" if bracket == "{" else "an array is not allowed here")
        elif len(self._outer) >= MAX_DEPTH:
            self._fail("nested too deeply")
        else:
            self._outer.append((self._inside, self._is_object, self._index, self._name, self._names))
            self._inside = slot
            self._is_object = bracket == "{"
            self._expect = _AFTER_OPENING[bracket]
            self._index = 0
            if not self._is_object:
                self._slot = slot.item(0)
            elif slot.required or slot.most_properties is not None:
                self._names = set()
            else:
                self._names = None
        return match.end()

    def _on_end(self, match: re.Match[str]) -> int:
        wanted = _KEY_OR_END if match[6] == "}" else _VALUE_OR_END
        is_empty = self._expect == wanted
        if not is_empty and (self._expect != _COMMA_OR_END or self._is_object != (match[6] == "}")):
            self._fail_unexpected("bracket")
        elif self._is_object and self._names is not None and not self._inside.required <= self._names:
            self._fail_schema("a required property is missing", at_container=True)
        elif not self._is_object and (0 if is_empty else self._index + 1) < self._inside.fewest_items:
            self._fail_schema("fewer items than the schema asks for", at_container=True)
        else:
            self._inside, self._is_object, self._index, self._name, self._names = self._outer.pop()
            self._end_value()
        return match.end()

    def _on_comma(self, match: re.Match[str]) -> int:
        self._has_comma = True
        if self._expect != _COMMA_OR_END:
            self._fail_unexpected("comma")
        elif self._is_object:
            self._expect = _KEY
        else:
            self._index += 1
            self._slot = self._inside.item(self._index)
            self._expect = _VALUE
        return match.end()

    def _on_colon(self, match: re.Match[str]) -> int:
        if self._expect == _COLON:
            self._expect = _VALUE
        else:
            self._fail_unexpected("colon")
        return match.end()

    # Parts of values

    def _end_value(self) -> None:
        self._expect = _COMMA_OR_END if self._outer else _NOTHING

    def _complete_number(self, token: str) -> None:
        try:
            value = orjson.loads(token) if len(token) <= MAX_NUMBER_CHARS else None
        except orjson.JSONDecodeError:
            value = None
        if value is None:
            self._fail("a malformed number")
        elif not self._slot.allows_number(value):
            self._fail_schema("the schema forbids this number")
        else:
            self._end_value()

    def _begin_member(self, raw_name: str) -> None:
        """Take the complete name of a property."""
        name = _unescape(raw_name)
        slot = self._inside.property(name)
        if self._names is not None:
            self._names.add(name)
            most = self._inside.most_properties
            if most is not None and len(self._names) > most:
                self._fail_schema("more properties than the schema allows", at_container=True)
        if not slot.kinds:
            self._fail_schema("a property that the schema forbids", at_container=True)
        self._name = name
        self._slot = slot
        self._expect = _COLON

    def _open_value_string(self) -> None:
        if not self._slot.kinds & STRING:
            self._fail_schema("a string is not allowed here")
        self._in_string = True
        self._in_key = False

    def _continue_string(self, text: str) -> int:
        end = _STRING_RUN.match(text).end()  # type: ignore[union-attr] # it always matches
        if self._in_key or not self._slot.free_string:
            self._extend_string(text[:end])
        if end == len(text) or self._rejection is not None:
            return end
        if text[end] == '"':
            self._close_string()
            return end + 1
        return self._stop_in_string(text, end)

    def _extend_string(self, run: str) -> None:
        """Take further characters of the open string, whole escapes only."""
        if self._in_key:
            self._parts.append(run)
            return
        slot = self._slot
        if slot.free_string:
            return
        run = _unescape(run)
        self._length += len(run)
        if slot.longest is not None and self._length > slot.longest:
            self._fail_schema("a longer string than the schema allows")
        elif slot.strings is not None:
            self._parts.append(run)
            if self._length <= _MAX_COMPARED_CHARS and not slot.allows_opening("".join(self._parts)):
                self._fail_schema("a string that is not one of the allowed values")

    def _close_string(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        self._length = 0
        self._in_string = False
        if self._in_key:
            self._begin_member(text)
        elif self._slot.allows_string(text) or self._slot.strings is None:
            self._end_value()
        else:
            self._fail_schema("a string that is not one of the allowed values")

    def _stop_in_string(self, text: str, end: int) -> int:
        """Return where to go on after the characters of a string; an escape may go on in the next piece."""
        if end < len(text):
            self._carry = text[end:]
            if not _BEGUN_ESCAPE.fullmatch(self._carry):
                self._fail("a control character or a malformed escape in a string")
        return len(text)

    # By the number of the token's group in `_TOKEN`.
    _HANDLERS: ClassVar[tuple[Callable[[JsonGuard, re.Match[str]], int], ...]] = (
        _on_blank,
        _on_string,
        _on_string,
        _on_number,
        _on_word,
        _on_begin,
        _on_end,
        _on_comma,
        _on_colon,
    )

    # Verdicts

    def _fail(self, what: str) -> None:
        self._rejection = Rejection(code=AttemptCode.INVALID_JSON, reason=f"not JSON: {what}", early=True)

    def _fail_unexpected(self, token: str) -> None:
        if self._expect == _VALUE and not self._outer:
            self._fail("text where the value should begin")
        else:
            self._fail(f"unexpected {token} {_PLACES[self._expect]}")

    def _fail_schema(self, what: str, *, at_container: bool = False) -> None:
        reason = f"{self._path(at_container=at_container)}: {what}"
        self._rejection = Rejection(code=AttemptCode.SCHEMA_VIOLATION, reason=reason, early=True)

    def _path(self, *, at_container: bool) -> str:
        """Where the guard stands; names that the schema does not list are the answer's own and stay out."""
        inside = (self._inside, self._is_object, self._index, self._name, self._names)
        containers = [*self._outer, inside][1 : -1 if at_container else None]
        path = "$"
        for shape, is_object, index, name, _ in containers:
            if is_object:
                path += f".{name[:_MAX_NAME_CHARS]}" if shape.knows(name) else ".*"
            else:
                path += f"[{index}]"
        return path if len(path) <= _MAX_PATH_CHARS else f"{path[:_MAX_PATH_CHARS]}…"


def _unescape(raw: str) -> str:
    """Decode what stands between the quotes of a valid JSON string."""
    return raw if "\\" not in raw else str(orjson.loads(f'"{raw}"'))
