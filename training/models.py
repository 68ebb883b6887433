"""What a model name means: `embedded`, a local folder or a Hugging Face hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

EMBEDDED = "embedded"
FORMS = (
    "a model name is 'embedded' (a small model that needs no network), a local folder in "
    "transformers' format, or a Hugging Face hub id such as 'HuggingFaceTB/SmolLM2-360M-Instruct'"
)


def resolve_model(model_name: str) -> str | Path:
    """What from_pretrained() takes: a folder, or the hub id itself once its config.json is here.

    Raises FileNotFoundError for a folder that is absent or holds no model, and ValueError for a
    hub id that cannot be fetched.
    """
    if model_name == EMBEDDED:
        from training.local.embedded import embedded_model_dir

        return embedded_model_dir()
    folder = Path(model_name).expanduser()
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


def context_length(model_name: str) -> int | None:
    """The most tokens the model takes, or None where its config names no limit; no weights are
    loaded. Raises what resolve_model() raises, or ValueError for a config that cannot be read."""
    return getattr(_text_config(model_name), "max_position_embeddings", None) or None


def check_rank(model_name: str, name: str, rank: int) -> None:
    """Raises ValueError where the setting `name` asks for an adapter of a higher rank than the
    model's layers have, and what context_length() raises."""
    width = _text_config(model_name).hidden_size
    if rank > width:
        raise ValueError(
            f"{name}={rank}: at most {width} is allowed, the width of {model_name}'s layers"
        )


def _text_config(model_name: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    source = resolve_model(model_name)
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
