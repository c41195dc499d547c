"""Version of the package: the one that the engine was built as."""

from ._core import version as __version__

__all__ = ["__version__"]
