"""What users write about errors: it has to pass mypy --strict as it stands."""

from typing import assert_type

from perdure.errors import NotFound, PerdureError, StoreBusy, WriterFenced


def way_out(error: PerdureError) -> str:
    """A hint is text, and whether a retry can help is a boolean, on every error."""
    assert_type(error.hint, str)
    assert_type(error.retriable, bool)
    return error.hint if error.retriable else error.message


def caught(error: Exception) -> int:
    """The tree can be matched class by class, and by the built-in classes it belongs to."""
    match error:
        case WriterFenced():
            return 1
        case StoreBusy():
            return 2
        case PerdureError():
            return 3
        case _:
            return 0


not_found: LookupError = NotFound("no agent airline/mia", hint="see perdure agents")
