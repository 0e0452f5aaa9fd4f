"""TLS to Sentinels and to the primary that they name, as Debian's Redis speaks it (the Valkey of the tests does not)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from llm_routerd.client import Client
from llm_routerd.errors import BrokerError
from tests.support.certificates import make_certificate
from tests.support.fakes import FakeBackend, says
from tests.support.processes import lasting_port
from tests.support.servers import ValkeyProcess
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """One of this machine, which is its own authority; its key lies beside it."""
    return make_certificate(tmp_path)


@pytest.fixture
def sentinel_port(server_binary: Path, certificate: Path) -> Iterator[int]:
    """The port at which a Sentinel speaks TLS; it watches a primary that does as well."""
    if server_binary.name != "redis-server":
        pytest.skip("the Valkey of the tests is built without TLS")
    tls = {
        "tls-cert-file": str(certificate),
        "tls-key-file": str(certificate.parent / "key.pem"),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
        "tls-replication": "yes",
    }
    primary_port, port = lasting_port(), lasting_port()
    with ExitStack() as stack:
        for process in (
            ValkeyProcess(tls | {"tls-port": str(primary_port)}, port=lasting_port(), binary=server_binary),
            ValkeyProcess(
                tls | {"tls-port": str(port)},
                port=lasting_port(),
                binary=server_binary,
                lines=[f"sentinel monitor queue 127.0.0.1 {primary_port} 1"],
                sentinel=True,
            ),
        ):
            stack.callback(process.close)
            process.start()
        yield port


async def test_worker_and_client_speak_tls_to_both(sentinel_port: int, certificate: Path) -> None:
    """By one authority, which the URL names."""
    url = f"rediss+sentinel://127.0.0.1:{sentinel_port}/queue/0?ssl_ca_certs={certificate}"
    async with (
        run_worker(url, {"local": FakeBackend(says("hi"))}, config=make_config()),
        Client(url, patience_seconds=5) as client,
    ):
        assert (await client.result(await client.submit(prompt="hello"), 10)).type == "result"


@pytest.mark.parametrize(
    ("begins", "says_so"),
    [("rediss+sentinel", "certificate"), ("redis+sentinel", "none of 1 Sentinels tells where queue is")],
)
async def test_why_tls_does_not_come_about_is_one_line(sentinel_port: int, begins: str, says_so: str) -> None:
    """An authority that nobody knows; no TLS where it is wanted."""
    async with Client(f"{begins}://127.0.0.1:{sentinel_port}/queue", patience_seconds=0.1) as client:
        with pytest.raises(BrokerError) as caught:
            await client.submit(prompt="hello")
    assert says_so in str(caught.value)
    assert "\n" not in str(caught.value)
