"""A ``pickle_module`` for ``torch.save`` that writes forms which weights-only readers understand.

What it writes is an ordinary pickle: ``torch.load(weights_only=False)`` reads it without this package. It differs only
where the ordinary form needs opcodes that torch's weights-only unpickler lacks, or where there is none.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch

# The name of the module is written to the file; it must not depend on what else the program imported.
_MEMORY_FORMATS = {
    torch.contiguous_format: "contiguous_format",
    torch.preserve_format: "preserve_format",
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
}


class Pickler(pickle.Pickler):
    """Writes one object."""

    def reducer_override(self, obj: Any) -> Any:
        """The form of one object, or NotImplemented for pickle's own."""
        cls = type(obj)
        if cls is deque:
            return deque, ((list(obj),) if obj.maxlen is None else (list(obj), obj.maxlen))
        if cls is defaultdict:
            return defaultdict, (obj.default_factory, dict(obj))
        if cls is torch.memory_format:
            return _MEMORY_FORMATS[obj]
        if cls is torch.layout:
            return torch.serialization._get_layout, (str(obj),)
        return NotImplemented


class PlainPickler(pickle.Pickler):
    """As Pickler, in pickle's own forms: for a deque or defaultdict that contains itself."""

    def reducer_override(self, obj: Any) -> Any:
        """The form of one object, or NotImplemented for pickle's own."""
        return NotImplemented if type(obj) in (deque, defaultdict, OrderedDict) else Pickler.reducer_override(self, obj)  # type: ignore[arg-type]
