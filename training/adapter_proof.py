"""Proof that an adapter is what answers: a fixed text's logprobs by the sampler that is going to
answer, by the trainer it was made of and by the base model.

A sampler that lost its adapter answers as the base model does, and its answers do not tell.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.api import (
    Datum,
    ModelInput,
    SamplingClient,
    ServiceClient,
    TrainingClient,
)
from utils.json_files import read_json_object
from utils.runs.files import atomic_write_text

logger = logging.getLogger(__name__)

TEXT = "The quick brown fox jumps over the lazy dog."
NUM_TOKENS = 8
# of the first look, in which all that are compared share one pass
QUICK_TOKENS = 3
PROOF_FILE = "adapter_proof.json"
# how far a sampler may be from its trainer, in nats: at most in float32, root mean square otherwise
FLOAT32_LIMIT = 1e-4
BFLOAT16_LIMIT = 0.05
# where all of B is smaller than this, logprobs may well round to the base model's
NEGLIGIBLE_B = 1e-6
UNTRAINED = (
    "every B of its adapter is zero (a checkpoint of step 0?), so it is the base model itself"
)


class AdapterNotUsedError(RuntimeError):
    """What answers is not the adapter that was asked for."""


@dataclass(frozen=True)
class Figures:
    """Distances in nats over the probe's tokens: the sampler's logprobs from the base model's (the
    largest) and from the trainer's (the largest, and root mean square); None without a trainer.

    `untrained` says whether every B is zero, None where the backend does not tell.
    """

    from_base: float
    from_trainer: float | None = None
    from_trainer_rms: float | None = None
    untrained: bool | None = False

    def __str__(self) -> str:
        parts = [f"{self.from_base:.2g} nats at most from the base model's"]
        if self.from_trainer is not None:
            parts.append(
                f"{self.from_trainer:.2g} at most (RMS {self.from_trainer_rms:.2g}) from the "
                "trainer's"
            )
        return ", ".join(parts)


class Probed(NamedTuple):
    """What a backend found: the base model's dtype, the adapter's size of B
    (first_sizeable()), and the float64 logprobs [T] of the same tokens by sampler, base model and
    trainer, if any. `of_one_program` is False where another program than the trainer's samples."""

    dtype: str
    size_of_b: float
    sampled: np.ndarray
    base: np.ndarray
    trained: np.ndarray | None
    of_one_program: bool = True


def first_sizeable(largest: Iterable[float]) -> float:
    """An adapter's size of B, from the largest absolute value of each B matrix: the first that is
    not negligible, without a look at the rest, else the largest. 0: the adapter does nothing."""
    size = 0.0
    for value in largest:
        # nor is what is no number
        if not value <= NEGLIGIBLE_B:
            return value
        size = max(size, value)
    return size


class Distance(NamedTuple):
    """Of a sampler's logprobs [T] from those that it should have, in nats."""

    largest: float
    rms: float

    @classmethod
    def between(cls, sampled: np.ndarray, expected: np.ndarray) -> "Distance":
        difference = sampled - expected
        return cls(float(np.abs(difference).max()), float(np.sqrt((difference**2).mean())))

    def is_allowed(self, dtype: str | None, scale: float = 1.0) -> bool:
        """Whether the sampler of a base model of this dtype may be as far from its trainer; what is
        no number may not."""
        if dtype == "float32":
            return self.largest <= scale * FLOAT32_LIMIT
        return self.rms <= BFLOAT16_LIMIT


def allowed_distance(dtype: str | None, scale: float = 1.0) -> str:
    return (
        f"{scale * FLOAT32_LIMIT:.2g} at most" if dtype == "float32" else f"RMS {BFLOAT16_LIMIT:g}"
    )


# None: there are no numbers
Judge = Callable[[Probed | None], None]


