"""What is merely counted as it happens."""

from __future__ import annotations

from enum import Enum


class Tally(Enum):
    """A counter that is shown from 0 on: its name for Prometheus, without the project's prefix, and its help text."""

    ORPHANS = "orphans_total", "Requests that nobody owned any more, and that were taken up."
    PASSED_ON = "passed_on_total", "Requests handed back for a worker that knows their model."
    LETTERS_DROPPED = "dead_letters_dropped_total", "Dead letters dropped to make room for newer ones."
    TOOL_ANSWERS_IGNORED = "tool_answers_ignored_total", "Answers of tools that came twice, late or for no call."
    AUDIT_REFUSED = "audit_refused_total", "Entries of the audit that Redis refused."
    MENDED = "streams_mended_total", "Streams made anew since their IDs ran ahead of the clock."
