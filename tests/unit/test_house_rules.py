"""House rules that a linter doesn't know: who may import whom, what is never called, what is named.

Each rule is a table or a pattern here, so that a change of a rule is seen as one.
"""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"

VALUES = ("perdure.errors", "perdure.model")
PORTS = (*VALUES, "perdure.memorizer.memory", "perdure.ports")
SERVICE_FOLDERS = (
    "perdure.checkpointer",
    "perdure.memorizer",
    "perdure.projector",
    "perdure.recorder",
)
ADAPTERS = ("perdure.blobs", "perdure.cassandra", "perdure.kafka", "perdure.weaviate")
# What goes over Kafka, as plain values: all that services know of it, apart from their service.py.
FORMATS = ("perdure.kafka.journal", "perdure.kafka.switching", "perdure.kafka.wire")
CLUSTER = (*PORTS, *SERVICE_FOLDERS, *ADAPTERS, "perdure.serving", "perdure.settings")
SURFACE = (*PORTS, *SERVICE_FOLDERS, "perdure.agent", "perdure.version")

MAY_IMPORT = {
    # Of whom (the longest name that fits counts): what it may import, itself apart.
    "perdure.errors": (),
    "perdure.version": (),
    "perdure.model": ("perdure.errors",),
    "perdure.memorizer.memory": VALUES,
    "perdure.ports": PORTS,
    **dict.fromkeys(SERVICE_FOLDERS, (*PORTS, *SERVICE_FOLDERS, *FORMATS)),
    "perdure.embedded": (*PORTS, *SERVICE_FOLDERS, "perdure.version"),
    "perdure.settings": ("perdure.errors",),
    "perdure.serving": ("perdure.errors",),
    **dict.fromkeys(ADAPTERS, (*PORTS, *SERVICE_FOLDERS, *ADAPTERS, "perdure.settings")),
    # What a service is made of is chosen where it is put together.
    **{
        f"{folder}.service": (*CLUSTER, "perdure.agent.discovery", "perdure.gateway")
        for folder in SERVICE_FOLDERS
    },
    "perdure.gateway": (*CLUSTER, "perdure.agent.discovery", "perdure.version"),
    # The agent's side of it: searching messages needs no server.
    "perdure.gateway.backend": (*CLUSTER, "perdure.gateway", "perdure.embedded.scratch"),
    "perdure.replay": (*CLUSTER, "perdure.agent.discovery"),
    "perdure.agent": SURFACE,
    # The one place that chooses adapters, from the URL.
    "perdure.agent.connect": (
        *SURFACE,
        "perdure.embedded",
        "perdure.gateway",
        "perdure.settings",
    ),
    "perdure.cli": ("perdure",),
    "perdure.__main__": ("perdure.cli",),
    "perdure": SURFACE,
}

NEVER_IMPORTED = {
    "cloudpickle": "executes what it reads",
    "dill": "executes what it reads",
    "marshal": "executes what it reads",
    "pickle": "executes what it reads",
    "shelve": "executes what it reads",
}
NEVER_CALLED = {
    "__import__": "importlib.import_module says the same aloud",
    "breakpoint": "left over",
    "eval": "executes data",
    "exec": "executes data",
    "os.system": "goes through a shell",
    "print": "only the command line prints",
    "time.sleep": "await a condition",
}

# Where links may lead: specifications, licences, and the hosts of examples. Above all no place to
# get packages from: that is for whoever installs to choose.
HOSTS = {
    "127.0.0.1",
    "example.com",
    "json-schema.org",
    "localhost",
    "www.apache.org",
}
HOST = re.compile(r"\bhttps?://(?:[^/@\s]*@)?([A-Za-z0-9][A-Za-z0-9.-]*)")

# Written as patterns, so that this file holds none of what it looks for.
NEVER_NAMED = {
    "where packages come from": re.compile(
        r"--(?:extra-)?inde[x](?:-url)?\b|--find-link[s]|--trusted-hos[t]|GOPROX[Y]|\[\[tool\.uv\.inde[x]"
    ),
    "a folder of one person's machine": re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)/\w"),
    "work left to do": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"),
    "the number of an issue": re.compile(r"\bissue #?\d", re.IGNORECASE),
}

HEAVY = ["numpy", "onnxruntime", "rich", "tokenizers", "typer"]


