"""A request's body before its messages are read: what it claims to be, and what is packed in it."""

import gzip
import io
import sys
import zlib
from collections.abc import Callable

from training.serving.errors import bad_request, too_large, wrong_media_type

# the standard library knows zstd from 3.14 on
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PROTOBUF = "application/x-protobuf"
# a frame may ask for a window of gigabytes; the highest levels that clients use ask for 8 MB
_MAX_WINDOW_LOG = 25


def _open_zstd(packed: io.BytesIO) -> io.BufferedIOBase:
    return zstd.ZstdFile(
        packed, options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
    )


def _open_gzip(packed: io.BytesIO) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=packed)


_OPENERS: dict[str, Callable[[io.BytesIO], io.BufferedIOBase]] = {
    "gzip": _open_gzip,
    "zstd": _open_zstd,
}
_ERRORS = (EOFError, OSError, zlib.error, zstd.ZstdError)


def require_protobuf(content_type: str | None) -> None:
    """Raises ServingError 415 for any other media type; parameters after a ";" do not matter."""
    given = (content_type or "").partition(";")[0].strip().lower()
    if given != PROTOBUF:
        raise wrong_media_type(
            f"Content-Type is {given[:80] or 'missing'}: this route reads {PROTOBUF}, which the "
            "SDK sends from version 0.25 on; update it (pip install --upgrade tinker)"
        )


def decompress(body: bytes, encoding: str | None, cap: int) -> bytes:
    """The body as its sender had it. No more than `cap` bytes are ever unpacked.

    `encoding` is the Content-Encoding header. Raises ServingError: 413 above `cap`, 415 for an
    encoding that is not read here, 400 for a body that is not what `encoding` says, or is cut.
    """
    name = (encoding or "").strip().lower()
    if name in ("", "identity"):
        unpacked = body
    elif name in _OPENERS:
        try:
            with _OPENERS[name](io.BytesIO(body)) as file:
                unpacked = file.read(cap + 1)
        except _ERRORS as error:
            raise bad_request(
                f"the body is no whole {name} stream ({error}); send it again"
            ) from error
    else:
        raise wrong_media_type(
            f"Content-Encoding is {name[:40]!r}: read here are {', '.join(_OPENERS)} and identity, "
            "one of them"
        )
    if len(unpacked) > cap:
        raise too_large(
            f"the body has more than {cap} bytes{' unpacked' if unpacked is not body else ''}; "
            f"at most {cap} are taken. Send less at once"
        )
    return unpacked
