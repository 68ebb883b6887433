"""A batch of inner runs of knowledge incorporation, against the same adapters one by one.

    uv run benchmarks/knowledge_inner.py
    uv run benchmarks/knowledge_inner.py passages=2 edits=2 rival_adapters=1 padded_steps=1
    uv run benchmarks/knowledge_inner.py quick=true

Made passages with their generator's edits, `preset=seal`: SEAL's documents, LoRA on queries and
values, one document per step. The engine trains all adapters together and answers all of their
questions in one batch (training/domains/knowledge/inner.py). The rival is HF + PEFT on the same
documents for as many steps, adapter after adapter, then greedy generate() with all questions of a
passage in one batch: once without padding, and once as SEAL trains, every document padded to
`pad_to` tokens and the padding learned too. Every contender runs in a process of its own, which
gives its peak memory.

One by one takes as much longer as there are more adapters, and a padded step as long as any other,
so HF + PEFT trains `rival_adapters` of them whole, and `padded_steps` padded steps are timed and
scaled to all; the rows say so. Seconds and ratios are per adapter. The losses of the first steps
must agree, from the same adapter on. Appends to benchmarks/results/knowledge_inner.jsonl.
"""

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

import chz
import numpy as np
from common import PeakMemory, Report, Settings, load_peft, prepare, unless_quick

from training.adapt import mean_weighted
from training.api import AdamParams, APIFuture, Datum, SamplingClient
from training.backends.local.service import LocalServiceClient
from training.domains.knowledge.answers import Answerer, Item
from training.domains.knowledge.documents import document_texts, text_datum
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import InnerJob, InnerLoop, InnerSettings, preset
from training.domains.knowledge.sources import Source, open_source
from training.loop import epoch_batches, learning_rate_factor
from training.models import context_length, load_tokenizer

TOGETHER, RIVAL = "engine, together", "HF + PEFT, one by one"
GOAL, PADDED_GOAL = 2.0, 20.0
# steps whose losses are compared; the later ones show the updates
COMPARED_STEPS = 3
# relative, between losses of the two sides
TOLERANCES = {"cpu": 1e-3, "cuda": 5e-2}


