"""Rows for ``COPY … (FORMAT binary)``, put together column by column instead of value by value."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from common.columns import Bytes, Integers, grouped
from common.database.connection import Connection

# Values, and for each row the code of its own.
Choice = tuple[Sequence[bytes | None], Integers]

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
# Microseconds from 1970 to 2000, where PostgreSQL's times begin.
EPOCH_US = 946_684_800_000_000
_INT4, _INT8 = 23, 20
_HEADER = 19
# Bytes that are handed on at once, and seconds that all of them may take.
_BATCH = 4 * 1024 * 1024
_SECONDS = 600.0
_PIECE = 128 * 1024


class CopyRows:
    """So many rows; every method adds the next column of all of them.

    What has one width in every row is laid out by numpy; what has not is joined piece by piece,
    so put columns of the first kind side by side.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._rows = rows
        self._columns = columns
        # Of the columns of one width side by side: a row with all that is the same in every one,
        # and where the cells of each row go.
        self._row = bytearray(columns.to_bytes(2))
        self._cells: list[tuple[int, Bytes]] = []
        self._pieces: list[Sequence[bytes]] = []
        self._added = 0

    def int2(self, value: int) -> CopyRows:
        """A smallint, the same in every row."""
        return self._same(b"\x00\x00\x00\x02" + value.to_bytes(2, signed=True))

    def int8(self, values: Integers, present: NDArray[np.bool_] | None = None) -> CopyRows:
        """Bigints; NULL where ``present`` is false."""
        if present is not None and not present.any():
            return self._same(_NULL)
        cells = values.astype(">i8").view(np.uint8).reshape(-1, 8)
        if present is None or present.all():
            return self.raw(cells)
        whole = _slices(_with_length(cells))
        return self._varying([w if p else _NULL for w, p in zip(whole, present, strict=True)])

    def timestamp(self, microseconds: Integers) -> CopyRows:
        """Timestamptz from microseconds since 1970."""
        return self.int8(microseconds - EPOCH_US)

    def raw(self, values: Bytes) -> CopyRows:
        """Values of one width as they are, such as uuids: an array of shape (rows, bytes)."""
        self._row += values.shape[1].to_bytes(4)
        return self._fixed(values)

    def coded(self, *columns: Choice) -> CopyRows:
        """Columns of texts, byte strings or uuids; None is NULL.

        Those of few values that go together take as long together as one of them.

        Args:
            *columns: values and codes of each: row n holds ``values[codes[n]]``.
        """
        fields = [_fields(values) for values, _ in columns]
        self._added += len(columns) - 1
        if all(len(some) == 1 for some in fields):
            return self._same(b"".join(some[0] for some in fields))
        together, codes = _together(fields, [codes for _, codes in columns])
        if len({len(field) for field in together}) == 1:
            table = np.frombuffer(b"".join(together), np.uint8).reshape(len(together), -1)
            return self._fixed(table[codes])
        return self._varying([together[code] for code in codes.tolist()])

    def int4_arrays(self, values: Integers, ends: Integers) -> CopyRows:
        """``integer[]``; that of row n ends before ``ends[n]``, where the next one begins."""
        return self._arrays(values.astype(">i4").view(np.uint8).reshape(-1, 4), ends, _INT4)

    def int8_arrays(self, values: Integers, ends: Integers) -> CopyRows:
        """``bigint[]``, as ``int4_arrays``."""
        return self._arrays(values.astype(">i8").view(np.uint8).reshape(-1, 8), ends, _INT8)

    def finish(self) -> bytes:
        """The whole stream.

        Raises:
            ValueError: not all columns were added.
        """
        if self._added != self._columns:
            raise ValueError(f"{self._added} of {self._columns} columns")
        self._close_block()
        if len(self._pieces) == 1:
            rows = b"".join(self._pieces[0])
        else:
            rows = b"".join(chain.from_iterable(zip(*self._pieces, strict=True)))
        return _SIGNATURE + rows + _TRAILER

    def _arrays(self, elements: Bytes, ends: Integers, kind: int) -> CopyRows:
        flat = _with_length(elements)
        width = flat.shape[1]
        content = flat.tobytes()
        stops = (ends * width).tolist()
        starts = [0, *stops][:-1]
        return self._varying(
            [
                _array_head((stop - start) // width, stop - start, kind) + content[start:stop]
                for start, stop in zip(starts, stops, strict=True)
            ]
        )

    def _same(self, field: bytes) -> CopyRows:
        self._added += 1
        self._row += field
        return self

    def _fixed(self, cells: Bytes) -> CopyRows:
        self._cells.append((len(self._row), cells))
        return self._same(bytes(cells.shape[1]))

    def _varying(self, pieces: Sequence[bytes]) -> CopyRows:
        self._close_block()
        self._added += 1
        self._pieces.append(pieces)
        return self

    def _close_block(self) -> None:
        if not self._row:
            return
        block = np.empty((self._rows, len(self._row)), np.uint8)
        block[:] = np.frombuffer(self._row, np.uint8)
        for place, cells in self._cells:
            block[:, place : place + cells.shape[1]] = cells
        self._pieces.append(_slices(block))
        self._row, self._cells = bytearray(), []


async def copy_rows(
    connection: Connection, table: str, columns: Sequence[str], stream: bytes
) -> None:
    """COPY what ``CopyRows.finish`` gave into the columns of a table, in their order."""
    await connection.copy_to_table(
        table,
        source=_pieces(stream),
        columns=list(columns),
        format="binary",
        # The server ends what lasts; asyncpg's own limit fails badly while the socket is full.
        timeout=_SECONDS,
    )


async def read_rows(
    connection: Connection,
    query: str,
    *arguments: object,
    row: np.dtype[np.void],
    take: Callable[[NDArray[np.void]], Awaitable[None]],
) -> None:
    """Hand the rows of a query on, many at a time.

    Args:
        connection: does nothing else meanwhile.
        query: whose columns have one width each and no NULL.
        *arguments: of the query.
        row: the fields of a row; that of each column, behind an ``i4`` of its length.
        take: gets each batch.
    """
    whole = np.dtype([("", ">i2"), *((name, row[name]) for name in row.names or ())])
    waiting = bytearray()
    begun = False

    async def gather(chunk: bytes) -> None:
        nonlocal begun
        waiting.extend(chunk)
        if not begun and len(waiting) >= _HEADER:
            del waiting[:_HEADER]
            begun = True
        if begun and len(waiting) >= _BATCH:
            await hand_on()

    async def hand_on() -> None:
        rows = len(waiting) // whole.itemsize
        found = np.frombuffer(bytes(waiting[: rows * whole.itemsize]), whole)
        del waiting[: rows * whole.itemsize]
        await take(found)

    await connection.copy_from_query(
        query, *arguments, output=gather, format="binary", timeout=_SECONDS
    )
    await hand_on()


async def _pieces(stream: bytes) -> AsyncIterator[bytes]:
    """In pieces of which the socket takes one at once; a file would be read by another thread."""
    for start in range(0, len(stream), _PIECE):
        yield stream[start : start + _PIECE]


def _fields(values: Sequence[bytes | None]) -> list[bytes]:
    return [_NULL if v is None else len(v).to_bytes(4) + v for v in values]


def _together(
    fields: Sequence[Sequence[bytes]], codes: Sequence[Integers]
) -> tuple[Sequence[bytes], Integers]:
    """The combinations of fields that there are, each as one, and that of each row."""
    if len(fields) == 1:
        return fields[0], codes[0]
    firsts, rows = grouped([(some, len(f)) for some, f in zip(codes, fields, strict=True)])
    places = zip(*(some[firsts].tolist() for some in codes), strict=True)
    return [b"".join([f[p] for f, p in zip(fields, one, strict=True)]) for one in places], rows


def _with_length(values: Bytes) -> Bytes:
    rows, width = values.shape
    found = np.empty((rows, 4 + width), np.uint8)
    found[:, :4] = np.frombuffer(width.to_bytes(4), np.uint8)
    found[:, 4:] = values
    return found


def _slices(block: Bytes) -> list[bytes]:
    rows, width = block.shape
    return block.reshape(-1).view(f"V{width}").tolist() if width and rows else []


def _array_head(count: int, size: int, kind: int) -> bytes:
    """The field's length; then dimensions, whether there are NULLs, type, length, lower bound."""
    if not count:
        return b"".join(n.to_bytes(4) for n in (12, 0, 0, kind))
    return b"".join(n.to_bytes(4) for n in (20 + size, 1, 0, kind, count, 1))