def _modules():
    """Each module of the package: its dotted name and its file."""
    return {
        ".".join(path.relative_to(SERVICES).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(SERVICES.glob("perdure/**/*.py"))
    }


MODULES = _modules()
TREES = {name: ast.parse(path.read_bytes(), str(path)) for name, path in MODULES.items()}


def _inside(name, prefix):
    return name == prefix or name.startswith(f"{prefix}.")


def _imports(tree):
    """What a module imports, wherever in it and however late: full dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{'.' * node.level}{node.module or ''}.{alias.name}", node.lineno
        elif isinstance(node, ast.Constant) and node.value in MODULES and node.value != "perdure":
            # importlib.import_module("perdure.x"), a table of lazily imported names.
            yield node.value, node.lineno


def _imported_modules(tree):
    """The modules of perdure that a module imports, and the line where it does."""
    for name, line in _imports(tree):
        known = name
        while known and known not in MODULES:
            known = known.rpartition(".")[0]
        if known:
            yield known, line


def _banned(tree, *, prints):
    """What a module does that none may, with its line and the reason."""
    for name, line in _imports(tree):
        root = name.partition(".")[0]
        if root in NEVER_IMPORTED:
            yield f"line {line} imports {name}: {NEVER_IMPORTED[root]}"
        elif name in NEVER_CALLED:
            yield f"line {line} imports {name}: {NEVER_CALLED[name]}"
    for node in ast.walk(tree):
        match node:
            case ast.Assert():
                yield f"line {node.lineno} asserts: raise an error of perdure.errors"
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                yield f"line {value.lineno} allows pickle: it executes what it reads"
            case ast.Call(func=function):
                called = ast.unparse(function)
                if called in NEVER_CALLED and not (called == "print" and prints):
                    yield f"line {node.lineno} calls {called}: {NEVER_CALLED[called]}"


def _sources():
    """Every text file of the project that people write or that a tool writes for them."""
    files = [
        *ROOT.glob("*.*"),
        *(ROOT / name for name in ("Makefile", "LICENSE", ".gitignore", ".ci/run")),
        *(
            path
            for folder in ("services", "tests", "schemas", "docs", "ops")
            for path in (ROOT / folder).rglob("*")
        ),
    ]
    for path in sorted(set(files)):
        in_data = "data" in path.relative_to(ROOT).parts[:-1]
        if path.is_file() and not in_data and "__pycache__" not in path.parts:
            yield path


def _matches(pattern):
    """Where in the project's text files a pattern is found."""
    for path in _sources():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(ROOT)}:{line}", match


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    """Values know nobody, ports know values, services ports, and only connect knows adapters."""
    rows = [row for row in MAY_IMPORT if _inside(module, row)]
    row = max(rows, key=len)
    if row == "perdure" and module != "perdure":
        pytest.fail(f"{module} has no row in MAY_IMPORT: say there what it may import")
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}"
        for imported, line in _imported_modules(TREES[module])
        if not any(_inside(imported, allowed) for allowed in (row, *MAY_IMPORT[row]))
        or (imported == "perdure" and row != "perdure.cli")
    ]
    assert wrong == []


def test_relative_imports_are_not_used():
    """An import says in full what it imports, so that the rule above and people find it."""
    relative = [
        f"{module}:{line}"
        for module, tree in TREES.items()
        for name, line in _imports(tree)
        if name.startswith(".")
    ]
    assert relative == []


def test_no_module_is_dead():
    """Each module is reached from the public surface or from an entry point."""
    entry_points = {
        target.partition(":")[0]
        for target in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "scripts"
        ].values()
    }
    reached, open_ends = set(), [*entry_points, "perdure", "perdure.__main__"]
    while open_ends:
        module = open_ends.pop()
        if module in reached or module not in MODULES:
            continue
        reached.add(module)
        # Importing a module imports the packages that it is in.
        open_ends.append(module.rpartition(".")[0])
        open_ends.extend(imported for imported, _ in _imported_modules(TREES[module]))
    assert sorted(set(MODULES) - reached) == []


def test_public_surface_is_sorted_and_complete():
    """`perdure.__all__` names what there is, in order, and each of it says what it is."""
    perdure = importlib.import_module("perdure")
    names = list(perdure.__all__)
    defined = {
        name
        for name, value in vars(perdure).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert names == sorted(set(names))
    assert sorted(defined - set(names)) == []
    assert [name for name in names if not hasattr(perdure, name)] == []
    things = {name: getattr(perdure, name) for name in names}
    documented = {
        name: inspect.getdoc(thing)
        for name, thing in things.items()
        if inspect.isclass(thing) or inspect.isroutine(thing)
    }
    assert [name for name, text in documented.items() if not text] == []


def test_importing_perdure_imports_nothing_heavy():
    """A script that only emits events doesn't wait for a model runtime or a terminal library."""
    code = f"import json, sys, perdure; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert process.returncode == 0, process.stderr.decode()
    assert json.loads(process.stdout) == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_banned_is_imported_or_called(module):
    """Nothing read is executed, nothing sleeps, and data is never guarded by an assert."""
    assert list(_banned(TREES[module], prints=_inside(module, "perdure.cli"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from time import sleep",
        "time.sleep(1)",
        "eval(text)",
        "print('here')",
        "assert data",
        "numpy.load(file, allow_pickle=True)",
        "numpy.load(file, allow_pickle=chosen)",
    ],
)
def test_banned_source_is_noticed(source):
    """The rule above can fail."""
    assert len(list(_banned(ast.parse(source), prints=False))) == 1


@pytest.mark.parametrize("what", NEVER_NAMED)
def test_no_file_names(what):
    """No file says where to get packages, names somebody's machine, or holds unfinished work."""
    assert [(where, match[0]) for where, match in _matches(NEVER_NAMED[what])] == []


def test_links_lead_only_to_known_hosts():
    """A link leads to a host that somebody chose: a new one is added to HOSTS, with care."""
    unknown = [(where, host[1]) for where, host in _matches(HOST) if host[1].lower() not in HOSTS]
    assert unknown == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (HOST, "see https" + "://user:secret@packages.example.org/simple"),
        (NEVER_NAMED["where packages come from"], "pip install --extra" + "-index-url here"),
        (NEVER_NAMED["a folder of one person's machine"], "open('" + "/home" + "/mia/x')"),
        (NEVER_NAMED["work left to do"], "# TO" + "DO: later"),
        (NEVER_NAMED["the number of an issue"], "see Issue " + "#3"),
    ],
)
def test_what_no_file_may_name_is_noticed(pattern, text):
    """The rules above can fail."""
    assert pattern.search(text)


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import perdure.errors", {"perdure.errors"}),
        ("from perdure.errors import Corrupt", {"perdure.errors"}),
        ("from perdure import errors", {"perdure.errors"}),
        ("def late():\n    from perdure import errors", {"perdure.errors"}),
        ("import_module('perdure.errors')", {"perdure.errors"}),
        ("import numpy", set()),
    ],
)
def test_rules_see_every_kind_of_import(source, imported):
    """An import counts wherever it stands and however it is written."""
    assert {name for name, _ in _imported_modules(ast.parse(source))} == imported
