"""Every provider that has no backend of its own, through the library litellm, which `loading` alone imports.

Its version is pinned (1.102.4), for much of this leans on names that are litellm's own.  What each patch buys, on two
cores; a *case* is one of the 510 in `tests/backends` that call through litellm, and fails without the patch: an answer
given as whole that is not, one that is lost, or a number that nobody has counted.

- `loading`: on first use, in a thread.  An environment in which litellm prints nothing, fetches nothing and reads no
  `.env`.  No garbage collector meanwhile, and none later over what has come: 1.8 s of CPU for 2.4 s, and the event loop
  held for 70 ms instead of 750 ms.  No tokenizer: 34 MB, and 40 to 60 ms in which no thread runs.  A rehearsal: the
  first call holds the loop for 7 ms instead of 22 ms, the first that fails for 22 ms instead of 74 ms.
- `mending`: reasons to finish as they were said (37 cases); events that are none, or no JSON, in the SDK of OpenAI (6),
  in the reader that most share (23), in Anthropic's (9) and Gemini's (38, whole answers told from cut ones among them);
  one answer of several (10); counts that are counts (6).  No question to an Ollama after each answer, for which the
  loop stands still until that has replied: for ever, where it does not.
- `first_byte`: an answer that comes as one document is read (18).
- `keys`: a deployment that has no key is named at start, and not found out by each request (3).

`request` writes what is asked, `answer` reads what comes, `faults` tells what an exception stands for.  Another version
of litellm: take one patch away after the other, and see whether its cases still fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.backends.litellm.backend import LitellmBackend
from llm_routerd.backends.litellm.loading import LitellmModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


def make_backends(deployments: Mapping[str, Deployment], _transport: Transport) -> Mapping[str, Backend]:
    """One for each of these deployments, by the same names; they share the library, and its connections."""
    module = LitellmModule({each.provider for each in deployments.values()})
    return {name: LitellmBackend(each, module) for name, each in deployments.items()}
