"""GSM8K: grade-school word problems with a numeric answer (Cobbe et al. 2021)."""

import logging
from pathlib import Path
from typing import Any

import chz

from training.api import ServiceClient
from training.domains.base import Problem, Reward, Split, Stateless
from training.grading import extract_final_answer, same_answer
from utils.config.entrypoint import raise_problems
from utils.config.help import SAMPLING, WHAT
from utils.json_files import read_json_lines
from utils.runs.files import expanded
from utils.runs.inputs import INPUT

logger = logging.getLogger(__name__)

HUB_NAME = "openai/gsm8k"
_MAX_PROBLEMS = 10


@chz.chz(typecheck=True)
class Gsm8kConfig:
    data_path: str | None = chz.field(
        default=None,
        doc="folder with train.jsonl and test.jsonl, or one .jsonl file for both splits; "
        f"None: {HUB_NAME} from the Hugging Face hub",
        metadata=INPUT | WHAT,
    )
    instruction: str = chz.field(
        default="Think step by step. End with the final answer, a number, in \\boxed{}.",
        doc="what stands after the question",
    )

    max_tokens: int = chz.field(
        default=256, doc="longest answer that is sampled", metadata=SAMPLING
    )


class Gsm8kDomain(Stateless):
    name = "gsm8k"

    def __init__(self, config: Gsm8kConfig, service: ServiceClient | None = None) -> None:
        """Raises FileNotFoundError where config.data_path names nothing; `service` is not used."""
        self.config = config
        self.max_tokens = config.max_tokens
        if config.data_path is not None:
            for split in ("train", "test"):
                _split_file(expanded(config.data_path), split)

    def problems(self, split: Split) -> list[Problem]:
        """Problem.data is the correct number as text. Raises ValueError for a malformed row."""
        if self.config.data_path is None:
            source = f"{HUB_NAME} ({split})"
            rows = [(f"{source}, row {i}", row) for i, row in enumerate(_load_hub(split))]
            problems = []
        else:
            path = _split_file(expanded(self.config.data_path), split)
            source, problems = str(path), []
            rows = read_json_lines(path, problems)
        made = []
        for i, (name, row) in enumerate(rows):
            wrong = _row_problem(row)
            if wrong is None:
                made.append(self._problem(row, f"gsm8k/{split}/{i}"))
            else:
                problems.append(f"{name}: {wrong}")
        raise_problems(problems, at_most=_MAX_PROBLEMS)
        logger.info("gsm8k %s: %d problems from %s", split, len(made), source)
        return made

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]:
        """1 for the right number, else 0."""
        return [
            [_grade(answer, problem.data) for answer in answers_G]
            for problem, answers_G in zip(problems_P, answers_P_G, strict=True)
        ]

    def _problem(self, row: dict[str, str], problem_id: str) -> Problem:
        text = f"{row['question'].strip()}\n\n{self.config.instruction}"
        return Problem(problem_id, [{"role": "user", "content": text}], _gold(row["answer"]))


def _row_problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"an object is needed, got {type(row).__name__}"
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        return f"question={question!r}: some text is needed"
    if not isinstance(answer, str) or "####" not in answer or not _gold(answer):
        return f"answer={answer!r}: a text that ends with '#### number' is needed"
    return None


def _gold(answer: str) -> str:
    return answer.rpartition("####")[2].strip()


def _grade(answer: str, gold: str) -> Reward:
    final = extract_final_answer(answer)
    if final is None:
        return Reward(0.0, False, "no \\boxed{} and no ####")
    right = same_answer(final, gold)
    return Reward(float(right), right, f"answered {final}, correct is {gold}")


def _split_file(path: Path, split: str) -> Path:
    found = path / f"{split}.jsonl" if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(
            f"data_path={str(path)!r}: no file {found}; give a folder with train.jsonl and "
            f"test.jsonl, one .jsonl file, or nothing for {HUB_NAME} from the hub"
        )
    return found


def _load_hub(split: Split) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(HUB_NAME, "main", split=split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{HUB_NAME} could not be fetched from the Hugging Face hub ({error}); check the "
            "network, or give a local copy: data_path=folder with train.jsonl and test.jsonl"
        ) from error
    return [dict(row) for row in loaded]