def compare(
    name: str,
    sampled: np.ndarray,
    base: np.ndarray,
    trained: np.ndarray | None = None,
    *,
    dtype: str | None,
    size_of_b: float | None,
    of_one_program: bool = True,
) -> Figures:
    """Of the logprobs [T] of the same tokens. `dtype` is the base model's, `size_of_b` the
    adapter's; None where the backend does not tell. Two programs round what an adapter adds each in
    its own way, so that with `of_one_program` False more is allowed in float32 for an adapter that
    moves the text by more than a nat.

    Raises AdapterNotUsedError where the sampler is the base model although B is not zero, or
    further than allowed from the trainer. Where the dtype is not known, so that neither is the
    noise, only if it is nearer to the base model as well.
    """
    from_base = float(np.abs(sampled - base).max())
    if from_base == 0 and size_of_b == 0:
        return Figures(0.0, untrained=True)
    untrained = None if size_of_b is None else size_of_b == 0
    if trained is None:
        figures = Figures(from_base, untrained=untrained)
    else:
        distance = Distance.between(sampled, trained)
        figures = Figures(from_base, *distance, untrained)
        scale = 1.0 if of_one_program else max(1.0, from_base)
        too_far, allowed = not distance.is_allowed(dtype, scale), allowed_distance(dtype, scale)
        if too_far and (dtype is not None or from_base < distance.largest):
            is_base = "; it answers as the base model does" if from_base == 0 else ""
            raise AdapterNotUsedError(
                f"{name}: the sampler does not have the trainer's adapter{is_base}. The logprobs "
                f"of a test text are {figures}; allowed from the trainer's is {allowed}"
            )
        if too_far:
            logger.warning(
                "%s: the sampler's logprobs of a test text are %s; usual is %s from the trainer's",
                *(name, figures, allowed),
            )
    if from_base == 0 and size_of_b is not None:
        if size_of_b > NEGLIGIBLE_B:
            raise AdapterNotUsedError(
                f"{name}: the sampler answers exactly as the base model does, although its adapter "
                f"is trained (B has values like {size_of_b:.2g}): the adapter is not in use"
            )
        logger.warning(
            "%s: its adapter is so small (B has values up to %.2g) that a test text has the very "
            "logprobs of the base model",
            *(name, size_of_b),
        )
    return figures


def settles_it(sampled: np.ndarray, base: np.ndarray, *, dtype: str | None) -> bool:
    """Whether logprobs [T] that come of one pass tell enough: the sampler is further from the base
    model than the rounding of other rows explains."""
    allowed = FLOAT32_LIMIT if dtype == "float32" else BFLOAT16_LIMIT
    return bool(np.abs(sampled - base).max() > 2 * allowed)


