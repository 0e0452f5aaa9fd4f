"""One process: signals, systemd, the health page, the embedded server, reloads."""
