"""Which architectures the engine serves right: every causal LM of transformers, tiny and random.

    uv run benchmarks/architectures.py
    uv run benchmarks/architectures.py only='["bloom","lfm2"]'

Each is written to a folder and run through the API: logprobs of sequences together (two of them
with a common prompt) and alone, LoRA logprobs and gradients, greedy and seeded sampling with and
without an adapter, prompts of several lengths together. The reference is the same folder opened by
transformers with attn_implementation="eager" in float32, one sequence at a time, without a cache,
where an adapter is W + scale B A. Exported adapters are also read back by PEFT.

Writes docs/architectures.md where all were run, and appends to
benchmarks/results/architectures.jsonl.
"""

import logging
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import chz
import numpy as np
from common import RESULTS, randomise_adapters
from tiny_architectures import CONTEXT, VOCAB, architectures, save_tiny_architecture

from training.api import Datum, ModelInput, SamplingParams
from utils.runs.files import append_jsonl, atomic_write_text
from utils.runs.progress import progress
from utils.runs.provenance import package_versions, run_meta
from utils.runs.tables import text_table
from utils.terminal import print_anything

logger = logging.getLogger(__name__)

DOCS = Path(__file__).parent.parent / "docs" / "architectures.md"
# Nats, and parts of the largest gradient.
TOLERANCE = 1e-4
MAX_TOKENS = 12
_PRELOADED = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "peft",
    "training.backends.local.service",
)
_VERDICTS = {
    "right": "Right",
    "refused": "Refused",
    "wrong": "Wrong",
    "crash": "Crash",
    "not built": "Not tried",
}


@chz.chz(typecheck=True)
class Config:
    only: list[str] | None = chz.field(
        default=None, doc="model types and variants (falcon/alibi); default: all"
    )
    processes: int = chz.field(default=2, doc="architectures tried at once, one thread each")
    seconds: float = chz.field(default=120.0, doc="time limit for one architecture")
    docs_file: Path | None = chz.field(
        default=None, doc="the table; default: docs/architectures.md, and with only= none"
    )
    results_dir: Path | None = chz.field(
        default=None, doc="folder of the .jsonl; default: benchmarks/results, and with only= none"
    )

    @chz.validate
    def _names(self) -> None:
        # a list of transformers' own; its import is too slow for --help
        if self.only is not None and (unknown := sorted({*self.only} - {*architectures()})):
            raise ValueError(f"only={unknown}: allowed are {', '.join(architectures())}")

    @chz.validate
    def _limits(self) -> None:
        if self.processes < 1 or self.seconds <= 0:
            raise ValueError(
                f"processes={self.processes}, seconds={self.seconds}: numbers above 0 are needed"
            )


@dataclass
class Finding:
    """`differences` are in nats, of gradients in parts of the largest one; `text` is the engine's
    sentence, or why there is none; `peft` says how PEFT reads the exported adapter."""

    architecture: str
    verdict: str
    differences: dict[str, float] = field(default_factory=dict)
    text: str = ""
    peft: str = ""

    @property
    def largest(self) -> float | None:
        values = list(self.differences.values())
        # max() would lose NaN
        return max(values) if values and not np.isnan(values).any() else None


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    print_anything()
    started = time.perf_counter()
    findings = run_all(config.only or architectures(), config.processes, config.seconds)
    print(summary_table(findings))
    logger.info("%d architectures in %.0f s", len(findings), time.perf_counter() - started)
    docs = config.docs_file or (None if config.only else DOCS)
    if docs is not None:
        atomic_write_text(docs, markdown(findings))
        logger.info("wrote %s", docs)
    folder = config.results_dir or (None if config.only else RESULTS)
    if folder is not None:
        run = run_meta()
        for finding in findings:
            row = {"benchmark": "architectures", **asdict(finding), "run": run}
            append_jsonl(folder / "architectures.jsonl", row)


# --------------------------------------------------------------------------------------- processes


