"""Checkpoints of the store by their paths: what a request may load, sample from, save or remove."""

from collections.abc import Callable
from pathlib import Path

from training.serving.errors import bad_request, not_found
from training.serving.names import TinkerPath, for_sampling
from training.serving.storage.rows import CheckpointRow
from training.serving.store import Store


class CheckpointAccess:
    """Another owner's checkpoints do not exist here. `on_removed` is told the uid of one whose
    path is free again, by whatever way."""

    def __init__(self, store: Store) -> None:
        self._checkpoints = store.checkpoints
        self.on_removed: Callable[[str], None] = lambda _uid: None

    def find(self, owner: str, path: TinkerPath, param: str = "path") -> CheckpointRow:
        """Raises ServingError: 404 that lists the run's others."""
        row = self._checkpoints.get(owner, path)
        if row is None:
            others = self._checkpoints.list(owner, path.run_id, limit=20).rows
            raise not_found(f"{path}", [str(other.path) for other in others], param=param)
        return row

    def to_load(self, owner: str, text: str, *, with_optimizer: bool) -> CheckpointRow:
        """For training on. Raises ServingError: 400 for no path, 404 for none of this owner, 400
        where the optimizer's state is asked for and is not in it."""
        row = self.find(owner, TinkerPath.parse(text))
        if with_optimizer and not row.has_optimizer:
            raise bad_request(
                f"path: {row.path} has no optimizer state, which only save_state writes; load it "
                "with create_training_client_from_state, which starts with fresh moments",
                param="path",
            )
        return row

    def to_sample(self, owner: str, text: str, param: str = "model_path") -> CheckpointRow:
        """Raises ServingError: 400 for no path and for a kind that is not for sampling, 404."""
        path = for_sampling(TinkerPath.parse(text, param), param)
        return self.find(owner, path, param)

    def all_to_sample(self, owner: str, limit: int) -> list[CheckpointRow]:
        """The newest ones."""
        return self._checkpoints.list(owner, limit=limit, kind="sampler_weights").rows

    def last_saved(self, owner: str, run_id: str) -> CheckpointRow | None:
        return self._checkpoints.latest(owner, run_id, "weights")

    def hold(self, row: CheckpointRow) -> Callable[[], None]:
        """Keeps its files until the function that comes back is called."""
        return self._checkpoints.hold(row)

    # ------------------------------------------------------------------------------------- changes

    def delete(self, owner: str, path: TinkerPath) -> None:
        """Samplers that use it keep their weights. Raises ServingError 404."""
        row = self.find(owner, path)
        if not self._checkpoints.delete(owner, path):
            raise not_found(f"{path}")
        self.on_removed(row.uid)

    def set_ttl(self, owner: str, path: TinkerPath, ttl_seconds: int | None) -> CheckpointRow:
        """Raises ServingError: 404, and 400 for a time that cannot be."""
        row = self._checkpoints.set_ttl(owner, path, ttl_seconds)
        return row or self.find(owner, path)

    def publish(self, owner: str, path: TinkerPath, public: bool) -> CheckpointRow:
        """Raises ServingError 404."""
        row = self._checkpoints.publish(owner, path, public)
        return row or self.find(owner, path)

    def external_files(self, owner: str, path: TinkerPath) -> dict[str, Path]:
        """Name -> path of the files for download. Raises ServingError 404."""
        return self._checkpoints.files(self.find(owner, path))

    def sweep(self) -> None:
        """Removes what has expired and nobody holds."""
        for row in self._checkpoints.remove_expired():
            self.on_removed(row.uid)
