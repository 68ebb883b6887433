"""What outlives the server: sessions, runs, checkpoints, and which requests were accepted.

store = Store(folder)
store.runs.add(Run(...))
begun = store.checkpoints.begin(owner, TinkerPath.parse(path), ...)
...                                   # write its files to begun.folder
row = store.checkpoints.commit(begun)

`folder` has serving.sqlite and checkpoints/, a PEFT folder each. Every getter takes the owner and
knows nothing of another's objects. Calls are short, from any thread, and nothing here waits.
"""

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path

from training.serving.errors import ServingError, server_fault
from training.serving.storage.checkpoints import Checkpoints
from training.serving.storage.database import FILE, Database
from training.serving.storage.futures import Futures
from training.serving.storage.rows import utc_now
from training.serving.storage.sessions import Runs, Samplers, Sessions
from utils.config.errors import ConfigError
from utils.runs.files import expanded
from utils.runs.locks import Claim

CHECKPOINTS = "checkpoints"
STAGING = "staging"


class Store:
    """Opened by one process at a time; what an earlier one left open is settled then: requests are
    lost, checkpoints that were being written are gone with their files."""

    def __init__(
        self, folder: Path | str, *, now: Callable[[], datetime.datetime] = utc_now
    ) -> None:
        """Raises ValueError, one sentence: a folder of something else, of another version, in use,
        or not writable."""
        self.folder = expanded(folder).absolute()
        self._claim = _claim(self.folder)
        try:
            _check_folders(self.folder)
            self._database = Database(self.folder / FILE)
        except BaseException:
            self._claim.release()
            raise
        try:
            self._make_folders()
            self.sessions = Sessions(self._database)
            self.runs = Runs(self._database)
            self.samplers = Samplers(self._database)
            self.futures = Futures(self._database)
            self.checkpoints = Checkpoints(
                self._database, self.folder / CHECKPOINTS, self.disk_fault, now
            )
        except BaseException as error:
            self.close()
            if isinstance(error, ServingError):
                raise ConfigError(f"store_dir={str(folder)!r}: {error.message}") from error
            if isinstance(error, OSError):
                told = self.disk_fault(error).message
                raise ConfigError(f"store_dir={str(folder)!r}: {told}") from error
            raise

    @property
    def staging(self) -> Path:
        """A folder for files on their way into a checkpoint; emptied whenever a store is opened."""
        return self.folder / STAGING

    def close(self) -> None:
        self._database.close()
        self._claim.release()

    def disk_fault(self, error: Exception) -> ServingError:
        """A failure to read or write files, told without this machine's paths above the store."""
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror}"
        else:
            text = str(error)
        text = text.replace(f"{self.folder}/", "").replace(str(self.folder), ".")
        return server_fault(f"{text}; the server's disk failed, earlier checkpoints are untouched")

    def _make_folders(self) -> None:
        if self.staging.exists():
            shutil.rmtree(self.staging)
        for name in (CHECKPOINTS, STAGING):
            (self.folder / name).mkdir(exist_ok=True)


def check_store(folder: Path | str) -> None:
    """Raises ValueError where Store(folder) would, and makes no store where there is none."""
    folder = expanded(folder).absolute()
    if (folder / FILE).exists():
        Store(folder).close()
        return
    claim = _claim(folder)
    try:
        _check_folders(folder)
    finally:
        claim.release()


def _claim(folder: Path) -> Claim:
    return Claim(folder / "serving.lock", f"store_dir={str(folder)!r}")


def _check_folders(folder: Path) -> None:
    """Their contents will be cleaned, so they must be a store's."""
    is_new = not (folder / FILE).exists()
    for name in (CHECKPOINTS, STAGING):
        path = folder / name
        if path.is_symlink() or (path.exists() and (is_new or not path.is_dir())):
            raise ConfigError(
                f"store_dir={str(folder)!r}: {name} in it is no folder of a store; give an "
                "empty folder or a new one"
            )
