"""zstd contexts that threads don't share."""

import threading

import zstandard


class Zstd(threading.local):
    """A compressor and a decompressor for each thread that asks.

    zstandard works without the interpreter's lock and keeps its state in these objects: two threads
    in the same one damage what it gives back, and the process's memory.

    >>> zstd = Zstd(level=1)
    >>> zstd.decompressor.decompress(zstd.compressor.compress(b"airline/mia"))
    b'airline/mia'
    """

    def __init__(self, *, level: int, checksum: bool = False) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=level, write_checksum=checksum, write_content_size=True
        )
        self.decompressor = zstandard.ZstdDecompressor()
