"""See llm-routerd run: `make demo`, or `python -m tests.demo` from the repository's root.

It starts a real Valkey, the daemon and a gateway as processes of their own and, where no Ollama answers at `OLLAMA_API_BASE`, a stand-in
for one; shows the main job on them; and takes everything away again.  Exit code 0 says that everything it showed
really happened.  No cloud model is called, whatever keys there are.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from redis.exceptions import RedisError

from llm_routerd.cli.terminal import complain, prepare_streams
from llm_routerd.errors import RouterdError
from tests.demo.acts import ACTS, NotShownError
from tests.demo.screen import Screen
from tests.demo.stage import Stage, find_model, set_up, standin

_LONGEST_SECONDS = 58.0
_TOKEN_MS = 50  # as a small model on a small machine
_FAST_TOKEN_MS = 15
_INTERRUPTED = 130


async def _perform(screen: Screen, *, only_standin: bool) -> None:
    model = standin("asked not to look for one") if only_standin else await find_model()
    screen.heading("llm-routerd: LLM requests from a Redis stream, answered local-first")
    screen.fact("model", model.why)
    async with set_up(model, token_ms=_TOKEN_MS if screen.unhurried else _FAST_TOKEN_MS) as stage:
        screen.fact("Valkey", f"embedded, on 127.0.0.1:{stage.port}; its data is in a temporary directory")
        screen.fact("daemon", f"process {stage.daemon.pid}, answering after {stage.ready_seconds:.1f} s")
        screen.fact("gateway", f"process {stage.gateway.pid}, HTTP on 127.0.0.1:{stage.gateway_port}")
        await screen.pause(1.5)
        try:
            for act in ACTS:
                await act(stage, screen)
        except Exception:
            _blame(stage)
            raise
    for name, process in (("daemon", stage.daemon), ("gateway", stage.gateway)):
        if process.exit_status != 0:
            raise NotShownError(f"a {name} that ends in good order; its exit status was {process.exit_status}")
    screen.heading("Done: all of this happened, and nothing of it is left")
    screen.say("To have it stay: .venv/bin/llm-routerd serve --embedded --gateway, and in another terminal")
    screen.command(".venv/bin/llm-routerd submit 'Why is the sky blue?'")
    screen.say(
        "or http://127.0.0.1:8004 in a browser, and as base URL of whatever speaks to OpenAI, Anthropic or Ollama."
    )


def _blame(stage: Stage) -> None:
    """The logs are about to go; their ends may tell why."""
    sys.stdout.flush()
    for name, process in (("daemon", stage.daemon), ("gateway", stage.gateway)):
        sys.stderr.write(f"\nThe {name}'s last log lines:\n{process.last_words()}\n")
    if not stage.model.is_standin:
        sys.stderr.write("\nTo see the demo without Ollama: make demo DEMO=--stand-in\n")


async def _perform_within_bounds(screen: Screen, *, only_standin: bool) -> None:
    """Perform, with SIGINT, SIGTERM and SIGHUP as a cancellation: what was started is taken away in any case."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:  # a second one must not break off the cleaning up, which is bounded
            interrupted = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    async with asyncio.timeout(_LONGEST_SECONDS):
        await _perform(screen, only_standin=only_standin)


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description="Shows llm-routerd at work.")
    parser.add_argument("--fast", action="store_true", help="no pauses for reading (as when the output is no terminal)")
    parser.add_argument("--stand-in", action="store_true", help="use the stand-in model even where Ollama answers")
    options = parser.parse_args()
    prepare_streams()
    try:
        asyncio.run(_perform_within_bounds(Screen(fast=options.fast), only_standin=options.stand_in))
    except asyncio.CancelledError:
        complain("interrupted; nothing is left running")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our stdout has gone; the interpreter must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except NotShownError as error:
        complain(f"the demo was to show {error}, and could not")
    except (RouterdError, RedisError, RuntimeError, OSError) as error:
        complain(f"the demo could not go on: {type(error).__name__}: {error}")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