def run_all(names: list[str], processes: int, seconds: float) -> list[Finding]:
    """Each in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    waiting, running, found = list(names), {}, {}
    with progress(len(names), "architectures", "model") as bar:
        while waiting or running:
            while waiting and len(running) < processes:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(waiting[0], sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = (waiting.pop(0), process, time.monotonic() + seconds)
            first = min(deadline for _, _, deadline in running.values())
            ready = wait(list(running), timeout=max(0.0, first - time.monotonic()))
            for receiver in list(running):
                name, process, deadline = running[receiver]
                if receiver in ready:
                    found[name] = _received(receiver, name)
                elif time.monotonic() >= deadline:
                    process.kill()
                    found[name] = Finding(name, "crash", text=f"no result within {seconds:g} s")
                else:
                    continue
                process.join()
                receiver.close()
                del running[receiver]
                bar.update(1)
    return [found[name] for name in names]


def _received(receiver: Connection, name: str) -> Finding:
    try:
        return receiver.recv()
    except EOFError:
        return Finding(name, "crash", text="the process died")


def _child(name: str, sender: Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="architecture-") as folder:
        sender.send(try_architecture(name, Path(folder)))


# -------------------------------------------------------------------------------- one architecture


def try_architecture(name: str, folder: Path, seed: int = 0) -> Finding:
    """Builds the model in `folder` and compares what the engine says of it."""
    import torch

    torch.set_num_threads(1)
    try:
        with _quiet():
            model = save_tiny_architecture(folder / "model", name, seed)
            reference = Reference(model)
    except Exception as error:
        # whatever transformers raises: it is the table's entry
        return Finding(name, "not built", text=_line_of(error))
    finding = Finding(name, "crash")
    try:
        with _quiet():
            _compare(finding, model, folder / "checkpoints", reference, seed)
    except Exception as error:
        finding.text = _line_of(error)
    return finding


def _compare(
    finding: Finding, model: str, checkpoints: Path, reference: "Reference", seed: int
) -> None:
    """Fills in what was found; what it raises is the engine's crash."""
    from training.backends.local.service import LocalServiceClient

    with LocalServiceClient(checkpoint_dir=checkpoints, device="cpu") as service:
        try:
            client = service.create_lora_training_client(model, rank=4, seed=seed)
        except ValueError as error:
            if not _is_ours(error):
                raise
            finding.verdict = "refused"
            finding.text = str(error).replace(model, finding.architecture)
            return
        found = finding.differences
        rng = np.random.default_rng(seed)
        _compare_logprobs(client, reference, rng, found)
        sampler = service.create_sampling_client(base_model=model)
        _compare_samples(sampler, reference, rng, found, "sampling")
        randomise_adapters([client], seed)
        with reference.adapted(client):
            _compare_training(client, reference, rng, found)
            adapted = client.save_weights_and_get_sampling_client().result()
            _compare_samples(adapted, reference, rng, found, "LoRA sampling")
        finding.peft = _read_by_peft(client, model, rng)
    right = all(difference <= TOLERANCE for difference in found.values())
    finding.verdict = "right" if right else "wrong"


def _compare_logprobs(
    client: Any, reference: "Reference", rng: np.random.Generator, found: dict[str, float]
) -> None:
    data = [_datum(rng, tokens) for tokens in _sequences(rng)]
    together = _logprobs(client.forward(data, "cross_entropy").result())
    futures = [client.forward([datum], "cross_entropy") for datum in data]
    for datum, packed, future in zip(data, together, futures, strict=True):
        wanted = reference.logprobs(_tokens(datum), _targets(datum)).detach().numpy()
        _note(found, "together", packed - wanted)
        _note(found, "alone", _logprobs(future.result())[0] - wanted)


def _compare_training(
    client: Any, reference: "Reference", rng: np.random.Generator, found: dict[str, float]
) -> None:

    data = [_datum(rng, tokens, weighted=True) for tokens in _sequences(rng)]
    outputs = _logprobs(client.forward_backward(data, "cross_entropy").result())
    for datum, got in zip(data, outputs, strict=True):
        wanted = reference.logprobs(_tokens(datum), _targets(datum))
        weights = datum.loss_fn_inputs["weights"].to_torch()
        (-(wanted * weights).sum()).backward()
        _note(found, "LoRA", got - wanted.detach().numpy())
    pairs = reference.gradients(client)
    largest = max(float(wanted.abs().max()) for _, wanted in pairs)
    for got, wanted in pairs:
        _note(found, "gradients", ((got - wanted) / largest).numpy())


