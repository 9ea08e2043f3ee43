"""Protobuf messages from a table of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from blobtee.errors import FailedPrecondition

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as error:  # pragma: no cover - the tests have it
    raise FailedPrecondition("containerd's services need more packages: pip install 'blobtee[containerd]'") from error

Fields = Mapping[str, tuple[int, str]]
"""Number and type of each field, by name. A type is a scalar of protobuf's, the name of a message or enum of the same
package, `google.Timestamp` and its like for one of `_COMMON`, `map` for a map of strings, and any of them but the last
after `repeated `."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "bool": _Field.TYPE_BOOL,
    "double": _Field.TYPE_DOUBLE,
}

_COMMON: Mapping[str, Fields] = {
    "Timestamp": {"seconds": (1, "int64"), "nanos": (2, "int32")},
    "FieldMask": {"paths": (1, "repeated string")},
    "Empty": {},
}

# A pool of our own: whoever imports containerd's generated code into the same process has the same names.
_pool = descriptor_pool.DescriptorPool()


def build(package: str, messages: Mapping[str, Fields], enums: Mapping[str, Mapping[str, int]] | None = None) -> Any:
    """The classes of `messages`, as attributes of the answer. All are proto3.

    Called once for each package: its names are taken afterwards.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.blobtee", package=package, syntax="proto3")
    if package != "google.protobuf":
        file.dependency.append("google.protobuf.blobtee")
    for name, values in (enums or {}).items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            _add(message, package, field_name, number, kind, enums or {})
    _pool.Add(file)
    found = {name: _pool.FindMessageTypeByName(f"{package}.{name}") for name in messages}
    return SimpleNamespace(**{name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()})


def _add(
    message: descriptor_pb2.DescriptorProto,
    package: str,
    name: str,
    number: int,
    kind: str,
    enums: Mapping[str, object],
) -> None:
    element = kind.removeprefix("repeated ")
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if element != kind:
        field.label = _Field.LABEL_REPEATED
    if element in _SCALARS:
        field.type = _SCALARS[element]
    elif element == "map":
        _add_map(message, package, field)
    elif element in enums:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{package}.{element}"
    elif element.startswith("google."):
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".google.protobuf.{element.removeprefix('google.')}"
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{element}"


def _add_map(message: descriptor_pb2.DescriptorProto, package: str, field: _Field) -> None:
    """A map is a repeated message of key and value, named as the compiler names it."""
    name = "".join(part.capitalize() for part in field.name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, part in enumerate(("key", "value"), start=1):
        entry.field.add(name=part, number=number, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    field.label, field.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
    field.type_name = f".{package}.{message.name}.{name}"


common = build("google.protobuf", _COMMON)
"""`Timestamp`, `FieldMask` and `Empty`."""
