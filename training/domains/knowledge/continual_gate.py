"""The gate of continual self-edits: new adapters are scaled down until they cost little of what was
known, those of all sequences side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from statistics import fmean
from typing import Any

from training.api import Datum, ModelInput, RequestFailedError, TrainingClient
from training.domains.knowledge.anchors import ANCHOR_TOP_K
from training.domains.knowledge.answers import Item
from training.domains.knowledge.gate import (
    BUDGETS,
    GateDecision,
    GateKind,
    accuracy_lost,
    nats_lost,
    scale_search,
)
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.inner import InnerLoop
from training.domains.knowledge.soft_targets import answer_datum, divergences


class GateSearch:
    """Finds the scales, by the costs of one kind."""

    def __init__(
        self,
        service: Any,
        inner: InnerLoop,
        judge: Judge,
        kind: GateKind,
        *,
        budget: float | None = None,
    ) -> None:
        self._service = service
        self._inner = inner
        self._judge = judge
        self._kind = kind
        self._budget = BUDGETS[kind] if budget is None else budget
        self._base_model = inner.settings.base_model

    def scaled(
        self,
        folders: Mapping[int, str],
        below: Mapping[int, str],
        learned: Mapping[int, Sequence[Item]],
        known: Mapping[int, Sequence[bool | None]],
    ) -> tuple[dict[int, str], dict[int, float]]:
        """By sequence: the folders of what is let in (none of what is refused) and its scales, 0 of
        what is refused. `below` are the folders of what was known before ("": the base model),
        `learned` the questions about it, `known` the verdicts on them."""
        self._remember(below, learned, known)
        searches: dict[int, Generator[float, float, GateDecision]] = {}
        tries: dict[int, float] = {}
        for s in folders:
            searches[s] = scale_search(self._budget)
            tries[s] = next(searches[s])
        decided: dict[int, GateDecision] = {}
        while tries:
            clients = {s: self._scaled(folders[s], scale) for s, scale in tries.items()}
            for s, cost in self._costs(clients, learned).items():
                try:
                    tries[s] = searches[s].send(cost)
                except StopIteration as end:
                    decided[s] = end.value
                    del tries[s]
        scales = {s: decided[s].scale or 0.0 for s in folders}
        let_in = {}
        for s, scale in scales.items():
            if scale == 1.0:
                let_in[s] = folders[s]
            elif scale:
                saved = self._scaled(folders[s], scale).save_weights_for_sampler("scaled")
                let_in[s] = saved.result().path
        return let_in, scales

    # ------------------------------------------------------------------------------------- private

    def _scaled(self, folder: str, scale: float) -> TrainingClient:
        return self._service.create_training_client_scaled(folder, scale, self._base_model)

    def _remember(
        self,
        below: Mapping[int, str],
        learned: Mapping[int, Sequence[Item]],
        known: Mapping[int, Sequence[bool | None]],
    ) -> None:
        """What the models before said."""
        self._known = known
        if self._kind == "nats":
            clients = {s: self._trainer(folder) for s, folder in below.items()}
            self._logprobs = self._scores(clients, learned)
        elif self._kind == "kl":
            self._said = self._answers(below, learned)

    def _costs(
        self, clients: Mapping[int, TrainingClient], learned: Mapping[int, Sequence[Item]]
    ) -> dict[int, float]:
        """Means over the questions; NaN of what does not answer."""
        answerer = self._inner.answerer
        costs = dict.fromkeys(clients, float("nan"))
        if self._kind == "nats":
            for s, after_Q in self._scores(clients, learned).items():
                costs[s] = nats_lost(self._logprobs[s], after_Q)
        elif self._kind == "kl":
            futures = {s: c.forward(self._said[s], "cross_entropy") for s, c in clients.items()}
            for s, future in futures.items():
                with contextlib.suppress(RequestFailedError):
                    costs[s] = fmean(divergences(self._said[s], future.result()))
        else:
            samplers = {
                s: client.save_weights_and_get_sampling_client().result()
                for s, client in clients.items()
            }
            asked = {s: answerer.ask(learned[s], sampler) for s, sampler in samplers.items()}
            for s, futures_Q in asked.items():
                try:
                    answers_Q = answerer.read(learned[s], futures_Q, None)
                except RequestFailedError:
                    continue
                pairs = zip(learned[s], answers_Q, strict=True)
                after_Q = self._judge([(i.passage, i.question, a.text) for i, a in pairs])
                costs[s] = accuracy_lost(self._known[s], after_Q)
        return costs

    def _scores(
        self, clients: Mapping[int, TrainingClient], learned: Mapping[int, Sequence[Item]]
    ) -> dict[int, list[float]]:
        """Log-probabilities of the right answers, of the models that can tell."""
        futures = {}
        for s, client in clients.items():
            futures[s] = self._inner.answerer.score(learned[s], client)
        found = {}
        for s, future in futures.items():
            # settings without choices: a datum for each question
            assert future is not None and not self._inner.settings.choices
            try:
                outputs = future.result().loss_fn_outputs
            except RequestFailedError:
                continue
            found[s] = [float(output["logprobs"].to_numpy().sum()) for output in outputs]
        return found

    def _answers(
        self, below: Mapping[int, str], learned: Mapping[int, Sequence[Item]]
    ) -> dict[int, list[Datum]]:
        """The answers of the models before as soft targets."""
        answerer = self._inner.answerer
        asked = {}
        for s, folder in below.items():
            sampler = self._service.create_sampling_client(folder or None, self._base_model)
            asked[s] = [
                sampler.sample(
                    ModelInput.from_ints(answerer.prompt(item)),
                    *(1, answerer.params),
                    topk_sample_logprobs=ANCHOR_TOP_K,
                )
                for item in learned[s]
            ]
        return {
            s: [
                answer_datum(answerer.prompt(item), future.result())
                for item, future in zip(learned[s], futures_Q, strict=True)
            ]
            for s, futures_Q in asked.items()
        }

    def _trainer(self, folder: str) -> TrainingClient:
        if folder:
            return self._service.create_training_client_from_state(folder, self._base_model)
        lora = self._inner.settings.adapt.lora
        return self._service.create_lora_training_client(self._base_model, seed=0, **lora)
