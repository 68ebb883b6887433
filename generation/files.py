"""The files that a run of scripts/generate.py leaves for others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generation.kinds import choose_kind
from generation.quality import Example, QualityReport, to_record
from utils.config.entrypoint import dump_yaml, to_plain
from utils.llm.ledger import Ledger
from utils.runs.provenance import run_meta


def write_params(config: Any, prompts: dict[str, list[str]], num_heldout: int, path: Path) -> None:
    """All settings but those that belong to this one run: its directory, and where it began."""
    settings = to_plain(config) | {"params_file": None, "log_path": None}
    settings |= {"subtypes": list(prompts), "prompts": prompts, "heldout_subtypes": num_heldout}
    # their numbers are those of the texts from now on
    settings |= {"num_subtypes": None, "prompts_per_subtype": None}
    dump_yaml(path, settings | {"meta": run_meta()})


def write_examples(
    config: Any,
    examples: Sequence[Example],
    quality: QualityReport,
    run_id: str,
    ledger: Ledger,
    path: Path,
) -> None:
    kind = choose_kind(config.type)
    dump_yaml(
        path,
        {
            "property": config.property,
            "type": config.type,
            "examples": [to_record(example, kind) for example in examples],
            "quality": quality.to_plain(),
            "meta": run_meta() | {"run_id": run_id, "calls": ledger.to_plain()},
        },
    )
