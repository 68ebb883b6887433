"""The openai client, inspect_ai, lm-evaluation-harness, verifiers and the cookbook's capture proxy
against scripts/serve.py.

    uv run benchmarks/serving_clients.py
    uv run benchmarks/serving_clients.py clients='["verifiers","capture proxy"]'

Starts the server, trains an adapter on it by the tinker SDK, and asks the base model and the
adapter, by its tinker:// path, small sums through each client, which runs unmodified in an
environment of its own (uv makes it, from its cache or the index; Python and the tokenizer are the
only things shared). The same prompts then go to the engine in this process, with the adapter's
downloaded files. Ends with status 1 where a text or a score is not equal or a logprob differs by
more than 1e-4, and where the adapter answers as its base model does. Appends to
benchmarks/results/serving_clients.jsonl. What a small model makes of sums says nothing about it.
"""

import logging
import re
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import chz
import numpy as np
from asked_sums import ASK as ASK_DIRECTLY
from asked_sums import CLIENTS as PACKAGES
from asked_sums import MAX_TOKENS, SUMS, Served, Told, beginning, endings, question
from capture_proxy import CAPTURE, ask_capture_proxy
from common import Report, Settings, local_service, prepare
from server_process import Server, served

from training.adapt import mean_weighted
from training.api import Datum, ModelInput, SamplingParams
from training.backends.tinker import datum_to_sdk
from training.chat import (
    datum_from_tokens,
    parse_continuation,
    parse_response,
    render_completion,
    render_prompt,
    render_training,
    stop_sequences,
)
from training.domains.base import Message
from training.models import load_tokenizer, resolve_model

logger = logging.getLogger(__name__)

ASK = {**ASK_DIRECTLY, "capture proxy": ask_capture_proxy}
CLIENTS = {**PACKAGES, "capture proxy": CAPTURE}
BASE, ADAPTER = "base model", "adapter"
TOLERANCE = 1e-4
STEPS, BATCH, RATE, RANK = 20, 16, 2e-3, 8


@chz.chz(typecheck=True)
class Config(Settings):
    clients: list[str] = chz.field(default_factory=lambda: list(ASK), doc=f"of {', '.join(ASK)}")

    @chz.validate
    def _clients(self) -> None:
        if unknown := sorted(set(self.clients) - ASK.keys()):
            raise ValueError(f"clients={unknown}: allowed are {', '.join(ASK)}")


def main(config: Config) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = prepare(config, {})
    report = Report("serving_clients", config)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        device = f"device={config.device}"
        with served(config.model, device, threads=config.threads) as server:
            path = trained(config, server, place / "adapter")
            told = {}
            for client in config.clients:
                for who, name in ((BASE, config.model), (ADAPTER, path)):
                    work = place / f"{client} {who}".replace(" ", "_")
                    work.mkdir()
                    tokenizer = str(resolve_model(config.model))
                    model = Served(server.url, server.key, name, tokenizer)
                    told[client, who] = ASK[client](model, work)
        with local_service(config) as service:
            base = service.create_sampling_client(base_model=config.model)
            adapter = service.create_sampling_client(str(place / "adapter"), config.model)
            wanted = {BASE: in_process(base), ADAPTER: in_process(adapter)}
    problems = compare(report, told, wanted)
    for problem in problems:
        report.note(f"NOT EQUAL: {problem}")
    if not problems:
        report.note(f"All texts and scores are equal, logprobs within {TOLERANCE:g}.")
    report.finish()
    if problems:
        sys.exit(1)


