"""lm-evaluation-harness and inspect_ai against the server, beside the same items in process.

    uv run benchmarks/serving_clients.py
    uv run benchmarks/serving_clients.py clients='["lm-eval"]'

Starts scripts/serve.py on a free port, with a store of its own, and the clients unmodified in
environments of their own (`uv run --no-project --with ...`), which needs a package index; then the
same sums go to the engine in this process. Ends with status 1 where a score differs. The items are
sums of small numbers; what the model makes of them says nothing about the model.
"""

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chz
from common import Report, Settings, local_service, prepare

from training.api import ModelInput, SamplingParams
from training.chat import parse_continuation, parse_response, render_prompt, stop_sequences
from training.models import resolve_model

ROOT = Path(__file__).resolve().parent.parent
KEY = "tml-of-this-benchmark"
SUMS = [(2, 3), (4, 4), (11, 5), (17, 8), (12, 9), (23, 4), (28, 14), (21, 21)]
MAX_TOKENS = 12
CLIENTS = {
    "lm-eval": ["lm-eval[api]==0.4.13", "transformers>=5"],
    "inspect_ai": ["inspect-ai==0.3.285", "openai"],
}
LM_EVAL_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{a}}}} + {{{{b}}}} ="
{rest}
"""
CHOICE = """doc_to_choice: "{{[' ' ~ (a + b), ' ' ~ (a + b + 1)]}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""
WRITTEN = f"""doc_to_target: "{{{{a + b}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: {MAX_TOKENS}, temperature: 0}}
metric_list: [{{metric: exact_match}}]
filter_list: [{{name: number, filter: [{{function: regex, regex_pattern: "(\\\\d+)"}}]}}]
"""
INSPECT_TASK = f"""
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes

@task
def sums():
    samples = [Sample(f"{{a}} + {{b}} = ?", target=str(a + b)) for a, b in {SUMS}]
    config = GenerateConfig(temperature=0, max_tokens={MAX_TOKENS})
    return Task(samples, scorer=includes(), config=config)
"""


@chz.chz(typecheck=True)
class Config(Settings):
    clients: list[str] = chz.field(
        default_factory=lambda: list(CLIENTS), doc=f"of {', '.join(CLIENTS)}"
    )

    @chz.validate
    def _clients(self) -> None:
        if unknown := sorted(set(self.clients) - CLIENTS.keys()):
            raise ValueError(f"clients={unknown}: allowed are {', '.join(CLIENTS)}")


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, {})
    report = Report("serving_clients", config)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with served(config, place) as url:
            told = {client: ASK[client](config, url, place) for client in config.clients}
    with local_service(config) as service:
        sampler = service.create_sampling_client(base_model=config.model)
        wanted = {client: IN_PROCESS[client](sampler) for client in config.clients}
    differ = []
    for client in config.clients:
        for task in wanted[client]:
            report.add(
                task, client, answers=told[client][task], **{"in process": wanted[client][task]}
            )
            if not alike(told[client][task], wanted[client][task]):
                differ.append(f"{client} {task}")
    report.note(f"answers differ: {', '.join(differ)}" if differ else "all answers are equal")
    report.finish()
    if differ:
        sys.exit(1)


def alike(told: Any, wanted: Any) -> bool:
    """Logprobs to rounding, all else exactly."""
    if isinstance(wanted, list):
        return len(told) == len(wanted) and all(map(alike, told, wanted))
    return math.isclose(told, wanted, abs_tol=1e-3) if isinstance(wanted, float) else told == wanted


