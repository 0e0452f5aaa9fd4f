"""What a JSON Schema certainly forbids at one position of an instance, to judge an answer that is incomplete.

A `Shape` is weaker than its schema, never stronger: what it forbids can be part of no valid instance.  It
follows `allOf` and local `$ref` as conjunctions, and takes `anyOf` and `oneOf` as "one of these"; `not`,
`if`, `contains`, patterns, anchors, embedded resources, dynamic and remote references constrain nothing here.

Shapes are made as an answer reaches them: a schema, recursive or not, costs what the answer uses of it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from llm_routerd.jsonschema.subschemas import Subschemas, count_in, number_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Kinds of JSON values, to be or-ed.  True and false are two kinds: `enum` and `const` of them need no more.
NULL, TRUE, FALSE, NUMBER, STRING, ARRAY, OBJECT = 1, 2, 4, 8, 16, 32, 64
ANY_KIND = 127

_KINDS_OF_TYPE = {
    "null": NULL,
    "boolean": TRUE | FALSE,
    "integer": NUMBER,
    "number": NUMBER,
    "string": STRING,
    "array": ARRAY,
    "object": OBJECT,
}
# Beyond these a hostile schema constrains nothing: its answers are judged when they are complete.
_MAX_BRANCHES = 64
_MAX_SHAPES = 4096
_MAX_NESTING = 48


class Shape:
    """The certain limits of one position.

    Attributes:
        own: the schema objects that all apply here.
        unions: of each group of alternatives one applies here.
        kinds: which kinds of value are possible (`NULL | STRING | …`); 0: no value at all.
        strings: the only strings possible; None: no such limit.
        numbers: the only numbers possible; None: no such limit.
        integer: a number must be integral (`1.0` is).
        longest: most characters of a string.
        free_string: any string will do; its characters need no look.
        low, high: inclusive bounds of a number.
        fewest_items, most_items: of an array.
        most_properties: of an object.
        required: names that an object must have.
    """

    def __init__(self, shapes: _Shapes, own: Sequence[dict[str, Any]], unions: Sequence[tuple[Shape, ...]]) -> None:
        self._shapes = shapes
        self._properties: dict[str, Shape] = {}
        self._items: dict[int, Shape] = {}
        self._sorted: list[str] | None = None
        self.own = own
        self.unions = unions
        self.kinds = ANY_KIND
        self.strings: frozenset[str] | None = None
        self.numbers: tuple[float, ...] | None = None
        self.integer = False
        self.longest: float | None = None
        self.low: float | None = None
        self.high: float | None = None
        self.fewest_items: float = 0
        self.most_items: float | None = None
        self.most_properties: float | None = None
        self.required: frozenset[str] = frozenset()
        for schema in own:
            self._narrow(schema)
        for branches in unions:
            self._narrow_to_one_of(branches)
        if self.strings is not None and not self.strings:
            self.kinds &= ~STRING
        if self.numbers is not None and not self.numbers:
            self.kinds &= ~NUMBER
        self.free_string = self.strings is None and self.longest is None

    def property(self, name: str) -> Shape:
        """Return the shape of a property's value; without any kind where the property is forbidden."""
        child = self._properties.get(name)
        if child is None:
            child = self._shapes.of_property(self, name)
            # The names come from an answer: they may be many.
            if len(self._properties) < _MAX_SHAPES:
                self._properties[name] = child
        return child

    def item(self, index: int) -> Shape:
        """Return the shape of an array's item; without any kind where the array may not be that long."""
        if self.most_items is not None and index >= self.most_items:
            return self._shapes.nothing
        index = min(index, self._shapes.subschemas.longest_prefix)
        child = self._items.get(index)
        if child is None:
            child = self._items[index] = self._shapes.of_item(self, index)
        return child

    def knows(self, name: str) -> bool:
        """Tell whether the schema lists a property of this name, here or in an alternative."""
        seen: dict[int, Shape] = {}
        waiting = [self]
        while waiting:
            shape = waiting.pop()
            if id(shape) not in seen:
                seen[id(shape)] = shape
                waiting.extend(branch for branches in shape.unions for branch in branches)
        return any(name in schema.get("properties", ()) for shape in seen.values() for schema in shape.own)

    def allows_number(self, value: float) -> bool:
        """Tell whether a complete number is possible.  A difference beyond a double's precision is none."""
        if self.integer and isinstance(value, float) and not value.is_integer():
            return False
        if self.numbers is not None and not any(_same_number(value, number) for number in self.numbers):
            return False
        below = self.low is not None and value < self.low and not _same_number(value, self.low)
        above = self.high is not None and value > self.high and not _same_number(value, self.high)
        return not below and not above

    def allows_opening(self, text: str) -> bool:
        """Tell whether a string that begins like this is possible, its length aside."""
        if self.strings is None:
            return True
        if self._sorted is None:
            self._sorted = sorted(self.strings)
        following = bisect_left(self._sorted, text)
        return following < len(self._sorted) and self._sorted[following].startswith(text)

    def allows_string(self, text: str) -> bool:
        """Tell whether a complete string is possible, its length aside."""
        return self.strings is None or text in self.strings

    def _narrow(self, schema: dict[str, Any]) -> None:
        types = schema.get("type")
        if isinstance(types, str):
            self._narrow_to_types([types])
        elif isinstance(types, list):
            self._narrow_to_types(types)
        values = schema.get("enum")
        if isinstance(values, list):
            self._narrow_to_values(values)
        if "const" in schema and self._shapes.subschemas.dialect.has_const:
            self._narrow_to_values([schema["const"]])
        self.longest = _least(self.longest, count_in(schema, "maxLength"))
        self.most_items = _least(self.most_items, count_in(schema, "maxItems"))
        self.most_properties = _least(self.most_properties, count_in(schema, "maxProperties"))
        self.fewest_items = max(self.fewest_items, count_in(schema, "minItems") or 0)
        for key in ("maximum", "exclusiveMaximum"):
            self.high = _least(self.high, number_in(schema, key))
        for key in ("minimum", "exclusiveMinimum"):
            low = number_in(schema, key)
            if low is not None:
                self.low = low if self.low is None else max(self.low, low)
        required = schema.get("required")
        if isinstance(required, list):
            self.required |= set(required)

    def _narrow_to_types(self, names: list[str]) -> None:
        kinds = 0
        for name in names:
            kinds |= _KINDS_OF_TYPE.get(name, ANY_KIND)
        self.kinds &= kinds
        self.integer = self.integer or ("integer" in names and "number" not in names)

    def _narrow_to_values(self, values: list[Any]) -> None:
        kinds = 0
        for value in values:
            kinds |= _kind_of(value)
        self.kinds &= kinds
        self._narrow_strings(value for value in values if isinstance(value, str))
        self._narrow_numbers([value for value in values if _kind_of(value) == NUMBER])

    def _narrow_to_one_of(self, branches: tuple[Shape, ...]) -> None:
        kinds = 0
        for branch in branches:
            kinds |= branch.kinds
        self.kinds &= kinds
        strings = [branch.strings for branch in branches if branch.kinds & STRING]
        if strings and None not in strings:
            self._narrow_strings(string for allowed in strings for string in allowed or ())
        numbers = [branch.numbers for branch in branches if branch.kinds & NUMBER]
        if numbers and None not in numbers:
            self._narrow_numbers([number for allowed in numbers for number in allowed or ()])
        if numbers and all(branch.integer for branch in branches if branch.kinds & NUMBER):
            self.integer = True

    def _narrow_strings(self, strings: Iterable[str]) -> None:
        self.strings = frozenset(strings) if self.strings is None else self.strings & frozenset(strings)

    def _narrow_numbers(self, numbers: list[float]) -> None:
        if self.numbers is not None:
            numbers = [one for one in self.numbers if any(_same_number(one, other) for other in numbers)]
        self.numbers = tuple(numbers)


