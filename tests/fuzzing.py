"""Requests that nobody meant: values, bodies, paths and headers, drawn from a generator."""

import gzip
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.routing import Route

from training.serving.wire import bodies

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, -(2**63), 10**40, 1.5, 1e308, -0.0, "", "a", "\x00"),
    *("🙂" * 50, "<|im_end|>", "../../etc/passwd", "tinker://a/sampler_weights/b", "tiny;x"),
    *("\ud800", "tinker://../weights/..", "a" * 256, ".", "..", "a\r\nb: c", "%00", float("nan")),
    *([], {}, [[]], [None], ["a", 1], [[1], [2**40]], {"type": "zap"}, {"a": {"b": []}}),
    *("y" * 9000, {"x" * 3000: 1}, [0] * 3000),
    *([{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}]),
    *({"minLength": 10**9, "type": "string"}, {"pattern": "(a{900}){900}"}, {"$ref": "#"}),
    *({"allOf": [{"$ref": "#"}]}, {"minItems": 10**8, "items": {}, "type": "array"}),
]
# a part of a path, as it stands in a URL
PATH_TRICKS = (
    *("..", "%2e%2e", "..%2f..%2fserving.sqlite", "%00", "x" * 3000, "%ff%fe", "a%0d%0ab:c", "~"),
    *("tinker:%2f%2fa", "%252e%252e%252f", "weights%2fa", "%5c..%5c", "%f0%9f%99%82", "*", "-1"),
    *("%2fetc%2fpasswd", "a;b", "a?b=c", "a#b", "nul", "1e9", "%", "%zz", ""),
)
QUERIES = (
    *("", "", "", "limit=3&offset=0", "limit=-1", "limit=99999999999999999999", "limit=x"),
    *("offset=-1", "offset=9223372036854775807", "limit=1&limit=2", "token=0-0", "%ff=%00", "&&="),
)
ENCODINGS = ("gzip", "zstd", "br", "gzip, gzip", "identity", "\x80", "x" * 5000, "")
TYPES = ("application/json", bodies.PROTOBUF, "text/plain", "multipart/form-data", "", "x;" * 500)
BOMB_BYTES = 50 << 20

MESSAGES = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OPENAI_BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": "tiny", "messages": MESSAGES, "max_tokens": 2},
        {
            "model": "tiny",
            "messages": MESSAGES,
            "max_tokens": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["x"],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {
            "model": "tiny",
            "messages": MESSAGES,
            "max_tokens": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            },
        },
    ],
    "/v1/load_lora_adapter": [
        {"lora_name": "mine", "lora_path": "a"},
        {"lora_name": "mine", "lora_path": "a", "load_inplace": True},
    ],
    "/v1/unload_lora_adapter": [{"lora_name": "mine"}],
    "/v1/completions": [
        {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 2},
        {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 1, "n": 2, "seed": 3, "stream": True},
    ],
}


def changed(value: Any, rng: random.Random) -> Any:
    """The value with one place of it made odd, left out or said again."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, rng.choice(["tools", "zzz", key + "s", "n", "stop"]): rng.choice(ODD)}
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + rng.randrange(2) :]]
    return rng.choice(ODD)


def mutated(rng: random.Random, body: bytes) -> bytes:
    """One to four changes: of a byte, a bit, a part cut, doubled, moved, or random bytes."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice([1, 2, 8, 64]))
        part = changed[at:end]
        kind = rng.randrange(6)
        if kind == 0:
            changed[at:end] = rng.randbytes(len(part))
        elif kind == 1 and part:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = part * rng.choice([1, 3, 50])
        elif kind == 4:
            changed[at:end] = rng.choice([b"\xff" * 9, b"\x7f", bytes(4), b"\x80" * 11])
        else:
            place = rng.randrange(len(changed) + 1)
            changed[place:place] = part
    return bytes(changed)


def json_body(valid: Any, rng: random.Random) -> bytes:
    """Mostly JSON with up to three odd places, now and then broken JSON or no JSON at all."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(60))
    value = valid
    for _ in range(rng.randrange(4)):
        value = changed(value, rng)
    data = json.dumps(value).encode()
    return mutated(rng, data) if kind < 0.15 else data


# --------------------------------------------------------------------------------- whole requests


class Asked(NamedTuple):
    """`route`: the template that the path was made from. `path`: as it stands in a URL."""

    route: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def as_http(self) -> bytes:
        head = [f"{self.method} {self.path} HTTP/1.1".encode(), b"host: server"]
        head += [name + b": " + value for name, value in self.headers]
        head.append(f"content-length: {len(self.body)}".encode())
        return b"\r\n".join([*head, b"", self.body])


def routes_of(app: Any) -> list[tuple[str, Sequence[str]]]:
    """Every route of the app and its methods; all where it takes all."""
    found = [route for route in app.routes if isinstance(route, Route)]
    every = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
    return [(route.path, sorted(route.methods or every)) for route in found]


Bodies = Callable[[str, random.Random], bytes | None]


def request_to(
    app_routes: Sequence[tuple[str, Sequence[str]]],
    parts: Mapping[str, Sequence[str]],
    body_of: Bodies,
    keys: Sequence[str],
    rng: random.Random,
) -> Asked:
    """To any of the routes. `parts`: values for the parameters of paths. `body_of(route)`: a body
    for it, which is changed here no more; None: none is known. `keys`: what says who asks."""
    route, methods = rng.choice(app_routes)
    method = rng.choice(methods) if rng.random() < 0.95 else rng.choice(["TRACE", "x" * 40, "PUT"])

    def part(found: re.Match[str]) -> str:
        known = parts.get(found[1], ())
        return rng.choice(known) if known and rng.random() < 0.8 else rng.choice(PATH_TRICKS)

    path = re.sub(r"{(\w+)(?::path)?}", part, route)
    query = rng.choice(QUERIES) if rng.random() < 0.3 else ""
    body = body_of(route, rng)
    if body is None or rng.random() < 0.03:
        body = rng.randbytes(rng.choice([0, 1, 40, 3000]))
    headers = {b"x-api-key": rng.choice(keys).encode()}
    headers[b"content-type"] = (
        bodies.PROTOBUF if route.endswith("/forward_backward") else "application/json"
    ).encode()
    kind = rng.random()
    if kind < 0.03:
        headers[b"content-type"] = rng.choice(TYPES).encode("latin-1")
    elif kind < 0.05:
        del headers[b"x-api-key"]
        headers[b"authorization"] = rng.choice([b"Bearer", b"Bearer \xff", b"Basic eDp5", b""])
    elif kind < 0.08:
        headers[b"content-encoding"] = rng.choice(ENCODINGS).encode("latin-1")
    elif kind < 0.11:
        body, headers[b"content-encoding"] = packed(rng, body)
    elif kind < 0.13:
        headers[b"accept"] = rng.choice([b"", b"application/json", b"\xff", b"x" * 5000])
    elif kind < 0.14:
        headers[b"x-sdk-version"] = rng.choice([b"\n", b"\xe2" * 500, b"0.38"])
    return Asked(route, method, f"{path}?{query}" if query else path, list(headers.items()), body)


def packed(rng: random.Random, body: bytes) -> tuple[bytes, bytes]:
    """It, or zeros without end, compressed, and how; sometimes broken."""
    if rng.random() < 0.4:
        body = bytes(BOMB_BYTES)
    if rng.random() < 0.5:
        data, name = gzip.compress(body, 1), b"gzip"
    else:
        data, name = bodies.zstd.compress(body), b"zstd"
    return (mutated(rng, data) if rng.random() < 0.3 else data), name
