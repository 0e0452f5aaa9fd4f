from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import proxies
from tests.benchmarks.front_door import GATEWAY, SHORT, TOKENS, measure_http_bursts, measure_http_trickle
from tests.benchmarks.http_load import Answer, HttpClient, check_answer
from tests.benchmarks.load import EXPECTED, DeliveryError
from tests.benchmarks.proxies import Kind, Proxy
from tests.benchmarks.systems import make_bed
from tests.benchmarks.table import Row, Target, to_markdown

if TYPE_CHECKING:
    from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def streamed(*events: bytes) -> Answer:
    """An answer whose chunks come one a second."""
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    pieces = [HEAD, *chunks, b"0\r\n\r\n"]
    return Answer([(float(second), piece) for second, piece in enumerate(pieces)])


def said(text: str) -> bytes:
    """An event with a text."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


DONE = b"data: [DONE]\n\n"


def test_each_token_has_the_time_at_which_it_came() -> None:
    """Also where an event is split over two pieces: it is there when its end is."""
    first, second = said("a"), said(" b")
    answer = streamed(first, second[:20], second[20:], b": ping\n\n", said(""), said("c") + DONE)
    assert list(answer.tokens()) == [(1.0, "a"), (3.0, " b"), (6.0, "c")]


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ((said(EXPECTED["trickle"]),), "no end"),
        ((b'data: {"error":{"message":"no"}}\n\n', DONE), "failed"),
        ((said("something else"), DONE), "not the model's answer"),
    ],
)
def test_stream_that_is_not_the_models_answer_does_not_count(events: tuple[bytes, ...], what: str) -> None:
    """A cut, a failure, other words: nothing that was measured counts."""
    with pytest.raises(DeliveryError, match=what):
        check_answer(streamed(*events), "trickle", streams=True)


def test_failure_is_no_answer() -> None:
    """Refusals are cheap."""
    refused = Answer([(0.0, b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\n{}")])
    for streams in (True, False):
        with pytest.raises(DeliveryError, match="503"):
            check_answer(refused, "short", streams=streams)


async def test_lost_connection_is_told_at_once() -> None:
    """Not after the longest time that an answer may take."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        client = await HttpClient.connect(server.sockets[0].getsockname()[1], {})
        with pytest.raises(DeliveryError, match="lost"):
            await client.ask(b"{}")
        assert not client.is_open


def test_ahead_means_of_each_that_was_measured() -> None:
    """Without any of the others there is nothing to be ahead of."""
    row = Row(key="k", title="CPU", unit="µs", target=Target.ahead(), comparison=GATEWAY)
    row.add("daemon", 2.0)
    row.add("gateway", 5.0)
    assert row.is_met is None
    row.add("litellm-proxy", 400.0)
    assert row.is_met
    row.add("portkey", 4.0)
    assert row.is_met is False
    assert "| CPU, µs | 2 | 5 | 400 | 4 | 2.50 | < each of the others | NO |" in to_markdown([row])


def test_each_comparison_has_a_table_of_its_own() -> None:
    """The columns of one say nothing in the other."""
    ours, theirs = Row(key="a", title="A", unit="s"), Row(key="b", title="B", unit="s", comparison=GATEWAY)
    theirs.add("gateway", 1.0)
    first, second, _ = to_markdown([ours, theirs]).split("\n\n")
    assert first.startswith("|  | floor | daemon |")
    assert second.startswith("|  | daemon alone | gateway | LiteLLM proxy 1.102.4 | Portkey 1.15.2 | gateway / daemon")


async def test_gateway_delivers_every_token() -> None:
    """The daemon alone and the gateway before it do the same work, checked token by token; no other proxy is needed."""
    bursts = [replace(TOKENS, requests=8, connections=4), replace(SHORT, requests=16, connections=4)]
    with make_bed() as bed:
        rows = {row.key: row async for row in measure_http_bursts(bed, bursts, rounds=1, peers=())}
        rows |= {row.key: row async for row in measure_http_trickle(bed, rounds=1, seconds=0.5, peers=())}
    assert all(row.samples.keys() == {"daemon", "gateway"} for row in rows.values())
    assert all(value > 0 for row in rows.values() for values in row.samples.values() for value in values)
    door, behind, together = (
        rows[f"http_token_{name}"].samples["gateway"][0] for name in ("cpu_gateway", "cpu_daemon", "cpu")
    )
    assert together == pytest.approx(door + behind)


def test_proxy_that_does_not_start_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not after a minute."""
    monkeypatch.setattr(proxies, "_FOLDER", tmp_path)
    broken = Kind(
        name="broken",
        title="Broken",
        version="1",
        install=lambda _folder: None,
        command=lambda _folder, _bed, _port: ["false"],
        environment={},
        share=1,
    )
    with make_bed() as bed, pytest.raises(RuntimeError, match="Broken: ended with 1"):
        Proxy(bed, broken)
