"""Images and files lie in a request whole, as data URLs.  Nothing is fetched: its addresses are not ours to call."""

from __future__ import annotations

from llm_routerd.backends import faults


def media_of(url: str) -> tuple[str, str]:
    """The media type of a data URL and its payload in base64.

    Raises:
        BackendError: it is none.
    """
    header, comma, payload = url.partition(",")
    if not (header.startswith("data:") and header.endswith(";base64") and comma):
        raise faults.unsupported("images and files are taken as base64 data URLs only")
    return header[5:-7], payload
