"""The tokens of JSON, whole and begun: what the guard reads by."""

from __future__ import annotations

import re

_HEX = "[0-9a-fA-F]"
_ESCAPE = rf'\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F]){_HEX}{{4}}|u[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}})'
BEGUN_ESCAPE = re.compile(
    rf"\\(?:u(?:{_HEX}{{0,3}}|[dD][89abAB]{_HEX}{{2}}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?))?"
)
STRING_RUN = re.compile(rf'[^"\\\x00-\x1f]*+(?:{_ESCAPE}[^"\\\x00-\x1f]*+)*+')
TOKEN = re.compile(
    rf"""[ \t\r\n]*+(?:
        "({STRING_RUN.pattern})(")?+   # 1: open string, 2: complete string
        |([-0-9][-+.0-9eE]*+)           # 3: number
        |([A-Za-z_]++)                  # 4: word
        |([{{\[])                       # 5: beginning of a container
        |([}}\]])                       # 6: its end
        |(,)                            # 7
        |(:)                            # 8
    )?+""",
    re.VERBOSE,
)
NUMBER_BEGINS = frozenset("-0123456789")
BEGUN_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.(?:[0-9]+(?:[eE](?:[-+]?[0-9]*)?)?)?|[eE](?:[-+]?[0-9]*)?)?)?")
