"""Signed links: who has one may fetch one thing, without a key, until it expires.

The official SDK downloads a checkpoint's files with plain GETs that carry no key.
"""

import datetime
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Sequence

from training.serving.errors import ServingError, gone

_TOKEN = re.compile(r"([0-9]{1,12})-([0-9a-f]{64})")


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Links:
    """Links that this object signed; those of another, as before a restart, are refused."""

    def __init__(self, *, now: Callable[[], datetime.datetime] = utc_now) -> None:
        self._secret = secrets.token_bytes(32)
        self._now = now

    def sign(self, parts: Sequence[str], expires_at: datetime.datetime) -> str:
        """A token for the URL of what `parts` name, say a run, a checkpoint and a file; letters,
        digits and a dash. Good until `expires_at`, cut to seconds."""
        expires = int(expires_at.timestamp())
        return f"{expires}-{self._signature(parts, expires)}"

    def check(self, token: str | None, parts: Sequence[str]) -> None:
        """Raises ServingError: 401 for a token that was not signed for these parts, 410 for one
        whose time is over."""
        found = _TOKEN.fullmatch(token or "")
        expires = int(found[1]) if found else 0
        given = found[2] if found else ""
        # also where the form is wrong, so that time tells nothing
        is_ours = hmac.compare_digest(given, self._signature(parts, expires))
        if found is None or not is_ours:
            raise ServingError(
                401,
                "this link is not one that the server has signed for this file since it started; "
                "ask for its links again",
            )
        if self._now().timestamp() >= expires:
            raise gone("this link has expired; ask for the checkpoint's URLs again")

    def _signature(self, parts: Sequence[str], expires: int) -> str:
        # JSON, so that no two lists of parts are one text
        message = json.dumps([expires, *parts]).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
