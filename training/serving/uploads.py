"""Adapters that clients upload, file by file, which become checkpoints here."""

import asyncio
import secrets
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

from training.api import LoraConfig
from training.serving import backend as calls
from training.serving.backend import Backend
from training.serving.base_models import BaseModels
from training.serving.errors import bad_request, busy, not_found
from training.serving.names import TinkerPath
from training.serving.storage.rows import CheckpointRow, Run, Session
from training.serving.store import Store
from training.serving.trained_models import TrainedModels
from training.serving.workers import Workers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
# of the checkpoint that an upload becomes
_NAME = "upload"
# of one owner, which are not finished
_MOST = 8
_TOLD = 3


@dataclass(eq=False)
class Upload:
    """`folder` takes its files. `entered`: becomes a checkpoint, once it was finished."""

    upload_id: str
    owner: str
    base_model: str
    source: str
    lora: LoraConfig
    folder: Path
    started_at: float
    entered: "asyncio.Task[CheckpointRow] | None" = field(default=None)


class Uploads:
    """An upload that is not finished after `seconds` goes, and so do all with the server."""

    def __init__(
        self,
        store: Store,
        bases: BaseModels,
        backend: Backend,
        trained: TrainedModels,
        workers: Workers,
        *,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._bases = bases
        self._backend = backend
        self._trained = trained
        self._workers = workers
        self._seconds = seconds
        self._clock = clock
        self._uploads: dict[str, Upload] = {}

    def start(self, owner: str, base_model: str, lora: LoraConfig) -> Upload:
        """A place for the files of an adapter. Raises ServingError: 400 for what cannot be one of
        this server's, 429 where the owner has too many."""
        source = self._bases.resolve(base_model)
        self._trained.check_lora(lora)
        own = [upload for upload in self._uploads.values() if upload.owner == owner]
        if sum(upload.entered is None for upload in own) >= _MOST:
            raise busy(f"{_MOST} uploads of this key are not finished; finish one", 60.0)
        upload_id = secrets.token_hex(16)
        folder = self._store.staging / f"upload-{upload_id}"
        folder.mkdir()
        upload = Upload(upload_id, owner, base_model, source, lora, folder, self._clock())
        self._uploads[upload_id] = upload
        return upload

    def place(self, upload_id: str, file: str) -> Path:
        """Where one of FILES goes. Raises ServingError 404, and 400 where it was finished."""
        upload = self._uploads.get(upload_id)
        if upload is None or file not in FILES:
            raise not_found(f"file {file!r} of upload {upload_id!r}")
        if upload.entered is not None:
            raise bad_request(f"upload {upload_id} was finished; start another")
        return upload.folder / file

    async def finish(self, owner: str, upload_id: str) -> CheckpointRow:
        """The checkpoint, which is there once and also told to who asks again. Raises ServingError:
        404 for another owner's, 400 where files are missing or are not what was announced; then
        they may be uploaded again."""
        upload = self._uploads.get(upload_id)
        if upload is None or upload.owner != owner:
            raise not_found(f"upload_id {upload_id!r}", param="upload_id")
        if upload.entered is None:
            upload.entered = asyncio.create_task(self._enter(upload))
        try:
            # who gives up does not end it for others
            return await asyncio.shield(upload.entered)
        except Exception:
            upload.entered = None
            raise

    def sweep(self) -> None:
        """Those that nobody finished in time."""
        now = self._clock()
        for upload in list(self._uploads.values()):
            is_done = upload.entered is None or upload.entered.done()
            if is_done and now - upload.started_at >= self._seconds:
                del self._uploads[upload.upload_id]
                shutil.rmtree(upload.folder, ignore_errors=True)

    async def _enter(self, upload: Upload) -> CheckpointRow:
        missing = [name for name in FILES if not (upload.folder / name).is_file()]
        if missing:
            raise bad_request(f"upload_id: {' and '.join(missing)} was not uploaded yet")
        await self._workers.load(partial(self._check, upload))
        return await self._workers.load(partial(self._commit, upload))

    def _check(self, upload: Upload) -> None:
        """Whether the files are such as a new adapter of that base model would be saved in."""
        example = self._store.staging / f"example-{upload.upload_id}"
        client = self._backend.create(upload.source, upload.lora)
        try:
            calls.save(client, example, with_optimizer=False).result()
            wanted = _shapes(example / WEIGHTS)
        finally:
            shutil.rmtree(example, ignore_errors=True)
        try:
            found = _shapes(upload.folder / WEIGHTS)
            if found == wanted:
                # reads the settings too
                self._backend.load(upload.folder, upload.source, upload.lora, with_optimizer=False)
        except (ValueError, OSError, SafetensorError) as error:
            told = str(error).replace(str(upload.folder), "upload")
            raise bad_request(f"upload: this is no adapter: {told}") from error
        if found != wanted:
            names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
            differ = "; ".join(
                f"{name}: got {_shape(found, name)}, needed is {_shape(wanted, name)}"
                for name in names[:_TOLD]
            )
            raise bad_request(
                f"{WEIGHTS} is not what save_weights_external() writes of {upload.base_model} with "
                f"this lora_config; {len(names)} tensors differ: {differ}",
                param="lora_config",
            )

    def _commit(self, upload: Upload) -> CheckpointRow:
        session_id = str(uuid.uuid4())
        run_id = f"{session_id}:train:0"
        path = TinkerPath(run_id, "external_weights", _NAME)
        store, owner = self._store, upload.owner
        begun = store.checkpoints.begin(
            owner, path, base_model=upload.base_model, lora=upload.lora, has_optimizer=False
        )
        store.sessions.add(Session(session_id, owner, ("upload",)))
        store.sessions.finish(owner, session_id, "success")
        store.runs.add(Run(run_id, owner, session_id, upload.base_model, upload.lora))
        return store.checkpoints.commit(begun, upload.folder)


def _shapes(path: Path) -> dict[str, list[int]]:
    """Of a file's tensors, by their names; none is read."""
    with safe_open(path, "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def _shape(shapes: dict[str, list[int]], name: str) -> str:
    return str(shapes[name]) if name in shapes else "none"