def _compare_samples(
    client: Any,
    reference: "Reference",
    rng: np.random.Generator,
    found: dict[str, float],
    kind: str,
) -> None:
    """Prompts of several lengths in one batch; logprobs of what came, and whether greedy is."""
    shared = _random_tokens(rng, 19)
    prompts = [_random_tokens(rng, n) for n in (3, 21)]
    prompts += [shared + _random_tokens(rng, n) for n in (2, 5)]
    greedy = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, stop=[])
    seeded = SamplingParams(max_tokens=MAX_TOKENS, seed=7, stop=[])
    futures = [
        (prompt, params, client.sample(ModelInput.from_ints(prompt), number, params))
        for prompt, number, params in zip(
            prompts * 2, [1, 2, 1, 1] * 2, [greedy] * 4 + [seeded] * 4, strict=True
        )
    ]
    for prompt, params, future in futures:
        # greedy samples of one prompt are one sequence: once is enough
        sequences = future.result().sequences
        for sequence in sequences[: 1 if params is greedy else None]:
            tokens = list(prompt)
            for token, got in zip(sequence.tokens, sequence.logprobs, strict=True):
                wanted = reference.next_logprobs(tokens)
                _note(found, kind, got - wanted[token])
                if params is greedy:
                    _note(found, f"{kind}, greedy", wanted.max() - wanted[token])
                tokens.append(token)


def _read_by_peft(client: Any, model: str, rng: np.random.Generator) -> str:
    """How far PEFT's reading of the exported adapter is from the engine's, in words."""
    from peft import PeftModel

    data = [_datum(rng, tokens) for tokens in _sequences(rng)]
    outputs = _logprobs(client.forward(data, "cross_entropy").result())
    path = client.save_weights_for_sampler("peft").result().path
    try:
        twin = Reference(model, wrap=lambda hf: PeftModel.from_pretrained(hf, path))
        wanted = [twin.logprobs(_tokens(d), _targets(d)).detach().numpy() for d in data]
    except Exception as error:
        # PEFT's own limits, whatever they raise
        return _line_of(error)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(outputs, wanted, strict=True))
    return "" if worst <= TOLERANCE else f"{worst:.2g} nats off"


class Reference:
    """The model by transformers, eager, in float32; one sequence at a time, without a cache."""

    def __init__(self, folder: str, wrap: Any = lambda model: model) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        self._model: Any = wrap(model.requires_grad_(False).eval())
        self._parts: dict[str, tuple[Any, Any]] = {}
        logits = self._logits([5, 6, 7])
        if logits.shape != (3, VOCAB) or not logits.isfinite().all():
            raise ValueError(f"logits {tuple(logits.shape)} or not finite")

    def _logits(self, tokens: list[int]) -> Any:
        import torch

        return self._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]

    def logprobs(self, tokens: list[int], targets: list[int]) -> Any:
        import torch

        logprobs = self._logits(tokens).float().log_softmax(-1)
        return logprobs.gather(1, torch.tensor(targets).unsqueeze(1)).squeeze(1)

    def next_logprobs(self, tokens: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self._logits(tokens)[-1].float().log_softmax(-1).numpy()

    @contextmanager
    def adapted(self, client: Any) -> Iterator[None]:
        """With W + scale B A for the weights that the client's adapter belongs to."""
        from torch.nn.utils import parametrize

        from training.backends.local.decoder import HEAD

        modules = []
        for path, low_rank in client._adapter.layers.items():
            if path == HEAD:
                module = self._model.get_output_embeddings()
            else:
                module = self._model.base_model.get_submodule(path.removeprefix("."))
            a, b = (t.detach().clone().requires_grad_() for t in (low_rank.a, low_rank.b))
            delta = _delta(a, b, low_rank.scale, transposed=type(module).__name__ == "Conv1D")
            parametrize.register_parametrization(module, "weight", delta)
            modules.append(module)
            self._parts[path] = (a, b)
        yield
        for module in modules:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)

    def gradients(self, client: Any) -> list[tuple[Any, Any]]:
        """The client's and the reference's, of every A and B."""
        import torch

        pairs = []
        for path, low_rank in client._adapter.layers.items():
            for got, leaf in zip(
                (low_rank.grad_a, low_rank.grad_b), self._parts[path], strict=True
            ):
                wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                pairs.append((got.detach().clone(), wanted))
        return pairs


