"""Models as endpoints of utils.llm.client: in this process by a sampling client, or over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from training.adapter_proof import AdapterProof, Figures
from training.api import ModelInput, SamplingClient, SamplingParams, ServiceClient
from training.chat import parse_response, render_prompt, stop_sequences
from training.connect import Sampler, SamplingWeights, connect
from training.domains.base import Message
from training.loop import require_models
from training.models import check_sampling_weights, resolve_model
from utils.config.entrypoint import as_config_errors, problems_of, raise_problems
from utils.llm.api import Endpoint, LLMError, Reply, Request, Role, Usage
from utils.runs.run_dir import RunDir

DEVICES = re.compile(r"cpu|cuda(:\d+)?")


class LocalEndpoint:
    """A sampling client as the endpoint of a role; schemas are enforced while sampling.

    A reply depends on the weights, the request and its seed alone. The calls that are made in one
    go run as one batch.
    """

    def __init__(self, role: Role, sampler: SamplingClient, *, template: str = "auto") -> None:
        self.role = role
        self._sampler = sampler
        self._template = template
        self._tokenizer = sampler.get_tokenizer()
        self._stop = stop_sequences(self._tokenizer, template)

    async def complete(self, request: Request) -> Reply:
        messages = cast(list[Message], [dict(message) for message in request.messages])
        schema = None if request.json_schema is None else dict(request.json_schema)
        try:
            prompt = render_prompt(self._tokenizer, messages, template=self._template)
            params = SamplingParams(
                max_tokens=request.max_tokens,
                temperature=1.0 if request.temperature is None else request.temperature,
                stop=self._stop,
                seed=_seed(request.seed, prompt),
                json_schema=schema,
            )
            future = self._sampler.sample(ModelInput.from_ints(prompt), 1, params)
        except ValueError as error:
            # a template or a schema that does not do would not do for the next call either
            kind = "too_long" if "context" in str(error) else "bad_request"
            raise LLMError(kind, self.role.name, str(error)) from error
        # the first wait starts the engine: let the other calls hand in their requests before
        await asyncio.sleep(0)
        [sequence] = (await future).sequences
        return Reply(
            text=parse_response(self._tokenizer, sequence.tokens, template=self._template),
            finish_reason=sequence.stop_reason,
            usage=Usage(len(prompt), len(sequence.tokens)),
            model=self.role.model,
        )

    async def close(self) -> None:
        """The service that made the sampling client is its owner's to close."""


class Endpoints:
    """The endpoints of a script's roles; those in this process share one service, whose model is
    loaded on the first use. Roles of one model share it; use it with `with`.
    Proofs that adapters are in use are stored in `run_path`, and so is vLLM's log."""

    def __init__(
        self,
        *,
        device: str | None = None,
        dtype: str | None = None,
        sampler: Sampler = "local",
        sampler_options: Mapping[str, Any] | None = None,
        sampling_weights: SamplingWeights | None = None,
        run_path: Path | None = None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._sampler: Sampler = sampler
        self._sampler_options = sampler_options
        self._sampling_weights: SamplingWeights | None = sampling_weights
        self._service: ServiceClient | None = None
        self._samplers: dict[tuple[str, str | None], SamplingClient] = {}
        self._proofs: dict[str, AdapterProof] = {}
        self._run_path = run_path

    @property
    def figures(self) -> dict[str, Figures]:
        """What the proof of each adapter found so far, by the path of its checkpoint."""
        return {
            path: found for proof in self._proofs.values() for path, found in proof.figures.items()
        }

    def check(self, roles: Sequence[Role]) -> list[str]:
        """What is wrong with `roles` and their models; no model is loaded and nothing is called."""
        problems = [problem for role in roles for problem in role.check()]
        local = [role for role in roles if role.base_url is None and role.model]
        # the first role of each model
        for model, name in {role.model: role.name for role in reversed(local)}.items():
            found = problems_of(lambda model=model: self._check_model(model))
            problems += [f"{name}: {problem}" for problem in found]
        if local and self._device is not None:
            problems += self._device_problems(self._device)
        elif local and (self._sampler != "local" or self._sampling_weights is not None):
            problems += problems_of(self._connected)
        return problems

    def _check_model(self, model_name: str) -> None:
        resolve_model(model_name)
        check_sampling_weights(model_name, self._sampling_weights)

    def _device_problems(self, device: str) -> list[str]:
        if not DEVICES.fullmatch(device):
            return [f"device={device!r}: cpu, cuda or cuda:N is needed"]
        return problems_of(self._connected)

    def require_models(self, run: RunDir, roles: Mapping[str, Role]) -> None:
        """Loads what runs in this process; ConfigError where `run` began with another model. The
        keys are the settings that name the roles' models."""
        names = {setting: role.model for setting, role in roles.items() if role.base_url is None}
        if names:
            with as_config_errors():
                service = self._connected()
            require_models(run, service, names)

    def open(self, roles: Sequence[Role]) -> list[Endpoint]:
        """Raises a ConfigError with all that is wrong before any model is loaded."""
        raise_problems(self.check(roles))
        return [self.endpoint(role) for role in roles]

    def endpoint(self, role: Role) -> Endpoint:
        if role.base_url is not None:
            from utils.llm.openai_endpoint import OpenAIEndpoint

            return OpenAIEndpoint(role)
        return LocalEndpoint(role, self.sampler(role.model))

    def sampler(self, model_name: str, checkpoint_path: str | None = None) -> SamplingClient:
        """The model, or an adapter on it, in this process. Before anything of that model is
        answered, who waits for it gets an AdapterNotUsedError where it is not the adapter that
        would answer; `figures` tells what was found."""
        key = (model_name, checkpoint_path)
        if key not in self._samplers:
            others = dict(self._samplers)
            with as_config_errors():
                self._samplers[key] = self._connected().create_sampling_client(
                    model_path=checkpoint_path, base_model=model_name
                )
            if checkpoint_path is not None:
                if model_name not in self._proofs:
                    self._proofs[model_name] = AdapterProof(
                        self._connected(), model_name, self._run_path, with_answers=True
                    )
                self._proofs[model_name].check(
                    self._samplers[key],
                    checkpoint_path,
                    checkpoint=checkpoint_path,
                    asked_before=[s for (model, _), s in others.items() if model == model_name],
                )
        return self._samplers[key]

    def _connected(self) -> ServiceClient:
        if self._service is None:
            self._service = connect(
                "local",
                device=self._device,
                dtype=self._dtype,
                sampler=self._sampler,
                sampler_options=self._sampler_options,
                sampling_weights=self._sampling_weights,
                checkpoint_dir=None if self._run_path is None else self._run_path / "checkpoints",
            )
        return self._service

    def close(self) -> None:
        if self._service is not None:
            self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _seed(seed: int | None, prompt: Sequence[int]) -> int | None:
    """Of this prompt: with one seed for all of them, alike prompts would get alike answers."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed} {list(prompt)}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
