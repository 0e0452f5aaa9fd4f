"""The command line: a module with a `run(arguments)` per command, and what they share.

- `main` has the arguments of all of them, and what each does about errors; it imports a command when that is asked for.
- `exits`, `terminal`, `settings`: how one ends, speaks, and learns of the queue.  `views` and `watch` show a request's
  events (`run_lines` those of a run with tools), `unknown` says what may have been meant.  `confirming` asks whoever
  sits at the `keyboard` for a tool call, `saying` is what `confirm` and `deny` do.  `findings`, `rights` and the
  `check_*` modules are steps of `check`.
- `schemas` is no command: `make schemas` runs it.

The top floor: it may import anything, and nothing imports it.  What a producer may want as well belongs to `client`.
Another command: a module of its name here, and a row in `main`.
"""
