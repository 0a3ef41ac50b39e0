"""Which code a function is: so that what it computed is not mistaken for what other code would.

Invariants:
- The same source gives the same fingerprint in every process; file and line numbers don't count.
- Names that the function looks up elsewhere count as names: what stands behind them does not.
"""

import hashlib
import inspect
from collections.abc import Callable
from types import CodeType


def fingerprint(function: Callable[..., object]) -> str:
    """A hash of a function's own code and defaults, as 16 hexadecimal digits.

    >>> fingerprint(lambda data: data) == fingerprint(lambda data: [data])
    False
    """
    digest = hashlib.sha256()
    unwrapped = inspect.unwrap(function)
    code = getattr(unwrapped, "__code__", None)
    if isinstance(code, CodeType):
        _hash_code(digest.update, code)
        digest.update(repr(getattr(unwrapped, "__defaults__", None)).encode())
    else:
        digest.update(f"{type(unwrapped).__module__}.{unwrapped!r}".encode())
    return digest.hexdigest()[:16]


def _hash_code(update: Callable[[bytes], None], code: CodeType) -> None:
    update(code.co_code)
    update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _hash_code(update, constant)
        else:
            shown = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            update(repr(shown).encode())
