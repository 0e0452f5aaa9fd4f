"""The command `llm-routerd`: its arguments, and what every subcommand does about errors.

Nothing heavy is imported up here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from llm_routerd.cli.exits import Exit, NotAcceptedError, UsageError, nobody_listens
from llm_routerd.cli.terminal import complain, prepare_streams
from llm_routerd.errors import BrokerError, ConfigError, NotAllowedError, RouterdError, UnsuitableServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

_YEAR_SECONDS = 366 * 86_400
_MOST_SHARDS = 1_024
_LANES = ("high", "normal", "low")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code (see `Exit`).

    Raises:
        SystemExit: argparse has printed the help or an error.
    """
    prepare_streams()
    arguments = parse(argv)
    try:
        code = int(import_module(f"llm_routerd.cli.{arguments.module}").run(arguments))
        sys.stdout.flush()
    except RouterdError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our stdout has gone (`| head`); the interpreter must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments.

    Raises:
        SystemExit: argparse has printed the help or an error.
    """
    parser = build_parser()
    arguments, left = parser.parse_known_args(argv)
    # argparse fills `entries` once and for all at the first word, though options and more entries may follow.
    if left and hasattr(arguments, "entries") and not any(word.startswith("-") for word in left):
        arguments.entries += left
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


def _tell(error: RouterdError) -> Exit:
    """Say in one line why a command ended, and which exit code that is."""
    begins = {Exit.NOT_ALLOWED: "Redis does not allow that: ", Exit.UNAVAILABLE: "Redis cannot be used: "}
    code = _exit_of(error.why if isinstance(error, NotAcceptedError) else error)
    remedy = ""
    if isinstance(error, BrokerError) and not error.remedy and nobody_listens(error):
        remedy = "; start it, name another with --redis, or let it bring its own: llm-routerd serve --embedded"
    complain(f"{begins.get(code, '') if isinstance(error, BrokerError) else ''}{error}{remedy}")
    return code


def _exit_of(error: RouterdError) -> Exit:
    match error:
        case UsageError():
            return Exit.USAGE
        case ConfigError() | UnsuitableServerError():
            return Exit.CONFIGURATION
        case NotAllowedError():
            return Exit.NOT_ALLOWED
        case BrokerError():
            return Exit.UNAVAILABLE
        case _:
            return Exit.FAILED


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a subcommand is run by the module of its name."""
    parser = argparse.ArgumentParser(
        prog="llm-routerd",
        description="Takes LLM requests from a Redis stream and answers them local-first.",
        epilog="Exit codes: 0 answered; 1 an error instead of an answer, or a failed check; 2 wrong usage; "
        "66 nothing is known of the request; 69 Redis cannot be used; 75 no answer in time; "
        "77 not allowed by Redis; 78 unsound configuration; 130 Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_const", dest="module", const="version", help="print the version")
    common = _common_options()
    # Not `required`: that would refuse a bare `--version`.
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, add, summary in (
        ("serve", _add_serve, "run the daemon"),
        ("gateway", _add_gateway, "serve HTTP clients: OpenAI's, Anthropic's, Ollama's, browsers"),
        ("mcp-bridge", _add_mcp_bridge, "serve the tools of MCP servers to requests with `agent`"),
        ("submit", _add_submit, "submit a request and show its answer"),
        ("follow", _add_follow, "show what happens to a request, from any point on"),
        ("cancel", _add_cancel, "cancel a request, queued or running"),
        ("tools", _add_json, "list the tools that are registered, and who serves them"),
        ("confirm", _add_confirm, "agree to a tool call that waits for a person, or list those that wait"),
        ("deny", _add_deny, "refuse a tool call that waits for a person"),
        ("check", _add_json, "check configuration, Redis and models"),
        ("audit", _add_audit, "show what was called, what it took, and who agreed to it"),
        ("dead", _add_dead, "look at dead letters, retry or drop them"),
        ("version", _add_nothing, "print the version"),
    ):
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=[common], allow_abbrev=False
        )
        command.set_defaults(module=name.replace("-", "_"))
        add(command)
    parser.set_defaults(module="usage", parser=parser)
    return parser


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("where")
    group.add_argument("--config", metavar="FILE", help="configuration (default: the system's, else built-in)")
    group.add_argument("--redis", metavar="URL", help="Redis, instead of the configured one")
    group.add_argument("--prefix", metavar="PREFIX", help="prefix of the keys, instead of the configured one")
    group.add_argument("--shards", type=_shards, metavar="N", help="how many shards the queue has, likewise")
    return common


def _add_nothing(_: argparse.ArgumentParser) -> None:
    """A subcommand without arguments of its own."""


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, one object per line")


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--embedded", action="store_true", help="start its own Valkey, with its data on disk")
    command.add_argument("--state-directory", metavar="DIR", help="where the embedded Valkey keeps its data")
    command.add_argument("--gateway", action="store_true", help="serve HTTP clients too, as `gateway` does")


def _add_gateway(command: argparse.ArgumentParser) -> None:
    command.add_argument("--listen", metavar="HOST:PORT", help="where, instead of gateway.listen")


