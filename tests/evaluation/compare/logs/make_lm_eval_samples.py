"""Writes the lm-eval samples of this folder, with lm-eval itself and no network or model:

    uv run --no-project --python 3.12 --with lm-eval==0.4.13 \
        tests/evaluation/compare/logs/make_lm_eval_samples.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

HERE = Path(__file__).parent
SUMS = [(2, 3), (4, 4), (11, 5), (17, 8), (12, 9), (23, 4), (28, 14), (21, 21)]
ANSWERS = {
    "base": ["5", "it is 8", "16", "24", "20", "26", "41", "= 42"],
    "tuned": ["5", "= 8", "16", "= 25", "20", "= 27", "= 42", "= 42"],
}
CHOICE = """
task: sums_choice
dataset_path: json
dataset_kwargs: {data_files: {test: "DATA"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{a}} + {{b}} ="
doc_to_choice: "{{[(a + b) | string, (a + b + 1) | string]}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """
task: sums_written
dataset_path: json
dataset_kwargs: {data_files: {test: "DATA"}}
test_split: test
output_type: generate_until
doc_to_text: "{{a}} + {{b}} ="
doc_to_target: "{{a + b}}"
generation_kwargs: {until: ["\\n"]}
metric_list: [{metric: exact_match}]
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "^= (.*)$"}, {function: take_first}]
  - name: last-number
    filter: [{function: regex, regex_pattern: "([0-9]+)$"}, {function: take_first}]
"""


class Written(LM):
    """Answers as it is told, and prefers the choice that such an answer names."""

    def __init__(self, answers):
        super().__init__()
        self.answers = {f"{a} + {b} =": text for (a, b), text in zip(SUMS, answers, strict=True)}

    def generate_until(self, requests, disable_tqdm=False):
        return [self.answers[request.args[0]] for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        named = [self.answers[request.args[0]].split()[-1] for request in requests]
        # where neither choice is named, the larger one wins
        return [
            (-1.0 if choice == text else -2.0 - 1 / int(choice), False)
            for text, choice in zip(
                named, (request.args[1].strip() for request in requests), strict=True
            )
        ]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "sums.jsonl")
        data.write_text(
            "".join(json.dumps({"a": a, "b": b, "tens": a // 10}) + "\n" for a, b in SUMS)
        )
        for name, text in (("choice", CHOICE), ("written", WRITTEN)):
            Path(folder, f"{name}.yaml").write_text(text.replace("DATA", str(data)))
        for name, answers in ANSWERS.items():
            found = lm_eval.simple_evaluate(
                Written(answers),
                tasks=["sums_choice", "sums_written"],
                task_manager=TaskManager(include_path=folder, include_defaults=False),
                log_samples=True,
                bootstrap_iters=0,
            )
            tracker = EvaluationTracker(output_path=str(Path(folder, name)))
            samples = found.pop("samples")
            tracker.save_results_aggregated(results=found, samples=samples)
            for task in samples:
                tracker.save_results_samples(task_name=task, samples=samples[task])
            shutil.rmtree(HERE / f"lm_eval_{name}", ignore_errors=True)
            (HERE / f"lm_eval_{name}").mkdir()
            for path in Path(folder, name).rglob("samples_*.jsonl"):
                shutil.copy(path, HERE / f"lm_eval_{name}" / path.name)
