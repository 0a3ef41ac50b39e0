"""Reading a file of JSON lines of any size, in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""The longest line that is read; a longer one is passed over, and told."""


class Line(NamedTuple):
    """A line: its number from 1 on, its bytes (None where it is too long), where it ends."""

    number: int
    data: bytes | None
    end: int


def lines(file: BinaryIO, *, bytes_max: int = LINE_BYTES_MAX) -> Iterator[Line]:
    r"""The lines of a file that aren't blank, without their ends.

    >>> import io
    >>> found = lines(io.BytesIO(b"{}\n\nlonger\n[]"), bytes_max=3)
    >>> [(line.number, line.data) for line in found]
    [(1, b'{}'), (3, None), (4, b'[]')]
    """
    number = end = 0
    # One byte more than a line may have, for its end.
    while data := file.readline(bytes_max + 1):
        number += 1
        end += len(data)
        if len(data) > bytes_max and not data.endswith(b"\n"):
            while rest := file.readline(1024 * 1024):
                end += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield Line(number, None, end)
        elif data.strip():
            yield Line(number, data.rstrip(b"\r\n"), end)