def _add_mcp_bridge(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stderr", action="store_true", help="show what servers write there, which may hold arguments and secrets"
    )


def _add_submit(command: argparse.ArgumentParser) -> None:
    what = command.add_argument_group("request")
    what.add_argument("prompt", nargs="?", help="the prompt")
    what.add_argument("--file", metavar="FILE", help="read the prompt from a file, `-` for stdin")
    what.add_argument("--model", help="a chain or a deployment of the configuration")
    what.add_argument("--schema", metavar="FILE", help="JSON Schema that the answer must satisfy")
    what.add_argument("--param", action="append", default=[], metavar="K=V", help="e.g. temperature=0; repeatable")
    what.add_argument(
        "--agent", metavar="TOOLS", help="run these tools for the model: names or globs, weather,lights.*"
    )
    what.add_argument("--max-turns", type=int, metavar="N", help="how often such a run may ask a model, at most 20")
    what.add_argument("--confirm", metavar="TOOLS", help="ask a person before these tools are called, too")
    what.add_argument("--local-only", action="store_true", help="never leave local deployments")
    what.add_argument("--tenant", help="whom to account it to")
    what.add_argument("--context", help="a label for logs and metrics")
    what.add_argument("--id", help="idempotency key (default: a new one)")
    what.add_argument("--lane", choices=_LANES, default="normal", help="how urgent it is (default: normal)")
    # Three switches and not `--stream [MODE]`: that would take the prompt after it for its mode.
    stream = what.add_mutually_exclusive_group()
    for option, mode, summary in (
        ("--stream", "probe", "tokens as they come, after a look at the opening (default on a terminal)"),
        ("--live", "live", "tokens as they come, at once"),
        ("--no-stream", "off", "no tokens"),
    ):
        stream.add_argument(option, action="store_const", dest="stream", const=mode, help=summary)
    _add_watching(command)
    command.add_argument("--keep", action="store_true", help="Ctrl-C leaves, and does not cancel the request")
    command.add_argument("--no-wait", action="store_true", help="print the id and leave")


def _add_follow(command: argparse.ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", help="of the request")
    command.add_argument(
        "--from", dest="last_id", default="0-0", metavar="LAST_ID", help="the last event that was seen"
    )
    _add_watching(command)
    command.add_argument("--wait", action="store_true", help="wait for a request that nobody knows yet")
    command.add_argument("--cancel", action="store_true", help="Ctrl-C cancels the request instead of only leaving")


def _add_watching(command: argparse.ArgumentParser) -> None:
    command.add_argument("--timeout", type=_seconds, metavar="S", help="how long an answer is wanted, in seconds")
    _add_json(command)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < _YEAR_SECONDS:
        raise argparse.ArgumentTypeError("expected a number of seconds above 0")
    return seconds


def _shards(text: str) -> int:
    shards = int(text)
    if not 1 <= shards <= _MOST_SHARDS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MOST_SHARDS}")
    return shards


def _add_cancel(command: argparse.ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", help="of the request")
    command.add_argument(
        "--anyway", action="store_true", help="even one that nobody knows, so that it will not run when it is submitted"
    )
    command.add_argument("--reason", default="cancelled at the command line", help="told to whoever follows")
    _add_json(command)


def _add_word(command: argparse.ArgumentParser, why: str) -> None:
    command.add_argument("call", metavar="CALL", nargs="?", help="of the call (default: the only one that waits)")
    command.add_argument("--by", metavar="NAME", help="who says it (default: the login name)")
    command.add_argument("--reason", metavar="TEXT", default="", help=why)
    _add_json(command)


def _add_confirm(command: argparse.ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", nargs="?", help="of the request (default: list all that waits)")
    _add_word(command, "kept in the request's events")
    command.add_argument("--yes", action="store_true", help="do not ask first, as on a terminal it does")
    command.add_argument("--args", metavar="JSON", help="call it with these arguments instead")
    command.add_argument("--always", action="store_true", help="this tool waits for nobody for the rest of the run")


def _add_deny(command: argparse.ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", help="of the request")
    _add_word(command, "told to the model")


def _add_dead(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        choices=("list", "show", "retry", "drop"),
        help="list all; show one with its request and its history; retry: queue it again; drop: remove it",
    )
    command.add_argument("entries", nargs="*", metavar="ENTRY", help="dead letters, as `list` names them")
    command.add_argument("--all", action="store_true", help="retry or drop every one")
    _add_json(command)


def _add_audit(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tenant", metavar="T", help="of this tenant")
    command.add_argument("--id", metavar="ID", help="of this request")
    command.add_argument("--kind", choices=("model", "tool", "confirmation"), help="of this kind")
    command.add_argument("--since", metavar="WHEN", help="from here on: `2h` ago, a date, a time")
    command.add_argument("--until", metavar="WHEN", help="before this")
    command.add_argument("--follow", action="store_true", help="and what comes, until Ctrl-C")
    _add_json(command)


if __name__ == "__main__":
    sys.exit(main())
