"""Names of checkpoints and their tinker:// paths: what a request may call one.

Names never become paths on disk (the store has names of its own), yet they go into URLs, lists and
terminals, so they are plain.
"""

import re
from dataclasses import dataclass
from typing import Any, Self

from training.serving.errors import bad_request

SCHEME = "tinker://"
# the SDK's word for each
TYPES = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
KINDS = tuple(TYPES)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")
_RUN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._:-]{0,254}")


def checkpoint_name(value: Any, param: str = "path") -> str:
    """Raises ServingError 400 for what is no name of a checkpoint."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise bad_request(
            f"{param}: got {_shown(value)}, a checkpoint's name has 1 to 255 of A-Z a-z 0-9 . _ - "
            "and does not start with a dot",
            param=param,
        )
    return value


@dataclass(frozen=True)
class TinkerPath:
    """tinker://<run_id>/<kind>/<name>; `kind` is one of KINDS."""

    run_id: str
    kind: str
    name: str

    @classmethod
    def parse(cls, text: Any, param: str = "path") -> Self:
        """Raises ServingError 400 that says which part is wrong."""
        whole = f"{SCHEME}<run id>/<{'|'.join(KINDS)}>/<name>"
        if not isinstance(text, str) or not text.startswith(SCHEME):
            raise bad_request(f"{param}: got {_shown(text)}, needed is {whole}", param=param)
        parts = text.removeprefix(SCHEME).split("/")
        if len(parts) != 3:
            raise bad_request(
                f"{param}: got {_shown(text)}, which has {len(parts)} parts after {SCHEME}, needed "
                f"are 3: {whole}",
                param=param,
            )
        run_id, kind, name = parts
        if not _RUN.fullmatch(run_id):
            raise bad_request(
                f"{param}: got {_shown(text)}, whose run id {_shown(run_id)} cannot be one",
                param=param,
            )
        if kind not in TYPES:
            raise bad_request(
                f"{param}: got {_shown(text)}, whose second part must be one of {', '.join(KINDS)}",
                param=param,
            )
        return cls(run_id, kind, checkpoint_name(name, param))

    @classmethod
    def of(cls, run_id: str, checkpoint_id: str) -> Self:
        """From a run's id and the SDK's checkpoint id, "weights/<name>". Raises ServingError 400;
        a bare name is not enough, since weights and sampler_weights may have the same."""
        if "/" not in checkpoint_id:
            raise bad_request(
                f"checkpoint_id: got {_shown(checkpoint_id)}, needed is its kind too, as in "
                f"'weights/{checkpoint_id[:255]}'; kinds are {', '.join(KINDS)}",
                param="checkpoint_id",
            )
        return cls.parse(f"{SCHEME}{run_id}/{checkpoint_id}", "checkpoint_id")

    @property
    def checkpoint_id(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def checkpoint_type(self) -> str:
        return TYPES[self.kind]

    def __str__(self) -> str:
        return f"{SCHEME}{self.run_id}/{self.checkpoint_id}"


def for_sampling(path: TinkerPath, param: str = "model_path") -> TinkerPath:
    """The path, if it is of a kind that samplers are made from. Raises ServingError 400."""
    if path.kind != "sampler_weights":
        raise bad_request(
            f"{param}: {path} is of kind {path.kind}, and a sampler needs sampler_weights; "
            "save_weights_for_sampler makes one",
            param=param,
        )
    return path


def _shown(value: Any) -> str:
    """As Python writes it, so that a control character cannot reach a terminal or a log."""
    text = ascii(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"
