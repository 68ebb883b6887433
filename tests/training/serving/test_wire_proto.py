"""The committed protobuf module says what tinker_public.proto says.

uv run pytest tests/training/serving/test_wire_proto.py
"""

import re
import tomllib
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from places import ROOT

from training.serving.wire import tinker_public_pb2 as pb

FOLDER = ROOT / "training/serving/wire"
FIELD = re.compile(
    r"(?P<label>repeated |optional )?(?P<type>map<[^>]+>|\w+) (?P<name>\w+) = (?P<number>\d+);"
)
SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "bytes", "double", "int32", "int64", "string", "uint32")
}


def written() -> tuple[str, dict[str, Any]]:
    """The package, and {message: {field: (label, type, number, oneof)}, enum: {value: number}}."""
    text = re.sub(r"//.*", "", (FOLDER / "tinker_public.proto").read_text(encoding="utf-8"))
    package = re.search(r"package ([\w.]+);", text)
    assert package is not None
    found: dict[str, Any] = {}
    for kind, name, body in re.findall(r"(message|enum) (\w+) \{(.*?)\n\}", text, re.DOTALL):
        if kind == "enum":
            found[name] = {n: int(i) for n, i in re.findall(r"(\w+) = (\d+);", body)}
            continue
        oneofs = dict(re.findall(r"oneof (\w+) \{(.*?)\}", body, re.DOTALL))
        found[name] = {
            field["name"]: (
                (field["label"] or "").strip(),
                field["type"],
                int(field["number"]),
                next((o for o, inner in oneofs.items() if field[0] in inner), None),
            )
            for field in FIELD.finditer(body)
        }
    return package[1], found


def type_of(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return f"map<{type_of(entry['key'])}, {type_of(entry['value'])}>"
    for named in (field.message_type, field.enum_type):
        if named is not None:
            return named.name
    return SCALARS[field.type]


def label_of(field: FieldDescriptor) -> str:
    if type_of(field).startswith("map<"):
        return ""
    if field.is_repeated:
        return "repeated"
    # proto3 keeps a field marked `optional` in a oneof of its own
    alone = field.containing_oneof is not None and field.containing_oneof.name == f"_{field.name}"
    return "optional" if alone else ""


def fields_of(message: Descriptor) -> dict[str, Any]:
    found = {}
    for field in message.fields:
        oneof = field.containing_oneof
        shared = oneof.name if oneof is not None and not label_of(field) else None
        found[field.name] = (label_of(field), type_of(field), field.number, shared)
    return found


def numbers_of(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def test_the_module_holds_what_the_file_says() -> None:
    package, found = written()
    file = pb.DESCRIPTOR
    assert file.package == package
    messages = {name: fields_of(m) for name, m in file.message_types_by_name.items()}
    enums = {name: numbers_of(enum) for name, enum in file.enum_types_by_name.items()}
    assert messages | enums == found
    assert len(messages) == 20 and found["Chunk"]["dmel"] == ("", "DmelChunk", 3, "chunk")


def test_the_module_runs_with_the_oldest_protobuf_that_is_allowed() -> None:
    source = (FOLDER / "tinker_public_pb2.py").read_text(encoding="utf-8")
    version = re.search(r"Protobuf Python Version: (\d+)\.(\d+)", source)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [d for d in project["dependencies"] if d.startswith("protobuf")]
    assert version is not None
    assert bound == f"protobuf>={version[1]}.{version[2]}"
