"""The model that is trained, as a source of answers: groups of samples per problem."""

from collections.abc import Sequence
from typing import Any

from training.adapter_proof import AdapterProof
from training.api import (
    APIFuture,
    ModelInput,
    SampledSequence,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    TrainingClient,
)
from training.chat import parse_response, render_prompt, stop_sequences
from training.domains.base import Domain, Problem
from training.rl.updates import Trajectory, seed_for


class Policy:
    """Answers a domain's problems with the trainer's weights as they are when it is asked.

    With `enforce_schema` only answers that fit the domain's JSON schema are sampled; without,
    invalid ones are sampled again, at most `max_resamples` times, and then stay as they are.
    `proof` holds the first sampler of trained weights against the trainer and the base model.
    """

    def __init__(
        self,
        trainer: TrainingClient,
        domain: Domain,
        *,
        enforce_schema: bool,
        max_resamples: int,
        seed: int,
        proof: AdapterProof | None = None,
    ) -> None:
        self.trainer = trainer
        self._domain = domain
        self._tokenizer = trainer.get_tokenizer()
        self._stop = stop_sequences(self._tokenizer)
        self._schema: dict[str, Any] | None = domain.json_schema if enforce_schema else None
        self._max_resamples = max_resamples
        self._seed = seed
        self._proof = proof

    def prompt(self, problem: Problem) -> list[int]:
        return render_prompt(self._tokenizer, problem.messages)

    def answers(
        self, problems_P: Sequence[Problem], *, size: int, temperature: float, key: Sequence[object]
    ) -> list[list[Trajectory]]:
        """A group of `size` answers to each problem; the same for the same weights and `key`."""
        prompts_P = [self.prompt(problem) for problem in problems_P]
        # a problem that comes twice in a batch gets other answers the second time
        seeds_P = [
            seed_for(self._seed, *key, index, problem.id)
            for index, problem in enumerate(problems_P)
        ]
        if self._proof is None:
            sampler = self.trainer.save_weights_and_get_sampling_client().result()
        else:
            sampler = self._proof.sampler(self.trainer, "the policy's adapter")
        futures_P = [
            self.request(sampler, prompt, size=size, temperature=temperature, seed=seed)
            for prompt, seed in zip(prompts_P, seeds_P, strict=True)
        ]
        groups_P_G = [
            [self._trajectory(prompt, sequence) for sequence in future.result().sequences]
            for prompt, future in zip(prompts_P, futures_P, strict=True)
        ]
        if self._schema is None and self._domain.json_schema is not None:
            self._resample(sampler, groups_P_G, seeds_P, temperature)
        return groups_P_G

    def request(
        self,
        sampler: SamplingClient,
        prompt: list[int],
        *,
        size: int,
        temperature: float,
        seed: int,
        max_tokens: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """The sampling request for one prompt; `max_tokens` instead of the domain's limit."""
        params = SamplingParams(
            max_tokens=max_tokens or self._domain.max_tokens,
            temperature=temperature,
            seed=seed,
            stop=self._stop,
            json_schema=self._schema,
        )
        return sampler.sample(ModelInput.from_ints(prompt), size, params)

    def _resample(
        self,
        sampler: SamplingClient,
        groups_P_G: list[list[Trajectory]],
        seeds_P: list[int],
        temperature: float,
    ) -> None:
        for attempt in range(1, self._max_resamples + 1):
            again = [
                (p, g)
                for p, group in enumerate(groups_P_G)
                for g, trajectory in enumerate(group)
                if self._domain.invalid(trajectory.text) is not None
            ]
            futures = [
                self.request(
                    sampler,
                    groups_P_G[p][g].prompt,
                    size=1,
                    temperature=temperature,
                    seed=seed_for(seeds_P[p], g, attempt),
                )
                for p, g in again
            ]
            for (p, g), future in zip(again, futures, strict=True):
                prompt = groups_P_G[p][g].prompt
                groups_P_G[p][g] = self._trajectory(prompt, future.result().sequences[0])

    def _trajectory(self, prompt: list[int], sequence: SampledSequence) -> Trajectory:
        text = parse_response(self._tokenizer, sequence.tokens)
        return Trajectory.of(prompt, sequence, text)


def texts(groups_P_G: Sequence[Sequence[Trajectory]]) -> list[list[str]]:
    return [[trajectory.text for trajectory in group] for group in groups_P_G]
