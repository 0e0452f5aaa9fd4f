"""`python -m tests.standin`: see `server`."""

from tests.standin.server import main

main()