@contextmanager
def served(config: Config, place: Path) -> Iterator[str]:
    """The URL of scripts/serve.py, which has loaded the model."""
    keys = place / "keys.txt"
    keys.write_text(KEY + "\n")
    arguments = [f"model_name={config.model}", "port=0", f"store_dir={place / 'store'}"]
    arguments += [f"api_keys_file={keys}", f"device={config.device}", "access_log=false"]
    process = subprocess.Popen(
        [sys.executable, "scripts/serve.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+:\d+", line):
                yield found[0]
                break
        else:
            raise RuntimeError("scripts/serve.py ended before it served; its stderr says why")
    finally:
        process.terminate()
        process.wait()


def run_client(client: str, command: list[str], place: Path, **environment: str) -> None:
    """In an environment of its own; Python 3.12, which both have wheels for."""
    packages = [part for package in CLIENTS[client] for part in ("--with", package)]
    uv = shutil.which("uv")
    assert uv is not None
    subprocess.run(
        [uv, "run", "--no-project", "--python", "3.12", *packages, *command],
        cwd=place,
        env={**os.environ, **environment, "HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1"},
        check=True,
        stdout=sys.stderr,
    )


# ------------------------------------------------------------------------------- through the server


def ask_lm_eval(config: Config, url: str, place: Path) -> dict[str, list[Any]]:
    """Which choice is likelier, and the number written, of each sum."""
    data = place / "sums.jsonl"
    data.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in SUMS))
    tasks = {
        "sums_choice": ("multiple_choice", CHOICE),
        "sums_written": ("generate_until", WRITTEN),
    }
    for name, (kind, rest) in tasks.items():
        text = LM_EVAL_TASK.format(name=name, data=data, kind=kind, rest=rest)
        (place / f"{name}.yaml").write_text(text)
    model = {
        "model": config.model,
        "base_url": f"{url}/v1/completions",
        "tokenizer": resolve_model(config.model),
        "max_retries": 1,
    }
    arguments = ",".join(f"{name}={value}" for name, value in model.items())
    run_client(
        "lm-eval",
        [
            *("lm_eval", "--model", "local-completions", "--model_args", arguments),
            *("--tasks", ",".join(tasks), "--include_path", str(place)),
            *("--output_path", str(place / "out"), "--log_samples"),
        ],
        place,
        OPENAI_API_KEY=KEY,
    )
    return {
        "sums_choice": [
            [round(float(answer[0]), 4) for answer in sample["filtered_resps"]]
            for sample in samples_of(place, "sums_choice")
        ],
        "sums_written": [sample["resps"][0][0] for sample in samples_of(place, "sums_written")],
    }


def samples_of(place: Path, task: str) -> list[dict[str, Any]]:
    [path] = (place / "out").rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def ask_inspect(config: Config, url: str, place: Path) -> dict[str, list[Any]]:
    (place / "sums.py").write_text(INSPECT_TASK)
    run_client(
        "inspect_ai",
        [
            *("inspect", "eval", "sums.py", "--model", f"openai-api/served/{config.model}"),
            *("--log-format", "json", "--log-dir", str(place / "logs"), "--display", "plain"),
        ],
        place,
        SERVED_BASE_URL=f"{url}/v1",
        SERVED_API_KEY=KEY,
    )
    [path] = (place / "logs").glob("*.json")
    log = json.loads(path.read_text(encoding="utf-8"))
    assert log["status"] == "success", log.get("error")
    return {"sums": [sample["output"]["completion"] for sample in log["samples"]]}


# --------------------------------------------------------------------------------------- in process


def lm_eval_in_process(sampler: Any) -> dict[str, list[Any]]:
    tokenizer = sampler.get_tokenizer()
    scored: list[Any] = []
    written = []
    for a, b in SUMS:
        prompt = tokenizer.encode(f"{a} + {b} =", add_special_tokens=False)
        futures = []
        for number in (a + b, a + b + 1):
            tokens = tokenizer.encode(f"{a} + {b} = {number}", add_special_tokens=False)
            futures.append(sampler.compute_logprobs(ModelInput.from_ints(tokens)))
        scored.append([round(sum(f.result()[len(prompt) :]), 4) for f in futures])
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, stop=["\n"])
        [sequence] = sampler.sample(ModelInput.from_ints(prompt), 1, params).result().sequences
        written.append(parse_continuation(tokenizer, sequence.tokens, ["\n"]))
    return {"sums_choice": scored, "sums_written": written}


def inspect_in_process(sampler: Any) -> dict[str, list[Any]]:
    tokenizer = sampler.get_tokenizer()
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, stop=stop_sequences(tokenizer))
    answers = []
    for a, b in SUMS:
        prompt = render_prompt(tokenizer, [{"role": "user", "content": f"{a} + {b} = ?"}])
        [sequence] = sampler.sample(ModelInput.from_ints(prompt), 1, params).result().sequences
        answers.append(parse_response(tokenizer, sequence.tokens))
    return {"sums": answers}


ASK = {"lm-eval": ask_lm_eval, "inspect_ai": ask_inspect}
IN_PROCESS = {"lm-eval": lm_eval_in_process, "inspect_ai": inspect_in_process}


if __name__ == "__main__":
    chz.nested_entrypoint(main)
