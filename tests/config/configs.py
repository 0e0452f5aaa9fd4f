"""Configurations for tests, from text and a made-up environment; the machine's own file is not looked at."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from llm_routerd.config import load as load_module
from llm_routerd.config.load import load_config
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config


def load(text: str, **environ: str) -> Config:
    """Write a file and load it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.toml")
        path.write_text(text, encoding="utf-8")
        return load_config(str(path), environ)


def load_builtin(**environ: str) -> Config:
    """Load what holds without a file."""
    with mock.patch.object(load_module, "DEFAULT_PATH", "/nowhere/config.toml"):
        return load_config(None, environ)


def error(text: str, **environ: str) -> str:
    """Load what is unsound; the message, without the file's name that it begins with."""
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    source, _, rest = str(caught.value).partition(": ")
    assert source == "environment" or source.endswith("/config.toml")
    assert rest.isprintable()
    return rest
