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
from pathlib import Path
from typing import Self

from training.serving.errors import ServingError, gone
from training.serving.secret_files import kept_secret

SECRET_FILE = "links.key"
MIN_LENGTH = 32
_TOKEN = re.compile(r"([0-9]{1,12})-([0-9a-f]{64})")


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Links:
    """Links signed with one secret; those of another are refused."""

    def __init__(
        self, secret: str | None = None, *, now: Callable[[], datetime.datetime] = utc_now
    ) -> None:
        """None: a secret of its own."""
        self._secret = (secrets.token_hex(32) if secret is None else secret).encode()
        self._now = now

    @classmethod
    def of_store(cls, folder: Path | str) -> Self:
        """Whose links stay good over a restart of its server: the secret is kept in a file of
        `folder` that only its user can read. Raises ValueError."""
        path = Path(folder) / SECRET_FILE
        secret = kept_secret(path, "the secret that signs links")
        if len(secret) < MIN_LENGTH:
            raise ValueError(
                f"{path}: the secret that signs links has {len(secret)} characters, at least "
                f"{MIN_LENGTH} are needed; remove this file for a new one"
            )
        return cls(secret)

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
                "this link is not one that the server has signed for this file; ask for its links "
                "again",
            )
        if self._now().timestamp() >= expires:
            raise gone("this link has expired; ask for the checkpoint's URLs again")

    def _signature(self, parts: Sequence[str], expires: int) -> str:
        # JSON, so that no two lists of parts are one text
        message = json.dumps([expires, *parts]).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
