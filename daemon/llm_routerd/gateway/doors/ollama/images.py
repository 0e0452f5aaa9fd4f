"""Images as Ollama has them, base64 without a word of what they are, to data URLs."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any, Final

from llm_routerd.gateway.fault import refused
from llm_routerd.gateway.properties import a_list, a_text, path

_HEAD_CHARS: Final = 64
_BEGINNINGS: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_BRANDS: Final = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heif", b"msf1": "heif"}


def image_parts(images: Any, where: str) -> list[dict[str, Any]]:
    """The images as parts of a message's content.

    Raises:
        RefusedError: one is no image in base64, or of a kind that is not known.
    """
    return [
        {"type": "image_url", "image_url": {"url": _data_url(a_text(image, path(where, number)), path(where, number))}}
        for number, image in enumerate(a_list(images, where))
    ]


def _data_url(image: str, where: str) -> str:
    try:
        head = b64decode(image[:_HEAD_CHARS], validate=True)
    except (binascii.Error, ValueError):
        head = b""
    kind = _kind_of(head)
    if not kind:
        raise refused(where, "expected a PNG, JPEG, GIF, WebP, BMP, TIFF, HEIF or AVIF in base64")
    return f"data:image/{kind};base64,{image}"


def _kind_of(head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), "")
