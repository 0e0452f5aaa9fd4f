"""The configuration: one TOML file and a few environment variables, read into one frozen tree.

- `tree`: the tree.  `providers`: a row for each provider that is known by name.  These two are what others read.
- `load`: the door of those who start something: file, built-in tables, environment, checks.  `builtin`, `secrets`,
  `environment`, `checking` and `addresses` are its steps.
- `table`: what is said of a key beside its type.  `schema`: the published schema, made of that.

Imports `judging` for the names of its modes, `protocol` and below.

Another key: a field in `tree`, and `schemas/config.schema.json` made anew.  Another provider: a row in `providers`.
"""
