"""Who may use the server: API keys and their owners. In memory there are only the keys' hashes."""

import hashlib
import hmac
import re
from pathlib import Path
from typing import Self

from training.serving.errors import unauthorized
from training.serving.secret_files import kept_secret
from utils.runs.files import expanded

# the official SDK refuses keys without it before it sends anything
PREFIX = "tml-"
MIN_LENGTH = 16
LOOPBACK_OWNER = "local"
LOOPBACK_FILE = "loopback.key"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-~]+")


class Keys:
    """Hash of each key -> its owner. `shown`: the key to tell the user at the start, where the
    server made it."""

    def __init__(self, owners: dict[bytes, str], shown: str | None = None) -> None:
        assert owners
        self._owners = owners
        self.shown = shown

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """One key a line, `name:key` or the key alone, which then has a name made of its hash;
        empty lines and those that start with # do not count. An owner's name stays his objects'
        owner, so a key can be changed and its name kept.

        Raises ValueError, which never shows a key.
        """
        try:
            text = expanded(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ValueError(f"api_keys_file={str(path)!r}: cannot be read: {reason}") from error
        owners: dict[bytes, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            where = f"api_keys_file={str(path)!r}, line {number}"
            name, colon, key = line.rpartition(":")
            hashed = _hashed(key)
            if not colon:
                name = f"key-{hashed.hex()[:8]}"
            _check(name, key, where)
            if hashed in owners:
                raise ValueError(f"{where}: the same key stands above; remove one of them")
            if name in owners.values():
                raise ValueError(f"{where}: the same name stands above; give each key its own")
            owners[hashed] = name
        if not owners:
            raise ValueError(
                f"api_keys_file={str(path)!r}: no key in it; write one a line, as name:{PREFIX}..."
            )
        return cls(owners)

    @classmethod
    def for_loopback(cls, folder: Path | str) -> Self:
        """One made by chance for the users of this machine, kept in a file of `folder` that only
        its user can read: after a restart clients go on with it. Raises ValueError."""
        path = Path(folder) / LOOPBACK_FILE
        key = kept_secret(path, "the key of this machine's users", PREFIX)
        _check(LOOPBACK_OWNER, key, f"{path}: remove this file for a new key")
        return cls({_hashed(key): LOOPBACK_OWNER}, key)

    def owner(self, presented: str | None) -> str:
        """Raises ServingError 401. Takes as long for every wrong key, whatever it begins with."""
        if not presented:
            raise unauthorized(
                "no API key; send it as 'X-API-Key: KEY' or as 'Authorization: Bearer KEY'"
            )
        hashed = _hashed(presented)
        found = None
        for known, name in self._owners.items():
            if hmac.compare_digest(known, hashed):
                found = name
        if found is None:
            raise unauthorized("the API key is not one of this server's")
        return found


def _check(name: str, key: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: a name before the colon has 1 to 64 of A-Z a-z 0-9 . _ -")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{where}: a key has letters, digits and signs of ASCII, and no blanks")
    if len(key) < MIN_LENGTH:
        raise ValueError(
            f"{where}: the key has {len(key)} characters, at least {MIN_LENGTH} are needed"
        )


def _hashed(key: str) -> bytes:
    # headers are latin-1, and what is no text at all must be a wrong key, not a crash
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
