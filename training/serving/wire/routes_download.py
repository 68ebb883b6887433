"""Files of an exported adapter, by signed URLs that open one file for a while.

The `tinker` command line fetches them without a key.
"""

import datetime
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response

from training.serving.errors import bad_request, not_found
from training.serving.host import Host
from training.serving.links import Links, utc_now
from training.serving.middleware import owner_of
from training.serving.names import TinkerPath
from training.serving.storage.rows import CheckpointRow

# below it no key is asked for
DOWNLOADS = "/download"
# the SDK signs anew what has less than five minutes left
URL_TIME = datetime.timedelta(hours=1)


def download_routes(host: Host, links: Links) -> APIRouter:
    router = APIRouter()
    store = host.store

    @router.get("/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls")
    async def urls(request: Request, run_id: str, kind: str, name: str) -> Response:
        owner, path = owner_of(request), TinkerPath.of(run_id, f"{kind}/{name}")
        row = host.checkpoints.find(owner, path)
        if kind != "external_weights":
            raise bad_request(
                f"{path} is of kind {kind}; save_weights_external makes one that can be downloaded"
            )
        expires = utc_now() + URL_TIME
        place = f"{str(request.base_url).rstrip('/')}{_prefix(request)}{DOWNLOADS}"
        signed = {}
        for file in store.checkpoints.files(row):
            where = "/".join(quote(part, safe=":") for part in (owner, run_id, kind, name, file))
            signed[file] = f"{place}/{where}?token={links.sign(_parts(row, file), expires)}"
        return JSONResponse({"urls": signed, "expires": expires.isoformat()})

    @router.get(DOWNLOADS + "/{owner}/{run_id}/{kind}/{name}/{file}")
    async def download(
        owner: str, run_id: str, kind: str, name: str, file: str, token: str = ""
    ) -> Response:
        path = TinkerPath.of(run_id, f"{kind}/{name}")
        row = store.checkpoints.get(owner, path)
        if row is None:
            # as a token for nothing, so that nobody learns what there is
            links.check(None, ())
            raise AssertionError("no token is right")
        links.check(token, _parts(row, file))
        found = store.checkpoints.files(row).get(file)
        if found is None:
            raise not_found(f"{path}: file {file!r}")
        return FileResponse(found, media_type="application/octet-stream", filename=file)

    return router


def _parts(row: CheckpointRow, file: str) -> tuple[str, ...]:
    # the uid, so that a checkpoint that replaced this one is not what comes
    return (row.owner, str(row.path), row.uid, file)


def _prefix(request: Request) -> str:
    """Under which these routes are mounted: what comes before their own part of the path."""
    return request.url.path.partition("/training_runs/")[0]
