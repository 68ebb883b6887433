"""Files of a checkpoint, by signed URLs that open one file, or all in one archive, for a while.

The `tinker` command line fetches them without a key: files from SDK 0.38 on, archives before.
"""

import datetime
import email.utils
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from training.serving.errors import bad_request, not_found
from training.serving.host import Host
from training.serving.links import Links, utc_now
from training.serving.middleware import owner_of
from training.serving.names import TinkerPath
from training.serving.storage.rows import CheckpointRow
from training.serving.wire.archive import Archive

# below it no key is asked for
DOWNLOADS = "/download"
# the SDK signs anew what has less than five minutes left
URL_TIME = datetime.timedelta(hours=1)
# of the whole archive; no file of a checkpoint is called so
ARCHIVE = "archive.tar"


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
        files = store.checkpoints.files(row)
        signed = {file: _url(request, links, row, file, expires) for file in files}
        return JSONResponse({"urls": signed, "expires": expires.isoformat()})

    @router.get("/training_runs/{run_id}/checkpoints/{kind}/{name}/archive")
    async def archive(request: Request, run_id: str, kind: str, name: str) -> Response:
        path = TinkerPath.of(run_id, f"{kind}/{name}")
        row = host.checkpoints.find(owner_of(request), path)
        expires = utc_now() + URL_TIME
        headers = {
            "Location": _url(request, links, row, ARCHIVE, expires),
            "Expires": email.utils.format_datetime(expires, usegmt=True),
        }
        return Response(status_code=302, headers=headers)

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
        files = store.checkpoints.files(row)
        if file == ARCHIVE:
            try:
                tar = Archive(files)
            except OSError as error:
                raise store.disk_fault(error) from error
            length = {"Content-Length": str(tar.num_bytes)}
            return StreamingResponse(iter(tar), media_type="application/x-tar", headers=length)
        found = files.get(file)
        if found is None:
            raise not_found(f"{path}: file {file!r}")
        return FileResponse(found, media_type="application/octet-stream", filename=file)

    return router


def _parts(row: CheckpointRow, file: str) -> tuple[str, ...]:
    # the uid, so that a checkpoint that replaced this one is not what comes
    return (row.owner, str(row.path), row.uid, file)


def _url(
    request: Request, links: Links, row: CheckpointRow, file: str, expires: datetime.datetime
) -> str:
    place = f"{str(request.base_url).rstrip('/')}{_prefix(request)}{DOWNLOADS}"
    parts = (row.owner, row.path.run_id, row.path.kind, row.path.name, file)
    where = "/".join(quote(part, safe=":") for part in parts)
    return f"{place}/{where}?token={links.sign(_parts(row, file), expires)}"


def _prefix(request: Request) -> str:
    """Under which these routes are mounted: what comes before their own part of the path."""
    return request.url.path.partition("/training_runs/")[0]
