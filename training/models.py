"""What a model name means: `embedded`, a local folder or a Hugging Face hub id."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from utils.json_files import read_json_object
from utils.runs.files import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded"
# the files beside the weights that decide what goes in and out
SETTINGS_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.*",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer*.json",
    "vocab.*",
    "*.model",
    "*.tiktoken",
)
FORMS = (
    "a model name is 'embedded' (a small model that needs no network), a local folder in "
    "transformers' format, or a Hugging Face hub id such as 'HuggingFaceTB/SmolLM2-360M-Instruct'"
)


def resolve_model(model_name: str) -> str | Path:
    """What from_pretrained() takes: a folder, or the hub id itself once its config.json is here.

    Raises FileNotFoundError for a folder that is absent or holds no model and for a file, and
    ValueError for a hub id that cannot be fetched.
    """
    if model_name == EMBEDDED:
        from training.backends.local.embedded import embedded_model_dir

        return embedded_model_dir()
    folder = Path(model_name).expanduser()
    if folder.is_file():
        raise FileNotFoundError(f"model_name={model_name!r} is a file, not a folder; {FORMS}")
    # a hub id has at most one slash and never begins with one of these
    if folder.is_dir() or model_name.startswith(("/", ".", "~")) or model_name.count("/") > 1:
        if not (folder / "config.json").is_file():
            problem = "has no config.json" if folder.is_dir() else "does not exist"
            raise FileNotFoundError(f"model_name={model_name!r}: the folder {problem}; {FORMS}")
        return folder
    return _hub_id(model_name)


def load_tokenizer(model_name: str) -> "PreTrainedTokenizerBase":
    """The model's own tokenizer; raises what resolve_model() raises, or ValueError without one."""
    source = resolve_model(model_name)
    try:
        if model_name == EMBEDDED:
            # what AutoTokenizer comes to as well, after importing all of transformers' models
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(source)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model_name={model_name!r}: no tokenizer could be loaded from {source} ({error})"
        ) from error
    assert tokenizer is not None
    return tokenizer


def lacks_tokenizer(model_name: str) -> bool:
    """Whether it is a local folder in which no file belongs to a tokenizer. Raises what
    resolve_model() raises."""
    source = resolve_model(model_name)
    return isinstance(source, Path) and not any(
        path.is_file() for form in TOKENIZER_FILES for path in source.glob(form)
    )


def context_length(model_name: str) -> int | None:
    """The most tokens the model takes, or None where its config names no limit; no weights are
    loaded. Raises what resolve_model() raises, or ValueError for a config that cannot be read."""
    return getattr(_text_config(model_name), "max_position_embeddings", None) or None


def check_rank(model_name: str, name: str, rank: int) -> None:
    """Raises ValueError where the setting `name` asks for an adapter of a higher rank than the
    model's layers have, and what context_length() raises."""
    width = getattr(_text_config(model_name), "hidden_size", None)
    if width is not None and rank > width:
        raise ValueError(
            f"{name}={rank}: at most {width} is allowed, the width of {model_name}'s layers"
        )


def check_sampling_weights(model_name: str, sampling_weights: str | None) -> None:
    """Raises ValueError where a model has no such weights to decode with, and what resolve_model()
    raises."""
    if sampling_weights != "int4":
        return
    from training.backends.local.embedded import is_embedded_dir

    if not is_embedded_dir(Path(resolve_model(model_name))):
        raise ValueError(
            f"sampling_weights={sampling_weights!r} needs model_name={EMBEDDED!r}, whose file has "
            f"such weights; got {model_name!r}: leave it out"
        )


def model_files(model_name: str) -> tuple[str, list[str]]:
    """Where a model lies, for people (with a hub's revision), and a digest of each file beside its
    weights that counts. Nothing is fetched. Raises what resolve_model() raises.

    Of the embedded model there are none: it is always the same, whatever version wrote its files.
    """
    if model_name == EMBEDDED:
        return model_name, []
    source = resolve_model(model_name)
    folder = Path(source)
    if not isinstance(source, Path):
        folder = _snapshot(model_name)
    digests = []
    for name in SETTINGS_FILES:
        if (folder / name).is_file():
            settings = read_json_object(folder / name)
            # a model that is saved again by another version is still the same
            settings.pop("transformers_version", None)
            digests.append(f"{name} {settings}")
    for path in sorted({path for form in TOKENIZER_FILES for path in folder.glob(form)}):
        digests.append(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return (model_name if folder == source else f"{model_name} at {folder.name}"), digests


def adapter_fingerprint(checkpoint_path: str | Path) -> str:
    """Tells apart adapters that lie, or lay, at the same path: a hash of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(expanded(checkpoint_path).rglob("*")):
        if path.is_file() and path.name.startswith("adapter"):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _snapshot(model_name: str) -> Path:
    """The folder in the hub's cache, named by its revision."""
    from transformers.utils import cached_file

    config = cached_file(model_name, "config.json", local_files_only=True)
    assert config is not None
    return Path(config).parent


def _text_config(model_name: str) -> Any:
    source = resolve_model(model_name)
    if model_name == EMBEDDED:
        # what AutoConfig comes to as well, after importing half of torch and transformers
        return SimpleNamespace(**read_json_object(Path(source) / "config.json"))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source).get_text_config()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model_name={model_name!r}: no config could be loaded from {source} ({error})"
        ) from error


def _hub_id(model_name: str) -> str:
    from transformers.utils import cached_file

    try:
        cached_file(model_name, "config.json")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model_name={model_name!r} is no local folder and could not be fetched from the "
            f"Hugging Face hub ({reason}); {FORMS}. Check the spelling, the network and, for a "
            "gated model, the login (hf auth login), or download it and give the folder"
        ) from error
    return model_name
