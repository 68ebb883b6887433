"""Adapters that are uploaded: SDKs from 0.39 on announce one, send its files to signed URLs without
a key, and finish it. The forms are those of the public reference of SDK 0.39 and 0.40."""

import contextlib
import re
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from training.api import LoraConfig
from training.serving.errors import ServingError, bad_request
from training.serving.host import Host
from training.serving.links import Links, utc_now
from training.serving.middleware import owner_of
from training.serving.uploads import FILES, Uploads
from training.serving.wire.messages import FinishUpload, StartUpload
from training.serving.wire.received import read_message
from training.serving.wire.routes_download import URL_TIME

# below it no key is asked for
UPLOADS = "/upload"
# from this SDK on a URL comes with headers
_WITH_HEADERS = (0, 40)


def upload_routes(host: Host, links: Links) -> APIRouter:
    router = APIRouter()

    @router.post("/external_weights_upload_start")
    async def start(request: Request) -> Response:
        message, _ = await read_message(request, StartUpload)
        lora = LoraConfig(**message.lora_config.model_dump())
        upload = _uploads(host).start(owner_of(request), message.base_model, lora)
        expires = utc_now() + URL_TIME
        prefix = request.url.path.rpartition("/")[0]
        place = f"{str(request.base_url).rstrip('/')}{prefix}{UPLOADS}/{upload.upload_id}"
        tokens = {file: links.sign(_parts(upload.upload_id, file), expires) for file in FILES}
        urls: dict[str, Any] = {f: f"{place}/{f}?token={token}" for f, token in tokens.items()}
        if _sdk_version(request) >= _WITH_HEADERS:
            urls = {file: {"url": url, "headers": {}} for file, url in urls.items()}
        return JSONResponse(
            {"upload_id": upload.upload_id, "urls": urls, "expires": expires.isoformat()}
        )

    @router.put(UPLOADS + "/{upload_id}/{file}")
    async def put(request: Request, upload_id: str, file: str, token: str = "") -> Response:
        links.check(token, _parts(upload_id, file))
        place = _uploads(host).place(upload_id, file)
        part = place.with_name(f".{file}.part")
        try:
            async with await anyio.open_file(part, "wb") as written:
                async for chunk in request.stream():
                    await written.write(chunk)
            # a part of a file would look like a whole one
            await anyio.to_thread.run_sync(part.replace, place)
        except ClientDisconnect as error:
            raise bad_request("the client hung up before the file was there") from error
        except OSError as error:
            raise host.store.disk_fault(error) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return Response(status_code=200)

    @router.post("/external_weights_upload_finish")
    async def finish(request: Request) -> Response:
        message, _ = await read_message(request, FinishUpload)
        row = await _uploads(host).finish(owner_of(request), message.upload_id)
        return JSONResponse({"tinker_path": str(row.path)})

    return router


def _uploads(host: Host) -> Uploads:
    """Raises ServingError 404 where this server has none."""
    if host.uploads is None:
        raise ServingError(
            404,
            "not served here: adapters are uploaded only where the server was started with "
            "external_uploads=true",
        )
    return host.uploads


def _parts(upload_id: str, file: str) -> tuple[str, ...]:
    return ("upload", upload_id, file)


def _sdk_version(request: Request) -> tuple[int, int]:
    found = re.match(r"(\d{1,6})\.(\d{1,6})", request.headers.get("x-sdk-version", ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)
