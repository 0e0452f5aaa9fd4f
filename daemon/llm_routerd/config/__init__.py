"""The configuration: one TOML file and a few environment variables, read into one frozen tree."""
