"""What SEAL's reports say of the run that they are of, under SEAL's names."""

import datetime
from pathlib import Path
from typing import Any

from training.domains.knowledge.inner import InnerSettings
from utils.config.entrypoint import load_yaml


def seal_settings(
    run_path: Path,
    settings: InnerSettings,
    *,
    dataset: str,
    split_newlines: bool,
    learning_rate: float | None = None,
    num_epochs: int | None = None,
) -> dict[str, Any]:
    """timestamp (MMDD_HHMMSS, UTC, of when the run began), dataset, split_newlines and lora_params;
    `learning_rate` and `num_epochs` where they are not those of the settings."""
    started = load_yaml(run_path / "config.yaml")["meta"]["started"]
    lora = settings.adapt.lora
    return {
        "timestamp": f"{datetime.datetime.fromisoformat(started):%m%d_%H%M%S}",
        "dataset": dataset,
        "split_newlines": split_newlines,
        "lora_params": {
            "rank": lora["rank"],
            "alpha": lora["lora_alpha"],
            "dropout": lora.get("lora_dropout", 0.0),
            "epochs": settings.num_epochs if num_epochs is None else num_epochs,
            "lr": settings.learning_rate if learning_rate is None else learning_rate,
            "batch_size": settings.adapt.batch_size,
            "grad_accum_steps": 1,
        },
    }
