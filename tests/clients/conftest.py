"""Fixtures of the stage: one gateway for all tests of a process, and the clients that ask it."""

from tests.clients.site import node, python_client, site

__all__ = ["node", "python_client", "site"]
