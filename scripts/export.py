"""A trained adapter as a folder that other programs take.

    uv run scripts/export.py checkpoint_path=runs/sft/XXXX output_dir=mine
    uv run scripts/export.py checkpoint_path=runs/sft/XXXX output_dir=adapter merged=false

A run's folder stands for its last checkpoint; its checkpoints.jsonl says where the others are.
merged=true writes the base model with the adapter added into its weights, in float32, with its
tokenizer (where it has one) and generation config: what transformers, vLLM and our own model_name=
open. It is right where PEFT's own merge is not: an adapted output head that is tied to the
embeddings is untied.
merged=false writes the adapter alone, in PEFT's format, its base model named so that PEFT finds it.
"""

import contextlib
import logging
from pathlib import Path

import chz
from dotenv import load_dotenv

from training.checkpoint_folders import checkpoint_folder
from training.models import lacks_tokenizer, load_tokenizer, resolve_model
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    held_log,
    raise_problems,
)
from utils.config.help import OUTPUT, WHAT
from utils.runs.files import shown_path
from utils.terminal import command


@chz.chz(typecheck=True)
class Config:
    checkpoint_path: str = chz.field(
        doc="the adapter: a checkpoint of ours, a run's folder or a PEFT folder", metadata=WHAT
    )
    model_name: str | None = chz.field(
        default=None, doc="embedded, a folder or a hub id; default: what the checkpoint names"
    )
    merged: bool = chz.field(default=True, doc="base model and adapter as one; false: the adapter")

    output_dir: Path = chz.field(doc="the new folder; it must not exist", metadata=OUTPUT)

    @chz.validate
    def _check(self) -> None:
        problems = []
        if "://" in self.checkpoint_path:
            problems.append(
                f"checkpoint_path={self.checkpoint_path!r}: only adapter folders of the local "
                "backend can be exported; a service's weights have to be downloaded first"
            )
        elif not self.checkpoint_path:
            problems.append("checkpoint_path is empty: a folder of weights is needed")
        elif not Path(self.checkpoint_path).expanduser().is_dir():
            problems.append(f"checkpoint_path={self.checkpoint_path!r}: no such file or folder")
        if self.output_dir.expanduser().exists():
            problems.append(
                f"output_dir={str(self.output_dir)!r} exists; choose another name, nothing is "
                "overwritten"
            )
        raise_problems(problems)


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    output_dir = config.output_dir.expanduser()
    # torch comes with these
    from training.backends.local.checkpoints import base_model_of, copy_peft_folder, read_state

    if not config.merged:
        with held_log(), as_config_errors():
            state = read_state(checkpoint_folder(config.checkpoint_path))
            base = resolve_model(base_model_of(state, config.model_name))
            # PEFT takes a relative name from wherever it is started
            name = str(base.resolve()) if isinstance(base, Path) else base
            copy_peft_folder(state, output_dir, name)
        print(f"\nAdapter (PEFT format): {shown_path(output_dir)}\nIts base model: {name}")
        return

    from training.backends.local.service import LocalServiceClient

    # on the CPU, where the engine computes in float32
    with contextlib.closing(LocalServiceClient(device="cpu")) as service:
        with held_log(), as_config_errors():
            checkpoint = checkpoint_folder(config.checkpoint_path)
            base_name = base_model_of(read_state(checkpoint), config.model_name)
            has_tokenizer = not lacks_tokenizer(base_name)
            if has_tokenizer:
                # one that is broken is to be known before the weights are loaded
                load_tokenizer(base_name)
            trainer = service.create_training_client_from_state(checkpoint, config.model_name)
        with as_config_errors():
            trainer.export_merged(output_dir).result()
    shown = shown_path(output_dir)
    if has_tokenizer:
        talk = command("chat", model_name=shown)
        print(f"\nModel, adapter and tokenizer: {shown}\n\nTalk to it:  {talk}")
    else:
        print(f"\nModel and adapter: {shown}\nNo tokenizer: {base_name} has none")


if __name__ == "__main__":
    config_entrypoint(main)
