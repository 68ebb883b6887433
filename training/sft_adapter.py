"""The adapter of a fine-tuning run: where it begins, and that it is what answers in the end."""

from pathlib import Path
from typing import Any

from training.adapter_proof import AdapterProof
from training.api import SamplingClient, TrainingClient
from training.checkpoint_folders import check_checkpoint
from training.connect import has_own_engines
from training.models import check_rank, resolve_model
from utils.config.entrypoint import problems_of


def model_problems(config: Any, started_from: str | None) -> list[str]:
    """What is wrong with the model, or the adapter to go on from, as far as their files tell."""
    if started_from is None:
        return problems_of(lambda: check_rank(config.model_name, "lora_rank", config.lora_rank))
    problems = problems_of(lambda: resolve_model(config.model_name))
    if has_own_engines(config.backend):
        wrong = problems_of(lambda: check_checkpoint(started_from, config.model_name))
        problems += [f"checkpoint_path: {problem}" for problem in wrong]
    return problems


def make_trainer(
    config: Any, service: Any, checkpoint: str | None, started_from: str | None
) -> TrainingClient:
    """The run's own checkpoint with its optimizer, the adapter to go on from, or a new one."""
    if checkpoint is not None:
        return service.create_training_client_from_state_with_optimizer(
            checkpoint, config.model_name
        )
    if started_from is not None:
        return service.create_training_client_from_state(started_from, config.model_name)
    options: dict[str, Any] = {"rank": config.lora_rank, "seed": config.seed}
    if config.lora_alpha is not None:
        options["lora_alpha"] = config.lora_alpha
    return service.create_lora_training_client(
        config.model_name, train_unembed=config.train_unembed, **options
    )


def proven_sampler(
    config: Any, service: Any, trainer: TrainingClient, checkpoint: str, run: Path
) -> SamplingClient:
    """What answers with the trained adapter, held against the trainer when it is first asked: the
    last checkpoint as it is read back, or the service's own sampler."""
    proof = AdapterProof(service, config.model_name, run, with_answers=True)
    if not has_own_engines(config.backend):
        return proof.sampler(trainer, "the trained adapter")
    sampler = service.create_sampling_client(checkpoint, config.model_name)
    proof.check(sampler, "the trained adapter", trainer=trainer)
    return sampler
