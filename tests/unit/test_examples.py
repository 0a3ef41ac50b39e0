"""Every example runs: those of the docstrings, and the Python blocks of the pages.

- Each docstring is one test, with the names of its module; each page is one test, its blocks in
  order sharing their names. `await` and `async with` may stand at the top level.
- Each runs in an empty folder of its own, so that `perdure.connect()` leaves nothing in the tree.
- Runs of white space are equal and `...` stands for anything, so that long output can be wrapped.
- A block of a page that can't run has the line `<!-- not run: the reason -->` before it.
"""

import ast
import asyncio
import contextlib
import doctest
import importlib
import inspect
import io
import re
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_BLOCK = re.compile(
    r"(?P<skip><!-- not run: .+? -->\n+)?^```(?:python|pycon)\n(?P<source>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Session:
    """Runs one piece of source after the other in one namespace and on one event loop."""

    def __init__(self, namespace):
        self.namespace = namespace
        self._runner = asyncio.Runner()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._runner.close()

    def execute(self, source, where, *, mode="exec"):
        """Run source that may have `await` at its top level."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, where, mode, flags=flags, dont_inherit=True)
        result = eval(code, self.namespace)  # noqa: S307 (our own examples)
        if inspect.iscoroutine(result):
            self._runner.run(result)

    def check(self, text, where, first_line):
        """Run the `>>>` examples of a text and compare what they print."""
        for example in doctest.DocTestParser().get_examples(text, where):
            options = OPTIONS
            for flag, on in example.options.items():
                options = options | flag if on else options & ~flag
            if options & doctest.SKIP:
                continue
            wanted, got = example.want, self._output(example, where)
            if example.exc_msg is not None:
                wanted = example.exc_msg
            checker = doctest.OutputChecker()
            if not checker.check_output(wanted, got, options):
                difference = checker.output_difference(
                    doctest.Example(example.source, wanted), got, options
                )
                line = first_line + example.lineno
                pytest.fail(f"{where}:{line}\n\n{example.source}\n{difference}", pytrace=False)

    def _output(self, example, where):
        """What the example printed, or the last lines of the traceback that it expects."""
        printed, displayhook = io.StringIO(), sys.displayhook
        sys.displayhook = sys.__displayhook__
        try:
            with contextlib.redirect_stdout(printed):
                self.execute(example.source, where, mode="single")
        except Exception as error:
            if example.exc_msg is None:
                raise
            return "".join(traceback.format_exception_only(error))
        finally:
            sys.displayhook = displayhook
        if example.exc_msg is not None:
            return f"nothing raised; printed: {printed.getvalue()}"
        return printed.getvalue()


def _docstrings():
    """Of each docstring with examples: its module, its text, where it stands."""
    for path in sorted(SERVICES.glob("perdure/**/*.py")):
        name = ".".join(path.relative_to(SERVICES).with_suffix("").parts)
        module = name.removesuffix(".__init__")
        for inside, node in _nodes(module, ast.parse(path.read_bytes())):
            text = ast.get_docstring(node, clean=False)
            if text and ">>>" in text:
                where = str(path.relative_to(ROOT))
                yield pytest.param(module, text, where, node.body[0].lineno, id=inside)


def _nodes(name, node):
    """The module, classes and functions of a tree, with their dotted names."""
    yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _nodes(f"{name}.{child.name}", child)


def _pages():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return [str(page.relative_to(ROOT)) for page in sorted(pages)]


@pytest.mark.parametrize(("module", "text", "where", "line"), [*_docstrings()])
def test_example_of_docstring_prints_what_it_says(module, text, where, line, tmp_path, monkeypatch):
    """What a docstring shows is what happens."""
    monkeypatch.chdir(tmp_path)
    namespace = {**vars(importlib.import_module(module)), "__name__": "__main__"}
    with Session(namespace) as session:
        session.check(text, where, line)


@pytest.mark.parametrize("page", _pages())
def test_python_blocks_of_page_run(page, tmp_path, monkeypatch):
    """A reader can type a page from top to bottom."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    with Session({"__name__": "__main__"}) as session:
        for block in _BLOCK.finditer(text):
            if block["skip"]:
                continue
            line = text.count("\n", 0, block.start("source")) + 1
            if ">>>" in block["source"]:
                session.check(block["source"], page, line)
            else:
                # As many empty lines before it, so that a traceback names the page's own lines.
                session.execute("\n" * (line - 1) + block["source"], page)


_TWO = ">>> async def two():\n...     return 2\n>>> await two()\n"
_RAISES = ">>> raise LookupError('gone')\nTraceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (">>> 1 + 1\n2\n", True),
        (">>> 1 + 1\n3\n", False),
        (_TWO + "2\n", True),
        (_TWO + "3\n", False),
        (_RAISES + "LookupError: gone\n", True),
        (_RAISES + "LookupError: here\n", False),
        (">>> 1\nTraceback (most recent call last):\nLookupError: gone\n", False),
        (">>> 1 / 0\n", False),
        (">>> 1 / 0  # doctest: +SKIP\n", True),
    ],
)
def test_wrong_example_is_noticed(text, passes):
    """An example that prints something else than it shows fails, with or without `await`."""
    with Session({}) as session, contextlib.ExitStack() as stack:
        if not passes:
            stack.enter_context(pytest.raises((pytest.fail.Exception, ZeroDivisionError)))
        session.check(text, "here", 1)
