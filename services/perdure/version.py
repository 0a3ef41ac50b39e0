"""The version of perdure: the one place where it is written (`pyproject.toml` reads it from here).

>>> __version__.count(".")
2
"""

__version__ = "0.1.0"
