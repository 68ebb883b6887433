"""The base models that a server offers, and the names that clients may say for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from training.models import EMBEDDED, resolve_model
from training.serving.errors import bad_request
from training.serving.names import SCHEME


class BaseModels:
    """`names` are what training.connect can load; `aliases` are more names for models that it can
    load, such as the hub id that a client's code says for a folder here. The first name is the
    default. `has_local_clients`: clients run on this machine and can read its folders. Raises
    ValueError for no name, and for an alias that is a name of another model."""

    def __init__(
        self,
        names: Sequence[str],
        aliases: Mapping[str, str] | None = None,
        *,
        has_local_clients: bool = True,
    ) -> None:
        if not names:
            raise ValueError("model_name: at least one base model is needed")
        self._sources = {name: name for name in names}
        for alias, source in (aliases or {}).items():
            is_path = alias.startswith(SCHEME)
            if not alias or is_path or self._sources.get(alias, source) != source:
                raise ValueError(
                    f"aliases: {alias!r} cannot stand for {source!r}; it is empty, the name of "
                    "another model, or one that checkpoints have"
                )
            self._sources[alias] = source
        self._has_local_clients = has_local_clients

    @property
    def names(self) -> list[str]:
        """What clients may say, names before aliases."""
        return list(self._sources)

    @property
    def default(self) -> str:
        return self.names[0]

    def resolve(self, name: str) -> str:
        """What the service takes. Raises ServingError (400) for a name that is not offered."""
        source = self._sources.get(name)
        if source is None:
            source = self._by_client_name(name)
        if source is None:
            raise bad_request(
                f"base_model: got {name!r}, this server has {', '.join(self.names)}; it can be "
                "started with more (aliases={...})",
                param="base_model",
            )
        return source

    def same(self, first: str, second: str) -> bool:
        """Whether two names mean one model; an unknown name means only itself."""
        return self._sources.get(first, first) == self._sources.get(second, second)

    def client_name(self, name: str) -> str:
        """A name from which a client can load the model's tokenizer: the folder of a model that
        lies in one, where the client can read it, else the name itself.

        The SDK reads a name with exactly two slashes as one with a variant, and drops its last
        part, so a path of two slashes is written with three.
        """
        if not self._has_local_clients:
            return name
        folder = _folder(self._sources.get(name, name))
        if folder is None:
            return name
        return folder if folder.count("/") != 2 else folder.replace("/", "/./", 1)

    def _by_client_name(self, name: str) -> str | None:
        """A client that was told a tokenizer's name may ask for a sampler by it."""
        if not name.startswith("/"):
            return None
        for source in dict.fromkeys(self._sources.values()):
            if _folder(source) == name.replace("/./", "/", 1):
                return source
        return None


def _folder(source: str) -> str | None:
    """Nothing is fetched for a hub's model."""
    if source == EMBEDDED:
        return str(resolve_model(source))
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else None