@chz.chz(typecheck=True)
class Config(Settings):
    repeats: int = chz.field(default=1, doc="timed rounds; tables show their median")
    passages: int = chz.field(default=4, doc="made passages, of 16 questions each")
    edits: int = chz.field(default=4, doc="edits of each passage; each has an adapter")
    # all of them have as many lines for every passage
    form: Literal["statements", "qa", "cloze"] = chz.field(
        default="statements", doc="of the edits: 8 lines, qa 16"
    )
    epochs: int | None = chz.field(default=None, doc="default: preset=seal's")
    max_answer_tokens: int = chz.field(default=24, doc="longest answer")
    rival_adapters: int = chz.field(default=2, doc="adapters that HF + PEFT trains at most")
    pad_to: int = chz.field(default=2048, doc="tokens of a padded document")
    padded_steps: int = chz.field(default=3, doc="padded steps that are timed")

    @chz.validate
    def _sizes(self) -> None:
        for name in (
            *("passages", "edits", "max_answer_tokens", "rival_adapters", "padded_steps"),
            "epochs",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1 is needed")


QUICK = {
    **{"passages": 1, "edits": 2, "epochs": 1, "max_answer_tokens": 3},
    **{"rival_adapters": 1, "pad_to": 1024, "padded_steps": 1},
}


class Measured(NamedTuple):
    """Seconds are per adapter. `losses` are those of the first steps, `start` is the folder of the
    adapter that they begin with; `right` is the share of right answers."""

    timed: str
    train_seconds: float
    train_mib: float
    losses: list[float]
    start: str
    answer_seconds: float = 0.0
    answer_mib: float = 0.0
    right: float | None = None


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.device is not None
    run: Callable[..., Measured] = unless_quick(config)
    rounds: dict[str, list[Measured]] = {"engine": [], "rival": [], "padded": []}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for _ in range(config.repeats):
            engine = run(train_together, config, folder)
            rounds["engine"].append(engine)
            rounds["rival"].append(run(train_one_by_one, config, engine.start))
            rounds["padded"].append(run(train_padded, config, engine.start))
    report = Report("knowledge_inner", config)
    add_rows(report, config, rounds)
    ours, theirs = rounds["engine"][0].losses, rounds["rival"][0].losses
    difference = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    report.note(f"First {len(ours)} losses {difference:.2g} apart at most (relative)")
    report.finish()
    if difference > TOLERANCES[config.device]:
        raise SystemExit(f"first losses differ by {difference:.3g}: not the same work")


def add_rows(report: Report, config: Config, rounds: dict[str, list[Measured]]) -> None:
    """Training alone, and with the answers."""
    planned = batches(config, jobs(config)[0])
    tokens = sum(datum.model_input.length for batch in planned for datum in batch)
    names = {"engine": TOGETHER, "rival": RIVAL, "padded": f"{RIVAL}, padded to {config.pad_to}"}
    goals = {"engine": None, "rival": GOAL, "padded": PADDED_GOAL}
    count = config.passages * config.edits
    # an adapter that learned padding too is asked in the same way
    answered = {**rounds, "padded": rounds["rival"]}
    for case in ("train", "train and answer"):
        seconds: dict[str, list[float]] = {}
        for key, measured in rounds.items():
            seconds[key] = [m.train_seconds for m in measured]
            mib = max(m.train_mib for m in measured)
            values: dict[str, Any] = {}
            if case == "train and answer":
                pairs = zip(measured, answered[key], strict=True)
                seconds[key] = [m.train_seconds + other.answer_seconds for m, other in pairs]
                mib = max(mib, *(m.answer_mib for m in measured))
                if (right := measured[0].right) is not None:
                    values = {"right %": round(100 * right, 1)}
            report.add(
                f"{case}, {count} adapters",
                names[key],
                seconds=seconds[key],
                tokens=tokens if case == "train" else None,
                against=seconds["engine"],
                goal=goals[key],
                timed=measured[0].timed,
                **{"all adapters s": round(seconds[key][0] * count, 1), "peak MiB": round(mib)},
                **values,
            )
    report.note("median s and ratio: per adapter; all adapters s: that times the adapters.")
    report.note(
        f"An adapter: {len(planned)} steps on {tokens:,} tokens of text. Of the padded one "
        f"{config.padded_steps} steps are timed and scaled to all; its answers are those of the "
        "row above it."
    )


# ------------------------------------------------------------------------------------- what is done


def settings_of(config: Config) -> InnerSettings:
    """preset=seal; the log-probabilities of right answers are left out, as the rival's are."""
    chosen = preset(
        "seal",
        base_model=config.model,
        logprobs=False,
        max_answer_tokens=config.max_answer_tokens,
        context=context_length(config.model),
    )
    return dataclasses.replace(
        chosen,
        adapt=dataclasses.replace(chosen.adapt, max_parallel=config.passages * config.edits),
        num_epochs=config.epochs or chosen.num_epochs,
    )


def world(config: Config) -> Source:
    return open_source("made", num_train=0, num_test=config.passages)


def jobs(config: Config) -> list[InnerJob]:
    source = world(config)
    found = []
    for passage in source.passages("test"):
        for seed in range(config.edits):
            edit = source.template_edit(passage, config.form, seed)
            assert edit is not None
            found.append(InnerJob(passage, edit))
    return found


def documents(config: Config, job: InnerJob) -> list[Datum]:
    assert job.edit is not None
    tokenizer = load_tokenizer(config.model)
    texts = document_texts(job.passage, job.edit, settings_of(config).documents)
    return [text_datum(tokenizer, text) for text in texts]


def batches(config: Config, job: InnerJob) -> list[list[Datum]]:
    """The rival's, all epochs; the engine draws its own order of the same documents."""
    settings = settings_of(config)
    rng = np.random.default_rng(0)
    return epoch_batches(
        documents(config, job), settings.adapt.batch_size, settings.num_epochs, rng
    )


def learning_rate(settings: InnerSettings, step: int, num_steps: int) -> float:
    factor = learning_rate_factor(settings.adapt.schedule, step, num_steps)
    return settings.learning_rate * factor


# -------------------------------------------------------------------------------------- the engine


class _TimedAnswerer(Answerer):
    """Notes when training is over: when the last adapter is asked its questions."""

    def __init__(self, *given: Any, memory: PeakMemory) -> None:
        super().__init__(*given)
        self._memory = memory
        self.trained_at = self.trained_mib = 0.0

    def ask(self, items_Q: Sequence[Item], sampler: SamplingClient) -> list[APIFuture[Any]]:
        self.trained_at, self.trained_mib = time.perf_counter(), self._memory.mib()
        return super().ask(items_Q, sampler)


def train_together(config: Config, folder: str) -> Measured:
    """All adapters by InnerLoop; one adapter's first epoch warms up. Leaves an untrained adapter,
    which the rival begins with, in `folder`."""
    prepare(config, {})
    memory = PeakMemory(config.device)
    settings, todo = settings_of(config), jobs(config)
    tokenizer, shots = load_tokenizer(config.model), world(config).shots
    with LocalServiceClient(checkpoint_dir=folder, device=config.device) as service:
        losses, start = first_losses(service, config, todo[0])
        once = dataclasses.replace(settings, num_epochs=1)
        InnerLoop(service, tokenizer, once, RuleJudge(), shots).run(todo[:1], desc="warm-up")
        loop = InnerLoop(service, tokenizer, settings, RuleJudge(), shots)
        loop.answerer = timed = _TimedAnswerer(tokenizer, settings, shots, memory=memory)
        memory.reset()
        started = time.perf_counter()
        outcomes = loop.run(todo)
        ended, mib = time.perf_counter(), memory.mib()
    for outcome in outcomes:
        if outcome.failed is not None:
            raise SystemExit(f"an inner run failed: {outcome.failed}")
    return Measured(
        timed=f"{len(todo)} adapters",
        train_seconds=(timed.trained_at - started) / len(todo),
        train_mib=timed.trained_mib,
        losses=losses,
        start=start,
        answer_seconds=(ended - timed.trained_at) / len(todo),
        answer_mib=mib,
        right=fmean(c is True for outcome in outcomes for c in outcome.correct_Q),
    )


def first_losses(
    service: LocalServiceClient, config: Config, job: InnerJob
) -> tuple[list[float], str]:
    """The rival's first steps, by the engine; and the folder of the adapter as it was before."""
    settings, planned = settings_of(config), batches(config, job)
    client = service.create_lora_training_client(config.model, seed=0, **settings.adapt.lora)
    start = client.save_weights_for_sampler("start").result().path
    losses = []
    for step, batch in enumerate(planned[:COMPARED_STEPS]):
        future = client.forward_backward(mean_weighted(batch), "cross_entropy")
        client.optim_step(
            AdamParams(
                learning_rate=learning_rate(settings, step, len(planned)),
                beta2=settings.adapt.beta2,
                eps=settings.adapt.eps,
            )
        ).result()
        losses.append(future.result().metrics["loss:sum"])
    return losses, start


# --------------------------------------------------------------------------------------- the rival


class Rival:
    """A PEFT model, AdamW and generate(), one adapter at a time; each begins with the same one."""

    def __init__(self, config: Config, start: str) -> None:
        prepare(config, {})
        self._config = config
        self._settings = settings_of(config)
        self._tokenizer: Any = load_tokenizer(config.model)
        self._model = load_peft(config.model, start, config.device)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._trained]

    def train(
        self, planned: Sequence[list[Datum]], *, steps: int, pad_to: int | None
    ) -> list[float]:
        """The losses of the first `steps` steps of a fresh adapter."""
        import torch

        adapt = self._settings.adapt
        for parameter, value in zip(self._trained, self._start, strict=True):
            parameter.data.copy_(value)
        optimizer = torch.optim.AdamW(
            self._trained, betas=(0.9, adapt.beta2), eps=adapt.eps, weight_decay=0, fused=True
        )
        losses = []
        for step, batch in enumerate(planned[:steps]):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self._settings, step, len(planned))
            loss = self._model(**self._inputs(batch, pad_to), use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def _inputs(self, batch: list[Datum], pad_to: int | None) -> dict[str, Any]:
        """One document; where it is padded, its padding has labels as its text has."""
        import torch

        (datum,) = batch
        tokens = [*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].tolist()[-1]]
        padding = 0 if pad_to is None else pad_to - len(tokens)
        if padding < 0:
            raise SystemExit(f"pad_to={pad_to}: a document has {len(tokens)} tokens")
        row = torch.tensor([tokens + [self._tokenizer.eos_token_id] * padding])
        inputs = {"input_ids": row, "labels": row.clone()}
        if pad_to is not None:
            inputs["attention_mask"] = torch.tensor([[1] * len(tokens) + [0] * padding])
        return {key: value.to(self._config.device) for key, value in inputs.items()}

    def line_ends(self) -> list[int]:
        """The tokens that end an answer: those that hold the end of a line, and the model's."""
        tokenizer = self._tokenizer
        ends = [i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])]
        return [tokenizer.eos_token_id, *ends]

    def answer(self, prompts: Sequence[list[int]], ends: list[int]) -> list[str]:
        """Greedy, all prompts in one batch padded on the left."""
        import torch

        width = max(map(len, prompts))
        eos = self._tokenizer.eos_token_id
        tokens = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.no_grad():
            written = self._model.generate(
                input_ids=tokens.to(self._config.device),
                attention_mask=mask.to(self._config.device),
                do_sample=False,
                max_new_tokens=self._config.max_answer_tokens,
                eos_token_id=ends,
                pad_token_id=eos,
            )
        texts = self._tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        return [text.lstrip().partition("\n")[0].strip() for text in texts]