def _delta(a: Any, b: Any, scale: float, *, transposed: bool) -> Any:
    import torch

    class Delta(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            delta = scale * (b @ a)
            return weight + (delta.T if transposed else delta)

    return Delta()


def _note(found: dict[str, float], kind: str, differences: Any) -> None:
    worst = float(np.abs(differences).max())
    # NaN stays
    found[kind] = worst if not worst <= found.get(kind, 0.0) else found.get(kind, 0.0)


def _sequences(rng: np.random.Generator) -> list[list[int]]:
    shared = _random_tokens(rng, 21)
    own = [_random_tokens(rng, n) for n in (2, 19, 40)]
    return [*own, *(shared + _random_tokens(rng, n) for n in (3, 14))]


def _random_tokens(rng: np.random.Generator, length: int) -> list[int]:
    assert length < CONTEXT
    return rng.integers(3, VOCAB, length).tolist()


def _datum(rng: np.random.Generator, tokens: list[int], *, weighted: bool = False) -> Datum:
    inputs: dict[str, Any] = {"target_tokens": _random_tokens(rng, len(tokens))}
    if weighted:
        inputs["weights"] = rng.normal(0.5, 1.0, len(tokens)).astype(np.float32)
    return Datum(ModelInput.from_ints(tokens), inputs)


def _tokens(datum: Datum) -> list[int]:
    return datum.model_input.to_ints()


def _targets(datum: Datum) -> list[int]:
    return datum.loss_fn_inputs["target_tokens"].to_numpy().tolist()


def _logprobs(output: Any) -> list[np.ndarray]:
    return [o["logprobs"].to_numpy() for o in output.loss_fn_outputs]


# ------------------------------------------------------------------------------------------- words


def _is_ours(error: BaseException) -> bool:
    """Raised by the engine, not by what it calls."""
    import training

    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(training.__path__[0]))


def _line_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + ' ...'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice on tiny random models, which some give on stderr directly."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def summary_table(findings: list[Finding]) -> str:
    rows = [
        [f.architecture, f.verdict, f.largest, _in_words(f), f.peft]
        for verdict in _VERDICTS
        for f in findings
        if f.verdict == verdict
    ]
    columns = ["architecture", "verdict", "largest difference", "", "read by PEFT"]
    return text_table(columns, rows, max_width=90)


def _in_words(finding: Finding) -> str:
    wrong = [
        f"{kind} {value:.2g}"
        for kind, value in finding.differences.items()
        if not value <= TOLERANCE
    ]
    return "; ".join(filter(None, [finding.text, ", ".join(wrong)]))


def markdown(findings: list[Finding]) -> str:
    """The page docs/architectures.md."""
    versions = package_versions(("torch", "transformers", "peft"))
    of_verdict = {v: [f for f in findings if f.verdict == v] for v in _VERDICTS}
    counts = ", ".join(f"{len(found)} {verdict}" for verdict, found in of_verdict.items() if found)
    lines = [
        "# Architectures",
        "",
        _INTRODUCTION,
        "",
        f"Of {len(findings)} architectures: {counts}. "
        f"{datetime.now(UTC):%Y-%m-%d}, {', '.join(f'{k} {v}' for k, v in versions.items())}, "
        "CPU, float32. Written by",
        "",
        "    uv run benchmarks/architectures.py",
    ]
    for verdict, heading in _VERDICTS.items():
        if found := of_verdict[verdict]:
            lines += ["", f"## {heading} ({len(found)})", "", _EXPLANATIONS[verdict], ""]
            lines += _rows_of(verdict, found)
    return "\n".join([*lines, ""])


_INTRODUCTION = """\
Which causal language models of transformers the local engine trains and samples right. Each is
built tiny and random, with every kind of layer its family has, and run through the API: logprobs of
sequences together (two with a common prompt) and alone, LoRA logprobs and gradients, greedy and
seeded sampling with and without an adapter. The reference is transformers' eager code in float32,
one sequence at a time, without a cache."""
_EXPLANATIONS = {
    "right": f"Every difference is at most {TOLERANCE:g} (nats; gradients: parts of the largest). "
    "Where PEFT reads the exported adapter otherwise than the engine, the last column says how.",
    "refused": "With this one sentence, when the model is opened or an adapter is made for it.",
    "wrong": "The differences above the tolerance.",
    "crash": "The last line of the error.",
    "not built": "No tiny model could be made or run by transformers itself.",
}


def _rows_of(verdict: str, findings: list[Finding]) -> list[str]:
    if verdict == "right":
        head = ["| architecture | largest difference | read by PEFT |", "|---|---|---|"]
        return head + [
            f"| {f.architecture} | {f.largest:.1g} | {_cell(f.peft)} |" for f in findings
        ]
    head = ["| architecture | |", "|---|---|"]
    return head + [f"| {f.architecture} | {_cell(_in_words(f))} |" for f in findings]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    chz.nested_entrypoint(main)
