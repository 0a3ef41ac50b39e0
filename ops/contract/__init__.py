"""The contract in `schemas/`, written from the code, for readers in any language."""
