"""The base models that a server offers, and the names that clients may say for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from training.models import EMBEDDED, context_length, resolve_model
from training.serving.errors import bad_request


class BaseModels:
    """`names` are what training.connect can load; `aliases` are more names for models that it can
    load, such as the hub id that a client's code says for a folder here. The first name is the
    default. Raises ValueError for no name, and for an alias that is a name of another model."""

    def __init__(self, names: Sequence[str], aliases: Mapping[str, str] | None = None) -> None:
        if not names:
            raise ValueError("model_name: at least one base model is needed")
        self._sources = {name: name for name in names}
        for alias, source in (aliases or {}).items():
            if not alias or self._sources.get(alias, source) != source:
                raise ValueError(
                    f"aliases: {alias!r} cannot stand for {source!r}; it is empty, or the name of "
                    "another model"
                )
            self._sources[alias] = source
        self._lengths: dict[str, int | None] = {}

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
        """A name from which a client on this machine can load the model's tokenizer.

        The SDK reads a name with exactly two slashes as one with a variant, and drops its last
        part, so a path of two slashes is written with three.
        """
        source = self.resolve(name)
        if name != source and source != EMBEDDED:
            return name
        found = resolve_model(source)
        if not isinstance(found, Path):
            return source
        path = str(found.resolve())
        return path if path.count("/") != 2 else path.replace("/", "/./", 1)

    def context_length(self, name: str) -> int | None:
        """The most tokens of the model, from its config: no weights are loaded."""
        source = self.resolve(name)
        if source not in self._lengths:
            self._lengths[source] = context_length(source)
        return self._lengths[source]

    def _by_client_name(self, name: str) -> str | None:
        """A client that was told a tokenizer's name may ask for a sampler by it."""
        if not name.startswith("/"):
            return None
        for source in dict.fromkeys(self._sources.values()):
            if source == EMBEDDED or source.startswith((".", "/", "~")) or Path(source).is_dir():
                found = resolve_model(source)
                if isinstance(found, Path) and Path(name) == found.resolve():
                    return source
        return None
