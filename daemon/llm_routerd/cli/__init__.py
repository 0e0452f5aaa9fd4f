"""The command line: `main` reads it, and each command is a module with `run(arguments) -> Exit`.

`settings` finds configuration and Redis, `exits` are the exit codes, `terminal` is what may be printed; `views` and
`watch` show a request, `check_*` and `findings` are parts of `check`.  `schemas` writes `schemas/` (`make schemas`).

Another command: a module here, and a row in `main.build_parser`, with what it takes.
"""
