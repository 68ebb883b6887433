"""Small sums as tasks of lm-evaluation-harness, inspect_ai, verifiers and the openai client, and
what came of them: each client's own form of a task, the command that runs it, its answers and
scores."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from environments import environment, variables

SUMS = [(2, 3), (4, 4), (11, 5), (17, 8), (12, 9), (23, 4), (28, 14), (21, 21)]
MAX_TOKENS = 12
OPENAI, INSPECT, LM_EVAL = "openai==3.57.0", "inspect-ai==0.3.285", "lm-eval[api]==0.4.13"
# the last one whose vf-eval takes an environment of load_environment() and -b URL
VERIFIERS = "verifiers==0.1.14"
# for lm-eval's tokenizer
TRANSFORMERS = "transformers==5.24.0"
CLIENT_SECONDS = 900
LM_EVAL_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
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
filter_list: [{{name: number, filter: [{{function: regex, regex_pattern: "(\\\\d+)"}},
  {{function: take_first}}]}}]
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
VERIFIERS_ENVIRONMENT = f"""
import verifiers as vf
from datasets import Dataset

def has_sum(completion, answer):
    return float(answer in completion[-1]["content"])

def load_environment():
    rows = [{{"question": f"{{a}} + {{b}} = ?", "answer": str(a + b)}} for a, b in {SUMS}]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[has_sum]))
