"""Finding users' own code: projections and upcasters, which register themselves when imported.

Invariants:
- Only what the user names, or has installed, is imported; nothing that a store holds decides it.
- What can't be imported is an error that names it: a history is never read with half the code.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from perdure.errors import InvalidInput

ENTRY_POINTS: Final = "perdure.projections"
"""Group of entry points: each names a module (or a thing in one) that registers when imported."""


def load(modules: Sequence[str]) -> None:
    """Import modules by dotted name, or Python files by path, each once in a process.

    Raises:
        InvalidInput: one isn't there, or raises when it is imported.

    >>> load(["json"])
    >>> load(["no_such_projections"])
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidInput: module 'no_such_projections' is not there (give a module ...)
    """
    for name in modules:
        if name.endswith(".py") or "/" in name or os.sep in name:
            _load_file(Path(name))
        else:
            _load_module(name)


def load_entry_points() -> list[str]:
    """Import what installed packages offer in the group `perdure.projections`; the names of it.

    Raises:
        InvalidInput: one of them can't be imported.

    >>> isinstance(load_entry_points(), list)
    True
    """
    loaded = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = point.dist.name if point.dist is not None else "an installed package"
        try:
            point.load()
        except Exception as error:  # whatever a foreign module raises
            raise InvalidInput(
                f"entry point {point.name} = {point.value} of {package} can't be loaded: {error!r}",
                hint=f"mend, update or uninstall {package}",
            ) from error
        loaded.append(point.name)
    return loaded


def _load_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(f"module {name!r}", error) from error
        raise InvalidInput(
            f"module {name!r} is not there",
            hint="give a module that `python -c 'import …'` finds, or the path of a .py file",
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise _failed(f"module {name!r}", error) from error


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}", hint="give the path of a .py file")
    full = path.resolve()
    name = f"perdure_loaded_{full.stem}_{abs(hash(full)):x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path} is no Python file", hint="its name has to end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        del sys.modules[name]
        raise _failed(f"file {path}", error) from error


def _failed(what: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{what} can't be loaded: {type(error).__name__}: {error}",
        hint="run it with python to see where",
    )
