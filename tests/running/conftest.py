"""What every test in here runs under."""

from tests.support.blocking import nothing_blocks_the_loop

__all__ = ["nothing_blocks_the_loop"]
