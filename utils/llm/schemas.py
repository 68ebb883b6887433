"""Pydantic models as the JSON schemas that strict structured output takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

BOUNDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
)


def strict_schema(model: type[BaseModel]) -> Schema:
    """The JSON schema of `model` without $ref, in the order of its fields and with all its bounds.

    Raises a ValueError that lists everything strict decoding cannot express: fields with defaults
    (strict mode wants every property), models that take extra fields, free-form objects, sets, and
    models that contain themselves.
    """
    problems: list[str] = []
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions, (), problems)

    def strict(node: Schema) -> Schema:
        problems.extend(_problems(node))
        return _tidy(node)

    schema = _rebuild(inlined, strict)
    if schema.get("type") != "object":
        problems.append("the top level is no object; wrap it in a model with one field")
    if problems:
        raise ValueError(
            f"{model.__name__} cannot be a strict schema: {'; '.join(dict.fromkeys(problems))}"
        )
    return schema


def without_bounds(schema: Schema) -> Schema:
    """`schema` with its bounds said in the descriptions instead of enforced, for endpoints that
    refuse them. Whoever reads the answer has to check them."""

    def strip(node: Schema) -> Schema:
        bounds = [f"{name}: {node[name]}" for name in BOUNDS if name in node]
        if not bounds:
            return node
        kept = {name: value for name, value in node.items() if name not in BOUNDS}
        said = f"({', '.join(bounds)})"
        description = f"{kept['description']} {said}" if "description" in kept else said
        return {**kept, "description": description}

    return _rebuild(schema, strip)


def _rebuild(node: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """`node` with `change` done to every schema in it, inner ones first. Only positions that hold
    schemas are followed: a property may well be named "title" or "pattern"."""
    new = dict(node)
    for key in ("properties", "$defs", "patternProperties"):
        if key in new:
            new[key] = {name: _rebuild(inner, change) for name, inner in new[key].items()}
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in new:
            new[key] = [_rebuild(inner, change) for inner in new[key]]
    for key in ("items", "additionalProperties", "not"):
        if isinstance(new.get(key), Mapping):
            new[key] = _rebuild(new[key], change)
    return change(new)


def _inline(
    node: Schema, definitions: Mapping[str, Schema], inside: tuple[str, ...], problems: list[str]
) -> Schema:
    """`node` with the definitions it refers to written out; what stands beside a $ref wins."""

    def resolve(inner: Schema) -> Schema:
        if "$ref" not in inner:
            return inner
        name = inner["$ref"].removeprefix("#/$defs/")
        beside = {key: value for key, value in inner.items() if key != "$ref"}
        if name in inside:
            problems.append(f"{name} contains itself; give it a fixed depth")
            return beside
        return {**_inline(definitions[name], definitions, (*inside, name), problems), **beside}

    return _rebuild(node, resolve)


def _problems(node: Schema) -> list[str]:
    name = node.get("title", "an object")
    problems = []
    if node.get("type") == "object":
        properties = node.get("properties", {})
        optional = [field for field in properties if field not in node.get("required", ())]
        if optional:
            problems.append(
                f"{name} has defaults for {', '.join(optional)}; take them away "
                "(a value that may be missing is `X | None` without a default)"
            )
        if isinstance(node.get("additionalProperties"), Mapping) or (
            not properties and node.get("additionalProperties") is not False
        ):
            problems.append(
                f"{name} is a free-form object; use a list of models with named fields instead"
            )
        elif node.get("additionalProperties") is not False:
            problems.append(
                f'{name} takes extra fields; set model_config = ConfigDict(extra="forbid")'
            )
    if not {"type", "enum", "const", "anyOf", "oneOf", "allOf"} & set(node):
        problems.append(f"{name} may be anything; give it a type")
    if "uniqueItems" in node:
        problems.append(f"{name} is a set; use a list")
    return problems


def _tidy(node: Schema) -> Schema:
    new = {key: value for key, value in node.items() if key not in ("title", "discriminator")}
    # strict mode knows only anyOf; a model's validation still tells the branches apart
    if "oneOf" in new:
        new["anyOf"] = new.pop("oneOf")
    return new
