"""The types of the public API, by mypy: what must pass and what must be refused."""

from __future__ import annotations

from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]


def test_what_callers_write_is_taken_or_refused() -> None:
    """With the project's own strictness; a second after `make lint`, which has filled the cache, else some ten."""
    out, err, code = api.run(
        [
            "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"),
            str(Path(__file__).with_name("public_api.py")),
        ]
    )  # fmt: skip
    assert (err, code) == ("", 0), out