"""


def question(a: int, b: int) -> str:
    return f"{a} + {b} = ?"


def beginning(a: int, b: int) -> str:
    return f"{a} + {b} ="


def endings(a: int, b: int) -> list[str]:
    """The right one and a wrong one."""
    return [f" {a + b}", f" {a + b + 1}"]


class Told(NamedTuple):
    """Of each sum, a text or the logprobs of its endings; `score`: what the client makes of them,
    None where it scores nothing itself."""

    answers: list[Any]
    score: float | None = None


@dataclass(frozen=True)
class Served:
    """A model of a running server. `tokenizer`: the folder that clients load it from."""

    url: str
    key: str
    model: str
    tokenizer: str


def ask_openai(served: Served, place: Path) -> dict[str, Told]:
    tasks = {
        "questions": [question(*pair) for pair in SUMS],
        "texts": [[beginning(*pair), *endings(*pair)] for pair in SUMS],
        "max_tokens": MAX_TOKENS,
    }
    (place / "tasks.json").write_text(json.dumps(tasks))
    script = Path(__file__).parent / "ask_openai.py"
    said = in_environment(
        [OPENAI],
        ["python", str(script), served.url, served.key, served.model, str(place / "tasks.json")],
        place,
    )
    return {task: Told(answers) for task, answers in json.loads(said.splitlines()[-1]).items()}


def ask_inspect(served: Served, place: Path) -> dict[str, Told]:
    (place / "sums.py").write_text(INSPECT_TASK)
    in_environment(
        [INSPECT, OPENAI],
        [
            *("inspect", "eval", "sums.py", "--model", f"openai-api/served/{served.model}"),
            *("--log-format", "json", "--log-dir", str(place / "logs"), "--display", "plain"),
        ],
        place,
        SERVED_BASE_URL=f"{served.url}/v1",
        SERVED_API_KEY=served.key,
    )
    [path] = (place / "logs").glob("*.json")
    log = json.loads(path.read_text(encoding="utf-8"))
    if log["status"] != "success":
        raise SystemExit(f"inspect_ai: {log['status']}: {log.get('error')}")
    answers = [sample["output"]["completion"] for sample in log["samples"]]
    [score] = log["results"]["scores"]
    return {"chat": Told(answers, score["metrics"]["accuracy"]["value"])}


def ask_verifiers(served: Served, place: Path) -> dict[str, Told]:
    (place / "sums.py").write_text(VERIFIERS_ENVIRONMENT)
    in_environment(
        [VERIFIERS, OPENAI],
        [
            *("vf-eval", "sums", "-m", served.model, "-b", f"{served.url}/v1"),
            *("-k", "SERVED_API_KEY", "-n", str(len(SUMS)), "-r", "1"),
            *("-T", "0", "-t", str(MAX_TOKENS), "-o", str(place / "out"), "--save-results"),
            *("--disable-tui", "--disable-env-server"),
        ],
        place,
        SERVED_API_KEY=served.key,
        PYTHONPATH=str(place),
    )
    return told_by_verifiers(place / "out")


def told_by_verifiers(out: Path) -> dict[str, Told]:
    """From the rollouts and the summary that it writes."""
    [path] = out.rglob("results.jsonl")
    rollouts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rollouts.sort(key=lambda rollout: rollout["example_id"])
    answers = [rollout["completion"][-1]["content"] for rollout in rollouts]
    summary = json.loads((path.parent / "metadata.json").read_text(encoding="utf-8"))
    return {"chat": Told(answers, summary["avg_reward"])}


def ask_lm_eval(served: Served, place: Path) -> dict[str, Told]:
    """`local-completions` scores endings by logprob and goes on with texts;
    `local-chat-completions` answers questions."""
    data = place / "sums.jsonl"
    data.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in SUMS))
    for name, kind, text, rest in (
        ("choice", "multiple_choice", "{{a}} + {{b}} =", CHOICE),
        ("written", "generate_until", "{{a}} + {{b}} =", WRITTEN),
        ("chat_line", "generate_until", "{{a}} + {{b}} = ?", WRITTEN),
    ):
        task = LM_EVAL_TASK.format(name=f"sums_{name}", data=data, kind=kind, text=text, rest=rest)
        (place / f"sums_{name}.yaml").write_text(task)
    run_lm_eval(
        *(served, place, "local-completions", ["choice", "written"]),
        {"base_url": f"{served.url}/v1/completions", "tokenizer": served.tokenizer},
        *("--batch_size", "4"),
    )
    run_lm_eval(
        *(served, place, "local-chat-completions", ["chat_line"]),
        {"base_url": f"{served.url}/v1/chat/completions"},
        "--apply_chat_template",
    )
    return {
        task: told_by_lm_eval(place, task.replace(" ", "_"))
        for task in ("choice", "written", "chat line")
    }


def run_lm_eval(
    served: Served,
    place: Path,
    kind: str,
    tasks: list[str],
    options: dict[str, str],
    *arguments: str,
) -> None:
    given = {"model": served.model, "max_retries": "1", **options}
    in_environment(
        [LM_EVAL, TRANSFORMERS],
        [
            *("lm_eval", "--model", kind),
            *("--model_args", ",".join(f"{name}={value}" for name, value in given.items())),
            *("--tasks", ",".join(f"sums_{task}" for task in tasks)),
            *("--include_path", str(place), "--output_path", str(place / "out"), "--log_samples"),
            *arguments,
        ],
        place,
        OPENAI_API_KEY=served.key,
    )


def told_by_lm_eval(place: Path, task: str) -> Told:
    """From the samples and results that it writes."""
    [path] = (place / "out").rglob(f"samples_sums_{task}_*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    for results in (place / "out").rglob("results_*.json"):
        scores = json.loads(results.read_text(encoding="utf-8"))["results"]
        if found := scores.get(f"sums_{task}"):
            break
    else:
        raise SystemExit(f"lm-eval: no results of {task} below {place / 'out'}")
    if task == "choice":
        logprobs = [[float(answer[0]) for [answer] in sample["resps"]] for sample in samples]
        return Told(logprobs, found["acc,none"])
    return Told([sample["resps"][0][0] for sample in samples], found["exact_match,number"])


CLIENTS = {
    "openai": OPENAI,
    "inspect_ai": INSPECT,
    "lm-eval": LM_EVAL,
    "verifiers": VERIFIERS,
}
ASK: dict[str, Callable[[Served, Path], dict[str, Told]]] = {
    "openai": ask_openai,
    "inspect_ai": ask_inspect,
    "lm-eval": ask_lm_eval,
    "verifiers": ask_verifiers,
}


def in_environment(packages: list[str], command: list[str], place: Path, **added: str) -> str:
    """What it prints; its own log goes to stderr. Raises SystemExit where it fails."""
    done = subprocess.run(
        [*environment(packages), *command],
        cwd=place,
        env=variables(HF_HOME=str(place / "hf"), **added),
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
        timeout=CLIENT_SECONDS,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout
