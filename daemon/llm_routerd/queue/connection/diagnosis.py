"""Why no connection comes about: whether the server speaks TLS, and which of our files is not as it should be.

Asked only when a connection has failed, on connections of its own, which carry nothing of ours.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_routerd.queue.connection.describing import SetupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANSWER_SECONDS = 0.3  # for what a server says
_MEND = "correct that in the Redis URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What a Redis URL says of TLS; None: nothing."""

    ssl_ca_certs: str | None
    ssl_ca_path: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_password: str | None


async def tls_trouble(error: BaseException | None, files: TlsFiles, host: str, port: int) -> SetupError | None:
    """What is wrong where a connection with TLS failed by `error`; None: the network, or nobody knows."""
    match error:
        case ssl.SSLCertVerificationError():
            told = f"the server's certificate is not accepted ({error.verify_message})"
            trouble = SetupError(told, "name the file of its authority with ssl_ca_certs in the Redis URL")
            # OpenSSL passes over a directory that is not there.
            return await asyncio.to_thread(_unusable, files) or trouble
        case ConnectionRefusedError():
            return None
        # TypeError: Python's word for a key without a certificate.
        case ssl.SSLError() | FileNotFoundError() | PermissionError() | IsADirectoryError() | TypeError():
            unusable = await asyncio.to_thread(_unusable, files)
            if unusable is not None:
                return unusable
        case TimeoutError() | ConnectionError():
            pass
        case _:
            return None
    if await _answers_in_the_clear(host, port):
        return SetupError("the server speaks no TLS at this port", "write redis:// in the Redis URL, or its TLS port")
    return None


async def certificate_trouble(context: ssl.SSLContext, files: TlsFiles, host: str, port: int) -> SetupError | None:
    """What a server has against our certificate, or that we show none; None: nothing that it says.

    It says so only after the greeting (TLS 1.3), and whoever has written by then may not get to read it.
    """
    try:
        async with _opened(host, port, context) as (reader, _), asyncio.timeout(ANSWER_SECONDS):
            await reader.read(1)
    except ssl.SSLError as error:
        said = error.reason or ""
        if "ALERT_CERTIFICATE_REQUIRED" in said:
            told = "the server asks for a client certificate, and the Redis URL names none"
            return SetupError(told, "name it with ssl_certfile and ssl_keyfile there")
        if files.ssl_certfile and "ALERT" in said and ("CERTIFICATE" in said or "UNKNOWN_CA" in said):
            told = "the server does not take the certificate of the Redis URL"
            return SetupError(told, "correct ssl_certfile there, or on the server")
    except (OSError, TimeoutError):
        pass
    return None


async def wants_tls(host: str, port: int) -> SetupError | None:
    """What is wrong where a server hung up on us, if it speaks TLS; None: it does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is said on this connection
    with suppress(OSError, TimeoutError):
        async with _opened(host, port, context):
            return SetupError("the server speaks TLS at this port", "write rediss:// in the Redis URL")
    return None


async def _answers_in_the_clear(host: str, port: int) -> bool:
    with suppress(OSError, TimeoutError, ValueError):  # ValueError: a line without end
        async with _opened(host, port, None) as (reader, writer):
            writer.write(b"PING\r\n")
            async with asyncio.timeout(ANSWER_SECONDS):
                return (await reader.readline())[:1] in {b"+", b"-"}
    return False


@asynccontextmanager
async def _opened(
    host: str, port: int, context: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _unusable(files: TlsFiles) -> SetupError | None:
    """The first file that cannot be read, or is none of what it should be."""
    unreadable = _unreadable(files)
    if unreadable is not None:
        return unreadable
    if files.ssl_keyfile and not files.ssl_certfile:
        return SetupError("ssl_keyfile goes with ssl_certfile, which is missing", _MEND)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if files.ssl_ca_certs:
            context.load_verify_locations(files.ssl_ca_certs)
    except OSError:  # an SSLError is one
        return SetupError(f"ssl_ca_certs: {files.ssl_ca_certs} holds no certificate", _MEND)
    try:
        if files.ssl_certfile:
            context.load_cert_chain(files.ssl_certfile, files.ssl_keyfile, files.ssl_password or "")
    except OSError:
        told = f"ssl_certfile: {files.ssl_certfile}, its key and the key's password do not go together"
        return SetupError(told, _MEND)
    return None


def _unreadable(files: TlsFiles) -> SetupError | None:
    named = (
        ("ssl_ca_certs", files.ssl_ca_certs),
        ("ssl_ca_path", files.ssl_ca_path),
        ("ssl_certfile", files.ssl_certfile),
        ("ssl_keyfile", files.ssl_keyfile),
    )
    for option, path in named:
        try:
            if path and option == "ssl_ca_path":
                next(Path(path).iterdir(), None)
            elif path:
                with Path(path).open("rb") as file:
                    file.read(1)
        except NotADirectoryError:
            return SetupError(f"{option}: {path} is not a directory", _MEND)
        except OSError as error:
            return SetupError(f"{option}: {path} cannot be read ({error.strerror})", _MEND)
    return None