def trained(config: Config, server: Server, folder: Path) -> str:
    """The path of an adapter that was taught sums, other than those asked; its files as the server
    gives them out go to `folder`."""
    import tinker

    tokenizer = load_tokenizer(config.model)
    rng = np.random.default_rng(0)
    service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
    trainer = service.create_lora_training_client(config.model, rank=RANK, seed=0).result()
    for step in range(STEPS):
        data = mean_weighted([datum for _ in range(BATCH // 2) for datum in taught(tokenizer, rng)])
        output = trainer.forward_backward([datum_to_sdk(datum) for datum in data], "cross_entropy")
        trainer.optim_step(tinker.AdamParams(learning_rate=RATE)).result()
        logger.info("step %d: loss %.3f", step, output.result().metrics["loss:sum"])
    path = trainer.save_weights_for_sampler("sums").result().path
    exported = trainer.save_weights_external("sums").result().path
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    folder.mkdir()
    for name, address in rest.get_external_weights_urls(exported).result().urls.items():
        with urllib.request.urlopen(address) as reply:
            (folder / name).write_bytes(reply.read())
    return path


def taught(tokenizer: Any, rng: np.random.Generator) -> list[Datum]:
    """A sum as a question and as a line."""
    pair = SUMS[0]
    while pair in SUMS:
        pair = tuple(rng.integers(1, 30, 2).tolist())
    right = endings(*pair)[0]
    messages = [
        Message(role="user", content=question(*pair)),
        Message(role="assistant", content=right.strip()),
    ]
    rendered = [
        render_training(tokenizer, messages),
        render_completion(tokenizer, beginning(*pair), f"{right}\n"),
    ]
    return [datum_from_tokens(*tokens) for tokens in rendered]


def in_process(sampler: Any) -> dict[str, list[Any]]:
    """What each task comes to without a server. Lines are cut here, not by the sampler."""
    tokenizer = sampler.get_tokenizer()
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, stop=stop_sequences(tokenizer))
    to_user = replace(params, stop=stop_sequences(tokenizer, "role_colon"))
    chats, texts, scored, plain = [], [], [], []
    for pair in SUMS:
        asked = render_prompt(tokenizer, [{"role": "user", "content": question(*pair)}])
        begun = tokenizer.encode(beginning(*pair), add_special_tokens=False)
        chats.append(sampler.sample(ModelInput.from_ints(asked), 1, params))
        texts.append(sampler.sample(ModelInput.from_ints(begun), 1, params))
        # as the cookbook's role_colon makes it, part by part
        parts = (tokenizer.bos_token or "", "User:", f" {question(*pair)}\n\n", "Assistant:")
        tokens = [t for part in parts for t in tokenizer.encode(part, add_special_tokens=False)]
        plain.append(sampler.sample(ModelInput.from_ints(tokens), 1, to_user))
        for ending in endings(*pair):
            tokens = tokenizer.encode(beginning(*pair) + ending, add_special_tokens=False)
            logprobs = sampler.compute_logprobs(ModelInput.from_ints(tokens))
            scored.append((logprobs, len(begun)))
    answers = [parse_response(tokenizer, sampled_tokens(chat)) for chat in chats]
    written = [parse_continuation(tokenizer, sampled_tokens(text), ["\n"]) for text in texts]
    colon = [
        parse_response(tokenizer, sampled_tokens(answer), template="role_colon") for answer in plain
    ]
    sums = [sum(logprobs.result()[start:]) for logprobs, start in scored]
    return {
        "chat": answers,
        "streamed": answers,
        "chat line": [answer.partition("\n")[0] for answer in answers],
        "written": written,
        "colon": colon,
        "colon, Anthropic": colon,
        "choice": [sums[at : at + 2] for at in range(0, len(sums), 2)],
    }


def sampled_tokens(future: Any) -> list[int]:
    [sequence] = future.result().sequences
    return sequence.tokens


# ------------------------------------------------------------------------------------- comparison


def score_of(client: str, task: str, answers: list[Any]) -> float:
    """The share of right answers by the rule of that client's task."""
    right = []
    for (a, b), answer in zip(SUMS, answers, strict=True):
        if task == "choice":
            right.append(answer[0] == max(answer))
        elif client == "lm-eval":
            right.append(re.findall(r"\d+", answer)[:1] == [str(a + b)])
        else:
            right.append(str(a + b) in answer)
    return sum(right) / len(right)


def difference(told: list[Any], wanted: list[Any]) -> float:
    """The largest of logprobs, or how many texts are not equal."""
    if isinstance(wanted[0], str):
        return float(sum(t != w for t, w in zip(told, wanted, strict=True)))
    return float(np.abs(np.subtract(told, wanted)).max())


def compare(
    report: Report,
    told: Mapping[tuple[str, str], Mapping[str, Told]],
    wanted: Mapping[str, Mapping[str, list[Any]]],
) -> list[str]:
    """A row per client, model and task; what is wrong, a sentence each."""
    problems = []
    for (client, who), tasks in told.items():
        for task, (answers, score) in tasks.items():
            here = score_of(client, task, wanted[who][task])
            through = score_of(client, task, answers) if score is None else score
            apart = difference(answers, wanted[who][task])
            report.add(
                task,
                CLIENTS[client],
                model=who,
                **{"through the client": through, "in process": here, "difference": apart},
            )
            if through != here or apart > (TOLERANCE if task == "choice" else 0):
                problems.append(f"{client}, {who}, {task}: {answers} for {wanted[who][task]}")
    for task, answers in wanted[BASE].items():
        if answers == wanted[ADAPTER][task]:
            problems.append(f"{task}: the adapter answers as its base model does")
    return problems


if __name__ == "__main__":
    chz.nested_entrypoint(main)
