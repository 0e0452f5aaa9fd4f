"""The queue, as handlers of HTTP see it: requests that are sound are submitted, followed, looked up and cancelled."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.catalogue import Catalogue
from llm_routerd.gateway.fault import BUSY_RETRY_SECONDS, STATUSES, Fault, RefusedError
from llm_routerd.gateway.normalising import normalised, rules_of
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.protocol.reply_address import valid_id
from llm_routerd.protocol.request import RequestError, as_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from llm_routerd.client import Client, Following, Multiplexer, Sighting
    from llm_routerd.config.tree import Config
    from llm_routerd.gateway.admission import Caller
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.protocol.reading import SeenEnd

_log = get_logger()

LOOK_SECONDS = 2.0


class Prepared(Struct, frozen=True, kw_only=True):
    """A request that is sound.

    Attributes:
        request_id: on the streams.
        data: its JSON.
        lane: where it goes.
        is_new: nobody can know of it yet: its id was made here.
        normalised: what was taken out of its prompt, or moved in it, by name.
    """

    request_id: str
    data: bytes
    lane: Lane = "normal"
    is_new: bool = True
    normalised: tuple[str, ...] = ()


class Exchange:
    """One gateway's way to the queue.

    Args:
        config: in force; `use` takes another.
        client: for what is rare.
        plexer: for what is not; it runs.
    """

    def __init__(self, config: Config, client: Client, plexer: Multiplexer) -> None:
        self.client = client
        self.plexer = plexer
        self.is_stopping = False
        self._looks_at = 0.0
        self._has_workers = True
        self._tasks: set[asyncio.Task[Any]] = set()
        self.use(config)

    def use(self, config: Config) -> None:
        """Take another configuration over, for what comes from now on."""
        self.config = config
        self.catalogue = Catalogue(config)
        self._rules = rules_of(config.gateway)
        self._parser = RequestParser(max_request_bytes=config.daemon.max_request_bytes, schemas=SchemaCache())

    def prepare(
        self, fields: dict[str, Any], caller: Caller, *, key: str | None = None, lane: Lane = "normal"
    ) -> Prepared:
        """Make a request of its properties.

        Args:
            fields: as in `request.schema.json`, without `id`; `tenant_id` where the caller may say so.
            caller: whose it is.
            key: the client's idempotency key.
            lane: where it is to go.

        Raises:
            RefusedError: they are unsound; the message has the JSON path.
        """
        request_id = caller.request_id_for(key or uuid.uuid4().hex)
        if valid_id(request_id) is None:
            told = "an idempotency key has letters, digits and . _ : -, and at most 128 of them with its tenant's name"
            raise RefusedError(Fault(status=400, code=ErrorCode.INVALID_REQUEST, message=told, param="Idempotency-Key"))
        fields, done = self._normalised(fields)
        owner = caller.tenant_for(fields.get("tenant_id"))
        owned = {} if owner is None else {"tenant_id": owner}
        try:
            data = as_json({**fields, **owned, "id": request_id, "publish": True})
        except (TypeError, ValueError, RecursionError):  # as it came it was JSON
            raise RefusedError(
                Fault(status=400, code=ErrorCode.INVALID_REQUEST, message="$: this JSON cannot be passed on")
            ) from None
        found = self._parser.parse(request_id, {b"data": data})
        if isinstance(found, RequestError):
            raise RefusedError(Fault(status=STATUSES[found.code], code=found.code, message=found.message))
        return Prepared(request_id=request_id, data=data, lane=lane, is_new=key is None, normalised=done)

    def _normalised(self, fields: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What changes at the front taken out, where only local deployments can answer."""
        messages = fields.get("messages")
        if not self._rules or not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            return fields, ()
        if not (fields.get("local_only") is True or self.catalogue.is_local(fields.get("model", "default"))):
            return fields, ()
        changed, done = normalised(messages, self._rules)
        return ({**fields, "messages": changed}, done) if done else (fields, ())

    async def submit(self, prepared: Prepared) -> None:
        """Add it; what has its answer already is not asked again.

        Raises:
            RefusedError: Redis does not take it.
        """
        try:
            if prepared.is_new or await self.client.final(prepared.request_id) is None:
                await self.plexer.submit(prepared.request_id, prepared.data, prepared.lane, is_new=prepared.is_new)
        except BrokerError as error:
            raise unavailable(error) from error

    @asynccontextmanager
    async def submitted(self, prepared: Prepared) -> AsyncGenerator[Following]:
        """Add it, and follow it from its first event on.

        Raises:
            RefusedError: Redis does not take it, or goes away.
        """
        try:
            async with self.plexer.follow(prepared.request_id, is_new=prepared.is_new) as following:
                await self.submit(prepared)
                yield following
        except BrokerError as error:
            raise unavailable(error) from error

    @asynccontextmanager
    async def followed(self, request_id: str, after: str = "0-0") -> AsyncGenerator[Following]:
        """Follow a request that there is, from the event after `after`.

        Raises:
            RefusedError: Redis is away.
            ValueError: the id or `after` is not valid.
        """
        try:
            async with self.plexer.follow(request_id, after) as following:
                yield following
        except BrokerError as error:
            raise unavailable(error) from error

    async def final(self, request_id: str) -> SeenEnd | None:
        """The final event if there is one by now.

        Raises:
            RefusedError: Redis is away.
        """
        try:
            return await self.client.final(request_id)
        except BrokerError as error:
            raise unavailable(error) from error

    async def look_up(self, request_id: str) -> Sighting:
        """Whether anything is known of a request.

        Raises:
            RefusedError: Redis is away.
        """
        try:
            return await self.client.look_up(request_id)
        except BrokerError as error:
            raise unavailable(error) from error

    async def cancel(self, request_id: str, reason: str, *, anyway: bool = False) -> SeenEnd:
        """End a request; the end that stands now is returned.

        Raises:
            RefusedError: Redis is away, or does not allow it.
            UnknownRequestError: nothing is known of it.
        """
        try:
            return await self.client.cancel(request_id, reason, anyway=anyway)
        except BrokerError as error:
            raise unavailable(error) from error

    async def has_workers(self) -> bool:
        """Whether any has shown a sign of life, by a look that is seconds old at the most; true: or it is unsure."""
        now = asyncio.get_running_loop().time()
        if now >= self._looks_at:
            self._looks_at = now + LOOK_SECONDS
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    lanes = await self.client.lanes()
            except (BrokerError, TimeoutError):
                return True
            had, self._has_workers = self._has_workers, any(lane.workers for lane in lanes)
            if had and not self._has_workers:
                _log.warning("no_worker", remedy="start one: llm-routerd serve")
        return self._has_workers

    def give_up(self, request_id: str, reason: str) -> None:
        """End a request that nobody waits for any more; when this gateway stops, somebody may come back for it."""
        if not self.is_stopping:
            self.later(self._give_up(request_id, reason))

    async def _give_up(self, request_id: str, reason: str) -> None:
        try:
            await self.client.cancel(request_id, reason, anyway=True)
        except BrokerError as error:
            _log.warning("cancel_put_off", request=request_id, why=str(error))
            self.plexer.give_up(request_id, reason)  # or the model would go on for nobody

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that no client waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Finish what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


def unavailable(error: BrokerError) -> RefusedError:
    """Redis cannot be used now; what it said is for the operator, and in his log."""
    _log.warning("redis_unusable", why=str(error))
    return RefusedError(
        Fault(
            status=503,
            code="unavailable",
            message="the queue cannot be reached now",
            retry_after_seconds=BUSY_RETRY_SECONDS,
        )
    )
