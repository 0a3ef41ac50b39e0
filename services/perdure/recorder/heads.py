"""The streams that the recorder keeps in memory, those used last, within bounds."""

from collections import OrderedDict
from typing import Final

from perdure.recorder.recordings import Stream

HEADS_BYTES_MAX: Final = 16 * 1024 * 1024
"""What streams that are kept may take in memory, about: some 13,000 agents that write by turns.
Of another one the head is read first, which takes two requests, and many at once with others."""

_STREAM_BYTES: Final = 1_200
"""What a stream takes beside its writers and reverts, about: its objects and its place here."""

_WRITER_BYTES: Final = 170
_REVERT_BYTES: Final = 120


class Heads:
    """Streams by partition, store and agent.

    >>> heads = Heads(bytes_max=2_000)
    >>> from perdure.recorder.recordings import fresh
    >>> heads.put(0, "default", fresh("a/one")); heads.put(0, "default", fresh("a/two"))
    >>> heads.get(0, "default", "a/one") is None, len(heads)
    (True, 1)
    """

    def __init__(self, bytes_max: int = HEADS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._streams: OrderedDict[tuple[int, str, str], tuple[Stream, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def bytes(self) -> int:
        """What is kept takes so many bytes, about."""
        return self._bytes

    def get(self, partition: int, store: str, agent: str) -> Stream | None:
        """The stream, if it is kept."""
        key = (partition, store, agent)
        kept = self._streams.get(key)
        if kept is None:
            return None
        self._streams.move_to_end(key)
        return kept[0]

    def put(self, partition: int, store: str, stream: Stream) -> None:
        """Keep a stream, in place of what was known of its agent."""
        key = (partition, store, stream.head.agent)
        size = (
            _STREAM_BYTES
            + _WRITER_BYTES * len(stream.head.writers)
            + _REVERT_BYTES * len(stream.reverts)
        )
        _, old = self._streams.pop(key, (None, 0))
        self._streams[key] = stream, size
        self._bytes += size - old
        while self._bytes > self._bytes_max:
            _, (_, oldest) = self._streams.popitem(last=False)
            self._bytes -= oldest

    def forget(self, partition: int, store: str, agent: str) -> None:
        """Let go of a stream, of which something else may be stored."""
        _, size = self._streams.pop((partition, store, agent), (None, 0))
        self._bytes -= size

    def drop(self, partition: int) -> None:
        """Let go of all streams of a partition: others may write them from now on."""
        for key in [key for key in self._streams if key[0] == partition]:
            self.forget(*key)
