"""Request bodies: how large, how packed, how slow they may be."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection
from typing import Protocol

import zstandard
from starlette.requests import Request

from common.errors import Invalid, PayloadTooLarge, UnsupportedMediaType
from common.http.problems import RequestTimeout

JSON_TYPES = ("application/json",)
ENCODINGS = ("gzip", "zstd")
MAX_BODY = 1_000_000
BODY_SECONDS = 20.0

_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})
# What is left of a body is copied for each member.
_GZIP_MEMBERS = 100
_GZIP = 31  # zlib's wbits for a gzip header and a window of 32 kB
_ZSTD_WINDOW = 8 * 1024 * 1024  # RFC 9659
_OFF_LOOP = 64 * 1024


class Room(Protocol):
    """Bounds what all bodies that arrive at once may hold; both raise where there is no room."""

    def expect(self, size: int) -> None:
        """So many bytes will come; there is room for them from now on."""

    def take(self, size: int) -> None:
        """So many bytes more are in hand, expected ones or others."""


async def read_body(
    request: Request,
    *,
    limit: int = MAX_BODY,
    media_types: Collection[str] = JSON_TYPES,
    encodings: Collection[str] = ENCODINGS,
    seconds: float = BODY_SECONDS,
    room: Room | None = None,
) -> bytes:
    """The body, unpacked.

    Args:
        request: the request whose body was not read yet.
        limit: bytes after unpacking; the packed body may not be larger either.
        media_types: content types that the route takes; an empty body needs none.
        encodings: content encodings that the route takes beside identity.
        seconds: how long the whole body may take to arrive.
        room: for this body beside others; it is asked before the first byte is read.

    Raises:
        PayloadTooLarge: more than ``limit``, said or sent or unpacked.
        UnsupportedMediaType: another content type, charset or encoding.
        RequestTimeout: it did not arrive in time.
        Invalid: it cannot be unpacked.
    """
    headers = request.headers
    said = headers.get("content-length", "0")
    if int(said) > limit:
        raise _too_large(limit)
    if said != "0" or "transfer-encoding" in headers:
        _check_media_type(headers.get("content-type"), media_types)
    encoding = _encoding(headers.getlist("content-encoding"), encodings)
    if room is not None:
        room.expect(int(said))
    packed = await _receive(request, limit, seconds, room)
    if not packed or encoding == "identity":
        return packed
    unpack = _gunzip if encoding == "gzip" else _unzstd
    if len(packed) > _OFF_LOOP:
        body = await asyncio.to_thread(unpack, packed, limit)
    else:
        body = unpack(packed, limit)
    if room is not None:
        room.take(len(body))
    return body


async def _receive(request: Request, limit: int, seconds: float, room: Room | None) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if room is not None:
                    room.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {seconds:g} seconds.") from None
    return b"".join(chunks)


def _check_media_type(content_type: str | None, media_types: Collection[str]) -> None:
    kind, _, parameters = (content_type or "").partition(";")
    if kind.strip().lower() not in media_types:
        raise UnsupportedMediaType(f"The Content-Type must be {' or '.join(media_types)}.")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"').lower()
        if name.strip().lower() == "charset" and charset not in _UTF8:
            raise UnsupportedMediaType("The body must be UTF-8.")


def _encoding(fields: list[str], encodings: Collection[str]) -> str:
    named = [e for e in (part.strip().lower() for part in ",".join(fields).split(",")) if e]
    if named in ([], ["identity"]):
        return "identity"
    encoding = {"x-gzip": "gzip"}.get(named[0], named[0])
    if len(named) > 1 or encoding not in encodings:
        raise UnsupportedMediaType(
            f"The Content-Encoding must be one of {', '.join((*encodings, 'identity'))}."
        )
    return encoding


def _gunzip(packed: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    room = limit
    while packed and len(parts) < _GZIP_MEMBERS:
        member = zlib.decompressobj(_GZIP)
        try:
            part = member.decompress(packed, room + 1)
        except zlib.error:
            raise _damaged("gzip") from None
        room -= len(part)
        if room < 0:
            raise _too_large(limit)
        if not member.eof:
            raise _damaged("gzip")
        parts.append(part)
        packed = member.unused_data
    if packed:
        raise _damaged(f"gzip of at most {_GZIP_MEMBERS} members")
    return b"".join(parts)


def _unzstd(packed: bytes, limit: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        size = zstandard.get_frame_parameters(packed).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            with decompressor.stream_reader(packed) as reader:
                if len(reader.read(limit + 1)) > limit:
                    raise _too_large(limit)
        elif size > limit:
            raise _too_large(limit)
        return decompressor.decompress(packed, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError:
        raise _damaged("one zstd frame") from None


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body may hold {limit} bytes at most, after decompression too.")


def _damaged(what: str) -> Invalid:
    return Invalid(f"The body is not {what}, as its Content-Encoding says.", code="invalid_body")
