"""One model of one provider, through litellm."""

from __future__ import annotations

import asyncio
import importlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.answer_format import NOT_ITS_OWN
from llm_routerd.backends.litellm.answer import LitellmAnswer, is_whole, read_directly, sent_as_json, usage_of
from llm_routerd.backends.litellm.faults import fault_of
from llm_routerd.backends.litellm.keys import missing_key
from llm_routerd.backends.litellm.request import call_arguments
from llm_routerd.backends.optional_fields import Omissions
from llm_routerd.backends.prompt_cut import reject_cut
from llm_routerd.backends.wire.endpoint import converted
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.backends.litellm.loading import LitellmModule
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

# The caller bounds the time of an answer by cancelling; this is for what nobody cancels.
_GAP_SECONDS = 600.0
_CLOSE_SECONDS = 2.0


class LitellmBackend:
    """One model of one provider."""

    def __init__(self, deployment: Deployment, module: LitellmModule) -> None:
        self._deployment = deployment
        self._module = module
        self._timeout: Any = None
        self._omissions = Omissions()

    async def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """See `Backend.stream`."""
        litellm = await self._module.get()

        async def post(arguments: dict[str, Any]) -> Any:
            try:
                return await litellm.acompletion(**arguments, timeout=self._timeouts())
            except Exception as error:  # noqa: BLE001 - litellm raises its own, the SDKs' and bare ones
                raise fault_of(error, begun=False) from None

        stream = await self._omissions.ask(
            lambda omitted: converted(partial(call_arguments, omitted=omitted), self._deployment, call), post
        )
        try:
            answer = LitellmAnswer()
            if (response := await sent_as_json(stream, self._deployment.provider)) is not None:
                async for item in read_directly(response):
                    if isinstance(item, Finish):
                        await self._look_for_a_cut(call, item)
                    yield item
                return
            async for chunk in stream:
                if (delta := answer.take(chunk)) is not None:
                    yield delta
            finish = answer.finish(whole=is_whole(stream), usage=usage_of(stream.chunks))
            await self._look_for_a_cut(call, finish)
            yield finish
        except BackendError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise fault_of(error, begun=True) from None
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await stream.aclose()

    async def _look_for_a_cut(self, call: Call, finish: Finish) -> None:
        if self._deployment.api_base is not None:
            await reject_cut(call, finish)

    def _timeouts(self) -> Any:
        """One object for all calls: for each other value litellm builds new clients."""
        if self._timeout is None:
            httpx: Any = importlib.import_module("httpx")  # litellm has loaded it
            self._timeout = httpx.Timeout(_GAP_SECONDS, connect=self._deployment.connect_timeout)
        return self._timeout

    async def probe(self) -> ProbeReport:
        """See `Backend.probe`.  litellm has no question that costs no tokens, so none is asked."""
        also = "" if self._deployment.api_base is None else NOT_ITS_OWN.format("the provider")
        return ProbeReport(ok=True, detail=f"called through litellm, not asked: that would cost tokens{also}")

    async def fault(self) -> str | None:
        """Why no call can ever succeed; None: nothing is known against it."""
        try:
            litellm = await self._module.get()
            if not await asyncio.to_thread(_knows, litellm, self._deployment):  # imports for its first answer
                return f"litellm knows no provider `{self._deployment.provider}`"
            return await asyncio.to_thread(missing_key, litellm, self._deployment)
        except Exception as error:  # noqa: BLE001 - an import runs whatever stands in the package
            return f"litellm cannot be imported ({type(error).__name__})"

    async def window(self) -> None:
        """See `Backend.window`: nobody tells."""

    async def loaded_window(self) -> int:
        """See `Backend.loaded_window`."""
        return 0

    async def resident(self) -> None:
        """See `Backend.resident`: nobody tells."""

    async def warm(self, *, num_ctx: int | None = None) -> None:  # noqa: ARG002 - no server of this kind can be asked
        """See `Backend.warm`: there is nothing to load but litellm itself."""
        await self._module.get()


def _knows(litellm: Any, deployment: Deployment) -> bool:
    """Whether it knows whom to ask."""
    try:
        litellm.get_llm_provider(model=deployment.model, api_base=deployment.api_base)
    except Exception as error:  # noqa: BLE001 - whatever else it is, a call will tell
        return not isinstance(error, litellm.BadRequestError)
    return True
