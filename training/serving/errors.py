"""What a request is answered with when it cannot be served: one readable sentence and a status.

Both faces of the server show the same error, each in the shape that its clients read.
"""

from collections.abc import Iterable

# 409 is missing on purpose: both the official SDK and openai's client send a request again after
# it, the SDK for five minutes, before they show what was wrong.
STATUSES = (400, 401, 404, 405, 410, 413, 415, 429, 500, 503)
# of what a request named, told back
_TOLD_CHARACTERS = 300


class ServingError(Exception):
    """`message` is for the user: the field, what it got, what is allowed, what to do.

    `param` is the field's name and `code` a machine's word for the error, as OpenAI's errors have
    them; `retry_after` is in seconds. A status of 500 and above is the server's fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        assert status in STATUSES, status
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def category(self) -> str:
        """The SDK's word for whose fault a failed request is: "user" or "server"."""
        return "server" if self.status >= 500 else "user"


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ServingError:
    """What the user gave cannot be: 400, which clients show at once."""
    return ServingError(400, message, param=param, code=code)


def not_found(what: str, existing: Iterable[str] = (), *, param: str | None = None) -> ServingError:
    """404 for what does not exist, and for what another key owns: nobody learns which of the two.

    `existing`: names of the same kind that this owner could have meant; the first 20 are told.
    """
    if len(what) > _TOLD_CHARACTERS:
        what = f"{what[:_TOLD_CHARACTERS]}... ({len(what)} characters)"
    names = list(existing)
    told = f"; there is {', '.join(names[:20])}" if names else ""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ServingError(404, f"{what}: not found{told}{more}", param=param)


def gone(message: str) -> ServingError:
    """410: a session that is finished, a result whose time is over."""
    return ServingError(410, message)


def unauthorized(message: str) -> ServingError:
    return ServingError(401, message, code="invalid_api_key")


def too_large(message: str, *, param: str | None = None) -> ServingError:
    return ServingError(413, message, param=param)


def wrong_media_type(message: str) -> ServingError:
    return ServingError(415, message)


def busy(message: str, retry_after: float) -> ServingError:
    """429: the same request would be served after `retry_after` seconds."""
    return ServingError(429, message, retry_after=retry_after)


def server_fault(message: str) -> ServingError:
    """500: a full disk, a folder that cannot be written; not for what the user can mend."""
    return ServingError(500, message)
