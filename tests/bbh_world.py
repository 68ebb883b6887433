"""Small BBH data, tokenizers and settings for the tests of test-time training."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_chat import chat_tokenizer, save_chat_model
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from training.domains.bbh.config import BBHConfig
from training.domains.bbh.data import TaskData
from training.domains.bbh.generated import generate_items
from training.domains.bbh.methods import BBHRun, TaskResult
from training.domains.bbh.tasks import BY_NAME

BBH = Path(__file__).parents[2] / "shared" / "data" / "bbh"
NAMES = ("boolean_expressions", "web_of_lies", "dyck_languages")


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Begins raw text with <s>, and has one token for the blank line between two items."""
    letters = [*sorted(ByteLevel.alphabet()), "ĊĊ"]
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def save_bbh_model(folder: Path) -> str:
    """A tiny chat model that attends sharply and strongly, so that its answers differ from prompt
    to prompt and change with little training."""
    save_chat_model(folder, favourites=" TFYNsero)]}>A")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.mul_(2)
        elif "self_attn" in name:
            parameter.mul_(4)
    model.save_pretrained(folder)
    return str(folder)


def generated(names: Sequence[str] = NAMES, size: int = 9, seed: int = 0) -> list[TaskData]:
    return [TaskData(BY_NAME[n], generate_items(n, size, seed), "a test") for n in names]


def write_files(folder: Path, data: Sequence[TaskData]) -> Path:
    """The data as BBH's own files."""
    folder.mkdir(parents=True, exist_ok=True)
    for found in data:
        examples = [{"input": item.input, "target": item.target} for item in found.items]
        text = json.dumps({"canary": "none", "examples": examples})
        (folder / f"{found.task.name}.json").write_text(text)
    return folder


def bbh_run(
    service: Any,
    model: str,
    num_tasks: int,
    *,
    seed: int = 42,
    max_parallel: int = 16,
    context: int = 4096,
    **options: Any,
) -> BBHRun:
    given: dict[str, Any] = {
        "k": 3,
        "num_training_steps": 4,
        "batch_size": 2,
        "lora_rank": 4,
        "lr": 0.004,
    }
    config = BBHConfig(**{**given, **options})
    assert config.problems() == []
    settings = config.settings(
        model_name=model,
        seed=seed,
        max_parallel=max_parallel,
        context=context,
        num_tasks=num_tasks,
    )
    return BBHRun(service, chat_tokenizer(), settings)


def without_times(results: Sequence[TaskResult]) -> list[TaskResult]:
    return [replace(result, train_seconds=0.0, eval_seconds=0.0) for result in results]