def shape_of(schema: dict[str, Any] | bool) -> Shape:
    """Return the shape of a whole instance of a schema, which is valid and does not change from here on."""
    return _Shapes(Subschemas(schema)).of((schema,))


class _Shapes:
    """Makes the shapes of one schema document, each once."""

    def __init__(self, subschemas: Subschemas) -> None:
        self.subschemas = subschemas
        self._made: dict[tuple[int, ...], Shape] = {}
        self._nesting = 0
        self._anything = Shape(self, (), ())
        self.nothing = Shape(self, (), ())
        self.nothing.kinds = 0

    def of(self, schemas: Sequence[Any], unions: Sequence[tuple[Shape, ...]] = ()) -> Shape:
        """Return the shape of what must satisfy all these schemas and, of each union, one branch."""
        # Schemas and shapes live as long as this object, so their identity stands for them; 0 is no object's.
        key = (*map(id, schemas), *(part for union in unions for part in (0, *map(id, union))))
        made = self._made.get(key)
        if made is not None:
            return made
        if self._nesting >= _MAX_NESTING or len(self._made) >= _MAX_SHAPES:
            return self._anything
        # A union that leads back here without consuming anything meets this, and so constrains nothing.
        self._made[key] = self._anything
        self._nesting += 1
        shape = self._made[key] = self._make(schemas, unions)
        self._nesting -= 1
        return shape

    def of_property(self, shape: Shape, name: str) -> Shape:
        """Return the shape of one property's value."""
        schemas: list[Any] = []
        for schema in shape.own:
            names = schema.get("propertyNames")
            if names is not None and not self._is_possible_name(names, name):
                return self.nothing
            schemas.extend(self.subschemas.of_property(schema, name))
        unions = [tuple(branch.property(name) for branch in union if branch.kinds & OBJECT) for union in shape.unions]
        return self.of(schemas, unions)

    def of_item(self, shape: Shape, index: int) -> Shape:
        """Return the shape of the item at an index."""
        schemas = [found for schema in shape.own for found in self.subschemas.of_item(schema, index)]
        unions = [tuple(branch.item(index) for branch in union if branch.kinds & ARRAY) for union in shape.unions]
        return self.of(schemas, unions)

    def _make(self, schemas: Sequence[Any], unions: Sequence[tuple[Shape, ...]]) -> Shape:
        own = self.subschemas.conjunction(schemas)
        if own is None:
            return self.nothing
        alternatives = [
            tuple(self.of((branch,)) for branch in branches)
            for schema in own
            for branches in (schema.get("anyOf"), schema.get("oneOf"))
            if isinstance(branches, list) and len(branches) <= _MAX_BRANCHES
        ]
        return Shape(self, own, (*unions, *alternatives))

    def _is_possible_name(self, schema: Any, name: str) -> bool:
        if not self.subschemas.dialect.has_const:  # `propertyNames` came with it
            return True
        shape = self.of((schema,))
        fits = shape.longest is None or len(name) <= shape.longest
        return bool(shape.kinds & STRING) and fits and shape.allows_string(name)


def _kind_of(value: Any) -> int:
    """Return the kind of a parsed JSON value."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, int | float):
        return NUMBER
    if isinstance(value, str):
        return STRING
    return ARRAY if isinstance(value, list) else OBJECT


def _same_number(one: float, other: float) -> bool:
    """Compare as mathematics does, and as doubles do: a validator may do either."""
    try:
        return one == other or float(one) == float(other)
    except OverflowError:  # an integer of the schema that no double holds
        return False


def _least(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