class AdapterProof:
    """The proofs of one run on one base model; those that succeed are logged, and stored in the
    run's adapter_proof.json, once. `figures` has what they found so far, by name.

    `with_answers`: for scripts that ask every sampler they make for something. The local backend
    then looks when it reads the first prompts, which costs a fraction of a pass, and not a whole
    one; who waits for an answer gets what is raised.
    """

    def __init__(
        self,
        service: ServiceClient,
        base_model: str,
        run_path: Path | None = None,
        *,
        with_answers: bool = False,
    ) -> None:
        self.figures: dict[str, Figures] = {}
        self._service = service
        self._base_model = base_model
        self._file = None if run_path is None else run_path / PROOF_FILE
        self._with_answers = with_answers
        self._proven = False

    def sampler(self, trainer: TrainingClient, name: str) -> SamplingClient:
        """A sampler of the trainer's weights as they are. The first of a trained adapter is held
        against its trainer and the base model; see compare() for what is raised.

        In the local backend no other request runs sooner, later or with others because of that.
        """
        if self._proven:
            return trainer.save_weights_and_get_sampling_client().result()
        probe = getattr(trainer, "save_weights_and_probe", None)
        if probe is None:
            sampler = trainer.save_weights_and_get_sampling_client().result()
            self._look(sampler, name, trainer)
            return sampler

        def judge(probed: Probed | None) -> None:
            self._proven = False
            self._judge(name, probed)

        tokens = probe_tokens(trainer.get_tokenizer())
        made = probe(tokens, judge, with_answers=self._with_answers).result()
        if made.probes:
            # one at a time: the next is looked at if this one proves nothing
            self._proven = True
        return made

    def check(
        self,
        sampler: SamplingClient,
        name: str,
        *,
        trainer: TrainingClient | None = None,
        checkpoint: str | None = None,
        asked_before: Sequence[SamplingClient] = (),
    ) -> None:
        """Holds the sampler of an adapter against the base model, and against its `trainer` where
        there is one; `checkpoint` is what it was loaded from otherwise. See compare() for what is
        raised. A checkpoint whose B is zero is told to be the base model without a look.

        With `with_answers` it is looked at when it is first asked, or, without a trainer and if
        that is sooner, any of `asked_before`, other samplers on that model.
        """

        def judge(probed: Probed | None) -> None:
            self._judge(name, probed)

        probe = getattr(sampler if trainer is None else trainer, "probe", None)
        if probe is None:
            self._look(sampler, name, trainer)
            return
        tokens = probe_tokens(sampler.get_tokenizer())
        if trainer is not None:
            probe(sampler, tokens, judge, with_answers=self._with_answers).result()
            return
        assert checkpoint is not None
        size_of_b = self._service.size_of_b(checkpoint)  # type: ignore[attr-defined]
        if size_of_b == 0:
            self._tell(name, Figures(0.0, untrained=True))
            return
        waiting = [sampler, *asked_before] if self._with_answers else []
        probe(tokens, judge, size_of_b=size_of_b, with_answers_of=waiting)

    def _look(self, sampler: SamplingClient, name: str, trainer: TrainingClient | None) -> None:
        """Through the API alone, as at a remote backend."""
        tokens = probe_tokens(sampler.get_tokenizer())
        text = ModelInput.from_ints(tokens)
        base = self._service.create_sampling_client(base_model=self._base_model)
        futures = [client.compute_logprobs(text) for client in (sampler, base)]
        trained = None
        if trainer is not None:
            [output] = (
                trainer.forward([probe_datum(tokens)], "cross_entropy").result().loss_fn_outputs
            )
            trained = output["logprobs"].to_numpy().astype(float)
        sampled, of_base = (np.array(future.result()[1:], float) for future in futures)
        figures = compare(name, sampled, of_base, trained, dtype=None, size_of_b=None)
        untrained = trained is not None and Distance.between(trained, of_base).is_allowed("float32")
        # where nothing was trained yet, the next one is looked at
        if figures.from_base > 0 or not untrained:
            self._tell(name, figures)

    def _judge(self, name: str, probed: Probed | None) -> None:
        # what is no number is an error of each answer
        if probed is not None:
            dtype, size_of_b, sampled, base, trained, one = probed
            figures = compare(
                *(name, sampled, base, trained),
                dtype=dtype,
                size_of_b=size_of_b,
                of_one_program=one,
            )
            self._tell(name, figures)

    def _tell(self, name: str, figures: Figures) -> None:
        self.figures[name] = figures
        if figures.untrained:
            logger.warning("%s: %s", name, UNTRAINED)
        elif figures.from_base == 0:
            if figures.untrained is None:
                logger.warning("%s: a test text has the very logprobs of the base model", name)
        else:
            logger.info("%s is in use: the logprobs of a test text are %s", name, figures)
            # a remote backend's noise is no proof
            self._proven = figures.untrained is False or figures.from_base > BFLOAT16_LIMIT
        if self._file is not None:
            stored = read_json_object(self._file) if self._file.is_file() else {}
            if name not in stored:
                stored[name] = asdict(figures)
                atomic_write_text(self._file, json.dumps(stored, indent=2) + "\n")


def probe_tokens(tokenizer: Any) -> list[int]:
    """The first tokens of the test text."""
    return tokenizer.encode(TEXT, add_special_tokens=False)[:NUM_TOKENS]


def probe_datum(tokens: Sequence[int]) -> Datum:
    fields = {"target_tokens": list(tokens[1:]), "weights": [1.0] * (len(tokens) - 1)}
    return Datum(ModelInput.from_ints(tokens[:-1]), fields)
