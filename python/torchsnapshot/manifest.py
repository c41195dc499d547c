"""The manifest of a snapshot: what was saved, and where each byte of it is.

An entry is one node of the saved state. Its plain form, a JSON-like dict as it stands in the metadata file,
comes from :func:`entry_to_dict` and goes back by :func:`entry_from_dict`. Reading and checking a whole
metadata file is the engine's work.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Union

from . import _core
from ._decimal_text import format_decimal, parse_decimal
from .errors import CorruptSnapshotError, InvalidArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self

NestedList = Union[int, list["NestedList"]]  # noqa: UP007 - a forward reference takes no |


@dataclass
class Entry:
    """A node of the saved state. `type` is its kind, as written in the metadata."""

    type: str

    @classmethod
    def from_yaml_obj(cls, yaml_obj: Mapping[str, Any]) -> Self:
        """The entry of a plain dict. Raises InvalidArgumentError if it is not of this class."""
        entry = entry_from_dict(yaml_obj, default_type=_TYPE_OF_CLASS.get(cls))
        if not isinstance(entry, cls):
            raise InvalidArgumentError(f"an entry of type {entry.type!r} is no {cls.__name__}")
        return entry


@dataclass
class TensorEntry(Entry):
    """A dense tensor, or a dense piece of one.

    Attributes:
        location: name of the object that holds the bytes.
        serializer: form of the bytes, such as ``"buffer_protocol"``.
        dtype: ``"torch.float32"`` and so on.
        shape: sizes.
        replicated: whether it belongs to every rank.
        byte_range: ``[begin, end)`` within the object; None: the whole object.
    """

    location: str
    serializer: str
    dtype: str
    shape: list[int]
    replicated: bool
    byte_range: list[int] | None

    def __init__(
        self,
        location: str,
        serializer: str,
        dtype: str,
        shape: list[int],
        replicated: bool,
        byte_range: list[int] | None = None,
    ) -> None:
        super().__init__("Tensor")
        self.location = location
        self.serializer = serializer
        self.dtype = dtype
        self.shape = shape
        self.replicated = replicated
        self.byte_range = byte_range

    @property
    def byte_range_tuple(self) -> tuple[int, int] | None:
        """`byte_range` as a tuple."""
        if self.byte_range is None:
            return None
        begin, end = self.byte_range
        return begin, end


@dataclass
class Shard:
    """A piece of a larger tensor: where it begins, its sizes, and where it is stored."""

    offsets: list[int]
    sizes: list[int]
    tensor: TensorEntry

    @classmethod
    def from_yaml_obj(cls, yaml_obj: Mapping[str, Any]) -> Shard:
        """The shard of a plain dict."""
        return _shard_from_dict(yaml_obj)


@dataclass
class ShardedTensorEntry(Entry):
    """The pieces of a ShardedTensor that one rank stored."""

    shards: list[Shard]

    def __init__(self, shards: list[Shard]) -> None:
        super().__init__("ShardedTensor")
        self.shards = shards

    def get_tensor_shape(self) -> list[int]:
        """The smallest shape that holds all shards listed here."""
        if not self.shards:
            raise InvalidArgumentError("a ShardedTensor entry without shards has no shape")
        ends = ([o + s for o, s in zip(shard.offsets, shard.sizes, strict=True)] for shard in self.shards)
        return [max(per_dim) for per_dim in zip(*ends, strict=True)]


@dataclass
class ChunkedTensorEntry(Entry):
    """A tensor that one rank stored in several pieces."""

    dtype: str
    shape: list[int]
    chunks: list[Shard]
    replicated: bool

    def __init__(self, dtype: str, shape: list[int], chunks: list[Shard], replicated: bool) -> None:
        super().__init__("ChunkedTensor")
        self.dtype = dtype
        self.shape = shape
        self.chunks = chunks
        self.replicated = replicated


@dataclass
class DTensorEntry(Entry):
    """The pieces of a DTensor that one rank stored.

    Attributes:
        shards: the pieces.
        mesh: the ranks of the device mesh, nested as its dimensions are.
        dim_map: for each dimension of the tensor, the mesh dimensions that shard it, or ``[-1]``.
    """

    shards: list[Shard]
    mesh: NestedList
    dim_map: list[list[int]]

    def __init__(self, shards: list[Shard], mesh: NestedList, dim_map: list[list[int]]) -> None:
        super().__init__("DTensor")
        self.shards = shards
        self.mesh = mesh
        self.dim_map = dim_map


@dataclass
class ObjectEntry(Entry):
    """Any other object, serialized into a storage object of its own."""

    location: str
    serializer: str
    obj_type: str
    replicated: bool

    def __init__(self, location: str, serializer: str, obj_type: str, replicated: bool) -> None:
        super().__init__("object")
        self.location = location
        self.serializer = serializer
        self.obj_type = obj_type
        self.replicated = replicated


@dataclass
class ListEntry(Entry):
    """A list; its items are the entries below it, ``path/0`` and so on."""

    def __init__(self) -> None:
        super().__init__("list")


@dataclass
class DictEntry(Entry):
    """A dict; its values are the entries below it."""

    keys: list[str | int]

    def __init__(self, keys: list[str | int]) -> None:
        super().__init__("dict")
        self.keys = keys


@dataclass
class OrderedDictEntry(Entry):
    """An OrderedDict; its values are the entries below it."""

    keys: list[str | int]

    def __init__(self, keys: list[str | int]) -> None:
        super().__init__("OrderedDict")
        self.keys = keys


class PrimitiveType(Enum):
    """The kinds of value that are kept inside the manifest."""

    INT = "int"
    STR = "str"
    BOOL = "bool"
    BYTES = "bytes"
    FLOAT = "float"


@dataclass
class PrimitiveEntry(Entry):
    """A value kept inside the manifest.

    Attributes:
        type: name of its Python type.
        serialized_value: its textual form: an int in decimal, bytes in base64, a float as the base64 of its
            eight bytes.
        replicated: whether it belongs to every rank.
        readable: the value for people, where `serialized_value` is not.
    """

    supported_types: ClassVar[list[str]] = [kind.value for kind in PrimitiveType]

    serialized_value: str
    replicated: bool
    readable: str | None

    def __init__(
        self,
        type: str,  # noqa: A002 - the original's name
        serialized_value: str,
        replicated: bool,
        readable_value: str | None = None,
    ) -> None:
        super().__init__(type)
        self.serialized_value = serialized_value
        self.replicated = replicated
        self.readable = readable_value

    def get_value(self) -> int | str | bool | bytes | float:
        """The value. Raises CorruptSnapshotError if the text does not spell one."""
        decode = _DECODERS.get(self.type)
        if decode is None:
            raise InvalidArgumentError(f"{self.type!r} is not the type of a primitive entry")
        try:
            value: int | str | bool | bytes | float = decode(self.serialized_value)
            return value
        except (ValueError, struct.error) as error:
            raise CorruptSnapshotError(f"serialized_value of a {self.type} entry: {error}") from None

    @classmethod
    def from_object(cls, obj: Any) -> PrimitiveEntry:
        """The entry of a value. Raises TypeError unless its exact type is int, str, bool, bytes or float."""
        encode = _ENCODERS.get(type(obj))
        if encode is None:
            raise TypeError(f"not a primitive: {type(obj).__module__}.{type(obj).__qualname__}")
        readable = str(obj) if type(obj) is float else None
        return cls(type(obj).__name__, encode(obj), False, readable)


Manifest = dict[str, Entry]


@dataclass
class SnapshotMetadata:
    """All entries of a snapshot by path ``RANK/KEY/SUB/PATH`` (components percent-encoded).

    Attributes:
        version: version of the package that wrote it.
        world_size: number of ranks that took the snapshot.
        manifest: the entries, in the order of the file.
    """

    version: str
    world_size: int
    manifest: dict[str, Entry]

    def to_yaml(self) -> str:
        """The text of a metadata file. It is JSON, which is YAML too."""
        entries = {path: entry_to_dict(entry) for path, entry in self.manifest.items()}
        return _core.write_metadata(self.version, self.world_size, entries)

    @classmethod
    def from_yaml(cls, yaml_str: str | bytes) -> SnapshotMetadata:
        """Reads and checks a metadata file, JSON or YAML. Raises CorruptSnapshotError."""
        data = yaml_str.encode("utf-8") if isinstance(yaml_str, str) else bytes(yaml_str)
        version, world_size, entries = _core.parse_metadata(data)
        manifest = {path: entry_from_dict(plain) for path, plain in entries.items()}
        return cls(version=version, world_size=world_size, manifest=manifest)


def entry_from_dict(plain: Mapping[str, Any], *, default_type: str | None = None) -> Entry:
    """The entry of its plain form, which is not changed and not shared with the entry.

    Raises InvalidArgumentError for an unknown type, a missing field or an unknown one.
    """
    kind = plain.get("type", default_type)
    build = _BUILDERS.get(kind) if isinstance(kind, str) else None
    if build is None:
        raise InvalidArgumentError(f"unknown type of entry: {kind!r} (known: {', '.join(_BUILDERS)})")
    fields = {name: value for name, value in plain.items() if name != "type"}
    if kind in PrimitiveEntry.supported_types:
        fields["kind"] = kind
    entry: Entry = _build(kind, build, fields)
    return entry


def entry_to_dict(entry: Entry) -> dict[str, Any]:
    """The plain form of an entry, in the order of fields that the metadata file has."""
    if isinstance(entry, TensorEntry):
        return {
            "type": entry.type,
            "location": entry.location,
            "serializer": entry.serializer,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "replicated": entry.replicated,
            "byte_range": None if entry.byte_range is None else list(entry.byte_range),
        }
    if isinstance(entry, PrimitiveEntry):
        return {
            "type": entry.type,
            "serialized_value": entry.serialized_value,
            "replicated": entry.replicated,
            "readable": entry.readable,
        }
    if isinstance(entry, (DictEntry, OrderedDictEntry)):
        return {"type": entry.type, "keys": list(entry.keys)}
    if isinstance(entry, ListEntry):
        return {"type": entry.type}
    if isinstance(entry, ObjectEntry):
        return {
            "type": entry.type,
            "location": entry.location,
            "serializer": entry.serializer,
            "obj_type": entry.obj_type,
            "replicated": entry.replicated,
        }
    if isinstance(entry, ChunkedTensorEntry):
        return {
            "type": entry.type,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "chunks": [_shard_to_dict(chunk) for chunk in entry.chunks],
            "replicated": entry.replicated,
        }
    if isinstance(entry, ShardedTensorEntry):
        return {"type": entry.type, "shards": [_shard_to_dict(shard) for shard in entry.shards]}
    if isinstance(entry, DTensorEntry):
        return {
            "type": entry.type,
            "shards": [_shard_to_dict(shard) for shard in entry.shards],
            "mesh": _copy_nested(entry.mesh),
            "dim_map": [list(dims) for dims in entry.dim_map],
        }
    raise InvalidArgumentError(f"not an entry: {entry!r}")


def _build(kind: str, build: Callable[..., Any], fields: Mapping[str, Any]) -> Any:
    try:
        return build(**fields)
    except TypeError as error:
        raise InvalidArgumentError(f"{kind} entry with fields {', '.join(sorted(fields))}: {error}") from None


def _tensor(
    location: str,
    serializer: str,
    dtype: str,
    shape: list[int],
    replicated: bool,
    byte_range: list[int] | None = None,
) -> TensorEntry:
    pair = None if byte_range is None else list(byte_range)
    return TensorEntry(location, serializer, dtype, list(shape), replicated, pair)


def _sharded(shards: list[Mapping[str, Any]]) -> ShardedTensorEntry:
    return ShardedTensorEntry([_shard_from_dict(shard) for shard in shards])


def _chunked(dtype: str, shape: list[int], chunks: list[Mapping[str, Any]], replicated: bool) -> ChunkedTensorEntry:
    return ChunkedTensorEntry(dtype, list(shape), [_shard_from_dict(chunk) for chunk in chunks], replicated)


def _dtensor(shards: list[Mapping[str, Any]], mesh: NestedList, dim_map: list[list[int]]) -> DTensorEntry:
    return DTensorEntry(
        [_shard_from_dict(shard) for shard in shards], _copy_nested(mesh), [list(dims) for dims in dim_map]
    )


def _dict(keys: list[str | int]) -> DictEntry:
    return DictEntry(list(keys))


def _ordered_dict(keys: list[str | int]) -> OrderedDictEntry:
    return OrderedDictEntry(list(keys))


def _primitive(kind: str, serialized_value: str, replicated: bool, readable: str | None = None) -> PrimitiveEntry:
    return PrimitiveEntry(kind, serialized_value, replicated, readable)


def _shard(offsets: list[int], sizes: list[int], tensor: Mapping[str, Any]) -> Shard:
    entry = entry_from_dict(tensor, default_type="Tensor")
    if not isinstance(entry, TensorEntry):
        raise InvalidArgumentError(f"a shard holds a Tensor entry, not {entry.type!r}")
    return Shard(list(offsets), list(sizes), entry)


def _shard_from_dict(plain: Mapping[str, Any]) -> Shard:
    shard: Shard = _build("shard", _shard, plain)
    return shard


def _shard_to_dict(shard: Shard) -> dict[str, Any]:
    return {
        "offsets": list(shard.offsets),
        "sizes": list(shard.sizes),
        "tensor": entry_to_dict(shard.tensor),
    }


def _copy_nested(value: NestedList) -> NestedList:
    return [_copy_nested(item) for item in value] if isinstance(value, list) else value


def _decode_bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"neither True nor False: {text!r}")
    return text == "True"


def _decode_bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"not base64: {error}") from None


def _decode_float(text: str) -> float:
    value: float = struct.unpack("<d", _decode_bytes(text))[0]
    return value


_BUILDERS: dict[str, Callable[..., Any]] = {
    "Tensor": _tensor,
    "ChunkedTensor": _chunked,
    "ShardedTensor": _sharded,
    "DTensor": _dtensor,
    "object": ObjectEntry,
    "list": ListEntry,
    "dict": _dict,
    "OrderedDict": _ordered_dict,
    **dict.fromkeys(PrimitiveEntry.supported_types, _primitive),
}

_TYPE_OF_CLASS: dict[type, str] = {
    TensorEntry: "Tensor",
    ChunkedTensorEntry: "ChunkedTensor",
    ShardedTensorEntry: "ShardedTensor",
    DTensorEntry: "DTensor",
    ObjectEntry: "object",
    ListEntry: "list",
    DictEntry: "dict",
    OrderedDictEntry: "OrderedDict",
}

_DECODERS: dict[str, Callable[[str], Any]] = {
    "int": parse_decimal,
    "str": str,
    "bool": _decode_bool,
    "bytes": _decode_bytes,
    "float": _decode_float,
}

_ENCODERS: dict[type, Callable[[Any], str]] = {
    int: format_decimal,
    str: str,
    bool: str,
    bytes: lambda value: base64.b64encode(value).decode("ascii"),
    float: lambda value: base64.b64encode(struct.pack("<d", value)).decode("ascii"),
}
