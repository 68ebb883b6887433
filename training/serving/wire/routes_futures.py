"""Results of the Tinker face: clients ask for one until it is there."""

import anyio
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from training.serving.host import Host
from training.serving.middleware import owner_of
from training.serving.promises import Outcome
from training.serving.wire.messages import OfRequest
from training.serving.wire.received import read_message
from training.serving.wire.replies import outcome_reply

# the SDK hangs up after 45
POLL_SECONDS = 38.0


class OpenPolls:
    """The requests that wait for a result. None holds up the end of the server: `end` lets them all
    be answered with "not yet"."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()

    async def wait(self, host: Host, owner: str, request_id: str) -> Outcome | None:
        """None where the server ends first."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await host.wait(owner, request_id, POLL_SECONDS)
            finally:
                self._scopes.discard(scope)
        return None

    def end(self) -> None:
        for scope in list(self._scopes):
            scope.cancel()


def future_routes(host: Host, polls: OpenPolls) -> APIRouter:
    router = APIRouter()

    @router.post("/retrieve_future")
    async def retrieve_future(request: Request) -> Response:
        message, _ = await read_message(request, OfRequest)
        outcome = await polls.wait(host, owner_of(request), message.request_id)
        if outcome is None:
            return JSONResponse({"queue_state": "active"}, status_code=408)
        return await outcome_reply(outcome, request.headers.get("accept", "*/*"))

    @router.post("/cancel_future")
    async def cancel_future(request: Request) -> Response:
        message, _ = await read_message(request, OfRequest)
        host.cancel(owner_of(request), message.request_id)
        return Response(status_code=204)

    return router
