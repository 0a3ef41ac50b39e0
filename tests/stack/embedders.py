"""Embedders that the tests give to services by name."""

import numpy as np


class Picky:
    """Counts letters, and refuses some texts as foreign code may: with an error of its own."""

    name = "picky"
    dimensions = 26

    def embed(self, texts):
        """Counts of letters."""
        if any("unspeakable" in text for text in texts):
            raise ValueError("no such words here")
        counts = [[text.lower().count(chr(ord("a") + n)) for n in range(26)] for text in texts]
        return np.array(counts, np.float32).reshape(len(texts), 26)


PICKY = "tests.stack.embedders:Picky"