def train_one_by_one(config: Config, start: str) -> Measured:
    """Adapter after adapter without padding, each asked its questions after it is trained."""
    rival, memory = Rival(config, start), PeakMemory(config.device)
    todo = jobs(config)[: config.rival_adapters]
    planned_J = [batches(config, job) for job in todo]
    answerer = Answerer(load_tokenizer(config.model), settings_of(config), world(config).shots)
    ends = rival.line_ends()
    losses = rival.train(planned_J[0], steps=COMPARED_STEPS, pad_to=None)
    train_seconds = answer_seconds = train_mib = answer_mib = 0.0
    correct: list[bool | None] = []
    for job, planned in zip(todo, planned_J, strict=True):
        memory.reset()
        started = time.perf_counter()
        rival.train(planned, steps=len(planned), pad_to=None)
        trained = time.perf_counter()
        train_mib = max(train_mib, memory.mib())
        memory.reset()
        asked = time.perf_counter()
        questions = job.passage.questions
        texts = rival.answer([answerer.prompt(Item(job.passage, q)) for q in questions], ends)
        answered = [(job.passage, q, text) for q, text in zip(questions, texts, strict=True)]
        correct += RuleJudge()(answered)
        answer_seconds += time.perf_counter() - asked
        train_seconds += trained - started
        answer_mib = max(answer_mib, memory.mib())
    return Measured(
        timed=f"{len(todo)} adapters",
        train_seconds=train_seconds / len(todo),
        train_mib=train_mib,
        losses=losses,
        start=start,
        answer_seconds=answer_seconds / len(todo),
        answer_mib=answer_mib,
        right=fmean(c is True for c in correct),
    )


def train_padded(config: Config, start: str) -> Measured:
    """A few steps as SEAL makes them, scaled to those of an adapter; one before warms up."""
    rival, memory = Rival(config, start), PeakMemory(config.device)
    planned = batches(config, jobs(config)[0])
    steps = min(config.padded_steps, len(planned))
    rival.train(planned, steps=1, pad_to=config.pad_to)
    memory.reset()
    started = time.perf_counter()
    losses = rival.train(planned, steps=steps, pad_to=config.pad_to)
    seconds = time.perf_counter() - started
    return Measured(
        timed=f"{steps} steps",
        train_seconds=seconds / steps * len(planned),
        train_mib=memory.mib(),
        losses=losses,
        start=start,
    )


if __name__ == "__main__":
    chz.nested_entrypoint(main)
