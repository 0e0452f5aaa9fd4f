"""References in the configuration's strings: `${env:NAME}`, `${file:/path}`, `${credential:NAME}`.

What they bring is a secret.  Nothing here puts it into a message; the fields that may hold one are left out
of every `repr`.  So may be what stands where a name belongs: some write the key itself there.  A name is quoted only
where it is certainly one: words of at most 16 letters and two digits, at most 64 characters, all capitals
for a variable, all small for a credential; and none that begins as keys do.  Whatever else is not quoted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\{([A-Za-z]+):([^}]*)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CREDENTIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MOST_BYTES = 65_536
_UNNAMED = "api_key"
_LONGEST_NAME = 64
_CERTAINLY = {
    "env": re.compile(r"_?[A-Z]{1,16}\d{0,2}(?:_+(?:[A-Z]{1,16}\d{0,2}|\d{1,2}))*"),
    "credential": re.compile(
        r"(?!(?:sk|pk|rk|gsk|xai|hf|nvapi|pplx|ghp|gho|github|glpat|csk|fw|tgp|r8|key)[_-])"
        r"[a-z]{1,16}\d{0,2}(?:[._-](?:[a-z]{1,16}\d{0,2}|\d{1,2}))*"
    ),
}


class MissingSecretError(ConfigError):
    """A reference leads to nothing.

    Attributes:
        name: of the variable, credential or file that is not there; `api_key` where it may be a key itself.
    """

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


def resolve(text: str, environ: Mapping[str, str]) -> str:
    """Put what they lead to in the place of all references in a string.

    A file's trailing newlines are dropped.  Credentials are the files in `$CREDENTIALS_DIRECTORY`, where
    systemd puts them.  What was brought is not searched for references again.

    Raises:
        MissingSecretError: there is no such variable, file or credential, or it is empty.
        ConfigError: the reference is of an unknown kind, or its file cannot be read.
    """
    return _REFERENCE.sub(lambda match: _look_up(match[1], match[2], environ), text)


def has_reference(text: str) -> bool:
    """Whether `resolve` would look anything up."""
    return _REFERENCE.search(text) is not None


def read_credential(name: str, environ: Mapping[str, str]) -> str | None:
    """A credential of systemd's by its name; None where there is none.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    try:
        return _look_up("credential", name, environ)
    except MissingSecretError:
        return None


def _look_up(kind: str, name: str, environ: Mapping[str, str]) -> str:
    match kind:
        case "env":
            if not _VARIABLE.fullmatch(name):  # a key, maybe, where its name belongs: not quoted
                raise ConfigError("${env:…} does not name an environment variable (letters, digits and _)")
            if value := environ.get(name):
                return value
            if _may_be_key(kind, name):
                raise MissingSecretError("the environment variable that it names is not set", name=_UNNAMED)
            raise MissingSecretError(f"the environment variable {name} is not set", name=name)
        case "file":
            if not name.startswith("/") or "\0" in name:
                raise ConfigError("${file:…} does not hold an absolute path")
            return _read(Path(name), missing=f"the file {name} does not exist or is empty", name=name)
        case "credential":
            return _credential(name, environ.get("CREDENTIALS_DIRECTORY"))
        case _:
            raise ConfigError("a reference of an unknown kind; use ${env:}, ${file:} or ${credential:}")


def _credential(name: str, directory: str | None) -> str:
    if not _CREDENTIAL.fullmatch(name):
        raise ConfigError("${credential:…} does not name a credential (letters, digits and . _ -)")
    missing = f"there is no credential {name} (systemd's LoadCredential)"
    try:
        if not directory:
            raise MissingSecretError(missing, name=name)
        return _read(Path(directory, name), missing=missing, name=name)
    except ConfigError:
        if _may_be_key("credential", name):
            told = "there is no credential of the name that it gives (systemd's LoadCredential), or it cannot be read"
            raise MissingSecretError(told, name=_UNNAMED) from None
        raise


def _may_be_key(kind: str, name: str) -> bool:
    """Whether what stands where a name belongs may be the key itself (`gsk_…`, `sk-…`), which is not quoted."""
    return len(name) > _LONGEST_NAME or not _CERTAINLY[kind].fullmatch(name)


def _read(path: Path, *, missing: str, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise MissingSecretError(missing, name=name) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} is larger than {_MOST_BYTES} bytes, too large for a key")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    if not text:
        raise MissingSecretError(missing, name=name)
    return text
