"""The model that is trained, as a source of answers: groups of samples per problem."""

from collections.abc import Sequence

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
from training.domains.base import Domain, Problem
from training.problem_text import answer_text, prompt_tokens, stop_of
from training.rl.updates import Trajectory, seed_for


class Policy:
    """Answers a domain's problems with the trainer's weights as they are when it is asked.

    With `enforce_schema` only answers that fit the problem's grammar or the domain's JSON schema
    are sampled; without, invalid ones are sampled again, at most `max_resamples` times, and then
    stay as they are.
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
        self._enforce_schema = enforce_schema
        self._max_resamples = max_resamples
        self._seed = seed
        self._proof = proof

    def prompt(self, problem: Problem) -> list[int]:
        return prompt_tokens(self._tokenizer, problem)

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
            self.request(sampler, problem, prompt, size=size, temperature=temperature, seed=seed)
            for problem, prompt, seed in zip(problems_P, prompts_P, seeds_P, strict=True)
        ]
        groups_P_G = [
            [self._trajectory(problem, prompt, s) for s in future.result().sequences]
            for problem, prompt, future in zip(problems_P, prompts_P, futures_P, strict=True)
        ]
        has_form = self._domain.json_schema is not None or any(p.grammar for p in problems_P)
        if has_form and not self._enforce_schema:
            self._resample(sampler, problems_P, groups_P_G, seeds_P, temperature)
        return groups_P_G

    def request(
        self,
        sampler: SamplingClient,
        problem: Problem,
        prompt: list[int],
        *,
        size: int,
        temperature: float,
        seed: int,
        max_tokens: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """The sampling request for a problem whose prompt() is `prompt`; `max_tokens` instead of
        the domain's limit."""
        grammar = problem.grammar if self._enforce_schema else None
        params = SamplingParams(
            max_tokens=max_tokens or self._domain.max_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop_of(self._tokenizer, problem),
            json_schema=self._domain.json_schema if self._enforce_schema and not grammar else None,
            grammar=grammar,
        )
        return sampler.sample(ModelInput.from_ints(prompt), size, params)

    def _resample(
        self,
        sampler: SamplingClient,
        problems_P: Sequence[Problem],
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
                    problems_P[p],
                    groups_P_G[p][g].prompt,
                    size=1,
                    temperature=temperature,
                    seed=seed_for(seeds_P[p], g, attempt),
                )
                for p, g in again
            ]
            for (p, g), future in zip(again, futures, strict=True):
                prompt = groups_P_G[p][g].prompt
                sequence = future.result().sequences[0]
                groups_P_G[p][g] = self._trajectory(problems_P[p], prompt, sequence)

    def _trajectory(
        self, problem: Problem, prompt: list[int], sequence: SampledSequence
    ) -> Trajectory:
        text = answer_text(self._tokenizer, problem, sequence.tokens)
        return Trajectory.of(prompt, sequence, text)


def texts(groups_P_G: Sequence[Sequence[Trajectory]]) -> list[list[str]]:
    return [[trajectory.text for trajectory in group] for group in groups_P_G]
