"""`python -m tests.standin`: see `server`."""

from tests.standin.process import main

main()
