"""What the official SDK can ask and this server has nothing to say to, each with one sentence."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import Response

from training.serving.errors import ServingError

# method, path, why
UNSERVED = (
    ("POST", "/copy_weights", "copy_weights: there are no accounts or projects to copy between"),
    (
        "POST",
        "/checkpoints/search",
        "checkpoints are listed here (list_user_checkpoints), not searched",
    ),
    ("POST", "/sessions/search", "sessions are listed here (list_sessions), not searched"),
    ("PUT", "/sessions/{session_id}/project", "there are no projects here"),
    ("GET", "/sessions/{session_id}/trace_export", "traces of sessions are not kept"),
    ("POST", "/create_custom_loss", "custom losses are computed by the client"),
    ("POST", "/join_sampling_session", "clones of a sampler number their requests themselves"),
    ("POST", "/retrieve_futures", "results are asked for one by one, with retrieve_future"),
    ("POST", "/auth/token", "there are no tokens here, only API keys"),
    ("GET", "/auth/apikey/me", "there are no accounts here, only the keys of api_keys_file"),
    ("DELETE", "/auth/apikey/me", "keys are removed from api_keys_file by whoever runs the server"),
    ("GET", "/audit", "there is no audit log here"),
    ("GET", "/billing/usage/events", "nothing is billed here"),
    ("GET", "/billing/usage/checkpoints/current", "nothing is billed here"),
)


def unserved_routes() -> APIRouter:
    router = APIRouter()
    for method, path, why in UNSERVED:
        router.add_api_route(path, _refuse(why), methods=[method])
    return router


def _refuse(why: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise ServingError(404, f"not served here: {why}")

    return refuse
