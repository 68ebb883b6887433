"""Every public method of the tinker SDK, called once against a server, with what came of each.

    python benchmarks/sdk_methods.py URL KEY MODEL

Runs in an environment that has the SDK, of any version, and torch, and nothing of ours. MODEL is a
name that the server serves and from which the tokenizer can be loaded here. Prints one JSON object
{"sdk": version, "methods": {"Client.method": {"outcome": ..., "told": ...}}}; outcomes are

  served    the result is what it should be; the twin `method_async` gave such a result too
  refused   in a sentence of the server, `told`
  sdk       the SDK itself refuses before it asks the server, as `told`
  wrong     anything else
  untried   a method that this file does not know

Methods are found by reflection, so those of a newer SDK appear as untried.
"""

import asyncio
import concurrent.futures
import inspect
import json
import logging
import math
import sys
import tarfile
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import tinker
import torch

TIMEOUT = 120.0
PROMPT = [5, 6, 7, 8, 9]
TARGETS = [6, 7, 8, 9, 10]
# called by the SDK itself
NOT_FOR_USERS = {"SamplingClient.on_queue_state_change"}
CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")


@dataclass
class World:
    """A server and what the methods need of it. Names of checkpoints are used once."""

    url: str
    key: str
    model: str
    service: Any
    trainer: Any
    sampler: Any
    rest: Any
    state: str
    weights: str
    names: "list[str]" = field(default_factory=list)

    def name(self) -> str:
        self.names.append(f"c{len(self.names)}")
        return self.names[-1]

    def new_trainer(self) -> Any:
        return settled(self.service.create_lora_training_client(self.model, rank=4, seed=0))

    def new_service(self, **options: Any) -> Any:
        return tinker.ServiceClient(base_url=self.url, api_key=self.key, **options)

    def saved(self, kind: str = "save_state") -> str:
        return settled(getattr(self.trainer, kind)(self.name())).path


@dataclass
class Try:
    """How a method is called: on what, with what, and whether a result is as it should be."""

    arguments: Callable[[World], tuple[Any, ...]]
    right: Callable[[Any, World], bool]
    keywords: Callable[[World], dict[str, Any]] = lambda _world: {}
    of: Callable[[World], Any] | None = None
    # Raised by the SDK before it asks the server. For all other methods that is wrong: it would be
    # what the SDK says of a reply that it cannot read.
    refused_by_sdk: type[Exception] | None = None


def settled(value: Any) -> Any:
    """What a future, or a future of a future, gives."""
    while isinstance(value, concurrent.futures.Future | tinker.APIFuture):
        value = value.result(TIMEOUT)
    return value


def awaited(call: Callable[[], Any]) -> Any:
    async def run() -> Any:
        value = call()
        while inspect.isawaitable(value):
            value = await asyncio.wait_for(asyncio.ensure_future(_await(value)), TIMEOUT)
        return value

    return asyncio.run(run())


async def _await(value: Any) -> Any:
    return await value


# ------------------------------------------------------------------------------- what is tried


def prompt() -> Any:
    return tinker.ModelInput.from_ints(PROMPT)


def data() -> list[Any]:
    inputs: dict[str, Any] = {
        "target_tokens": torch.tensor(TARGETS),
        "weights": torch.ones(len(TARGETS)),
    }
    return [tinker.Datum(model_input=prompt(), loss_fn_inputs=inputs)]


def own_loss(
    _data: list[Any], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    return -torch.cat(logprobs).sum(), {"own": 2.0}


def traced_loss(logprobs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = -logprobs.sum()
    return loss, {"custom/own:sum": loss}


def is_output(output: Any, _world: World) -> bool:
    [datum] = output.loss_fn_outputs
    logprobs = datum["logprobs"].tolist()
    total = output.metrics["loss:sum"]
    return len(logprobs) == len(TARGETS) and math.isclose(total, -sum(logprobs), rel_tol=1e-3)


def is_sample(response: Any, _world: World) -> bool:
    lengths = [(len(s.tokens), len(s.logprobs)) for s in response.sequences]
    return lengths == [(3, 3), (3, 3)] and response.prompt_logprobs[0] is None


def is_trainer(client: Any, _world: World) -> bool:
    return is_output(settled(client.forward(data(), "cross_entropy")), _world)


def is_sampler(client: Any, _world: World) -> bool:
    params = tinker.SamplingParams(max_tokens=2, stop=[])
    [sequence] = settled(client.sample(prompt(), 1, params)).sequences
    return len(sequence.tokens) == 2


def are_logprobs(logprobs: Any, _world: World) -> bool:
    return logprobs[0] is None and len(logprobs) == len(PROMPT) and max(logprobs[1:]) < 0


def is_tokenizer(tokenizer: Any, _world: World) -> bool:
    return tokenizer.decode(tokenizer.encode("Hello")).endswith("Hello")


def has_path(kind: str) -> Callable[[Any, World], bool]:
    return lambda saved, world: (
        saved.path == (f"tinker://{world.trainer.model_id}/{kind}/{world.names[-1]}")
    )


def done(_result: Any, _world: World) -> bool:
    return True


def is_archive(found: Any, _world: World) -> bool:
    with urllib.request.urlopen(found.url) as reply, tarfile.open(fileobj=reply, mode="r|") as tar:
        return "adapter_config.json" in tar.getnames()


def nothing(_world: World) -> tuple[Any, ...]:
    return ()


def sampled(_world: World) -> tuple[Any, ...]:
    return prompt(), 2, tinker.SamplingParams(max_tokens=3, seed=1, stop=[])


def cross_entropy(_world: World) -> tuple[Any, ...]:
    return data(), "cross_entropy"


def knows_model(capabilities: Any, world: World) -> bool:
    return world.model in {model.model_name for model in capabilities.supported_models}


def run_of(world: World) -> str:
    return world.trainer.model_id


def lists(paths: Callable[[World], set[str]]) -> Callable[[Any, World], bool]:
    return lambda listed, world: paths(world) <= {c.tinker_path for c in listed.checkpoints}


def session_of(world: World) -> str:
    return run_of(world).partition(":train:")[0]


def both(world: World) -> set[str]:
    return {world.state, world.weights}


def sampling_session(world: World) -> str:
    return world.sampler._sampling_session_id


def dates(_world: World) -> tuple[Any, ...]:
    return "2026-01-01", "2026-01-02"


def search(_world: World) -> tuple[Any, ...]:
    return (tinker.types.SessionSearchRequest(),)


TRIES: dict[str, Try] = {
    "ServiceClient.create_lora_training_client": Try(lambda w: (w.model, 4, 0), is_trainer),
    "ServiceClient.create_training_client_from_state": Try(lambda w: (w.state,), is_trainer),
    "ServiceClient.create_training_client_from_state_with_optimizer": Try(
        lambda w: (w.state,), is_trainer
    ),
    "ServiceClient.create_sampling_client": Try(lambda w: (w.weights,), is_sampler),
    "ServiceClient.create_custom_loss": Try(
        lambda _w: (traced_loss, {"logprobs": 1}),
        lambda handle, w: is_own(settled(w.trainer.forward_backward_custom(data(), handle))),
    ),
    "ServiceClient.copy_weights": Try(
        lambda w: (w.state,), done, of=lambda w: w.new_service(project_id="p")
    ),
    "ServiceClient.create_rest_client": Try(
        nothing, lambda rest, w: knows_run(settled(rest.get_training_run(run_of(w))), w)
    ),
    "ServiceClient.get_server_capabilities": Try(nothing, knows_model),
    "ServiceClient.get_console_url": Try(nothing, lambda url, _w: url.startswith("http")),
    "ServiceClient.get_telemetry": Try(nothing, done),
    "ServiceClient.close": Try(
        lambda _w: ("success",), done, of=lambda w: used(w.new_service(), w.model)
    ),
    "TrainingClient.forward": Try(cross_entropy, is_output),
    "TrainingClient.forward_backward": Try(cross_entropy, is_output),
    "TrainingClient.forward_backward_custom": Try(
        lambda _w: (data(), own_loss), lambda output, _w: output.metrics["own"] == 2
    ),
    "TrainingClient.optim_step": Try(
        lambda _w: (tinker.AdamParams(learning_rate=1e-4),), lambda step, _w: bool(step.metrics)
    ),
    "TrainingClient.save_state": Try(lambda w: (w.name(),), has_path("weights")),
    "TrainingClient.save_weights_for_sampler": Try(
        lambda w: (w.name(),), has_path("sampler_weights")
    ),
    "TrainingClient.save_weights_external": Try(
        lambda w: (w.name(),), has_path("external_weights")
    ),
    "TrainingClient.save_weights_and_get_sampling_client": Try(nothing, is_sampler),
    "TrainingClient.load_state": Try(lambda w: (w.state,), done, of=World.new_trainer),
    "TrainingClient.load_state_with_optimizer": Try(
        lambda w: (w.state,), done, of=World.new_trainer
    ),
    "TrainingClient.create_sampling_client": Try(lambda w: (w.weights,), is_sampler),
    "TrainingClient.get_info": Try(
        nothing, lambda info, w: (info.model_id, info.lora_rank) == (run_of(w), 4)
    ),
    "TrainingClient.get_tokenizer": Try(nothing, is_tokenizer),
    "TrainingClient.get_console_url": Try(nothing, lambda url, _w: url.startswith("http")),
    "TrainingClient.get_telemetry": Try(nothing, done),
    "SamplingClient.create": Try(
        lambda w: (w.service.holder,), is_sampler, lambda w: {"base_model": w.model}
    ),
    "SamplingClient.sample": Try(sampled, is_sample, lambda _w: {"include_prompt_logprobs": True}),
    "SamplingClient.compute_logprobs": Try(lambda _w: (prompt(),), are_logprobs),
    "SamplingClient.get_tokenizer": Try(nothing, is_tokenizer),
    "SamplingClient.get_base_model": Try(nothing, lambda name, w: name == w.model),
    "SamplingClient.get_sampler_handle": Try(nothing, lambda handle, _w: isinstance(handle, str)),
    "SamplingClient.from_sampler_handle": Try(
        lambda w: (w.sampler.get_sampler_handle(),), is_sampler, lambda w: {"api_key": w.key}
    ),
    "SamplingClient.get_telemetry": Try(nothing, done),
    "RestClient.get_telemetry": Try(nothing, done),
    "RestClient.get_server_capabilities": Try(nothing, knows_model),
    "RestClient.get_training_run": Try(lambda w: (run_of(w),), lambda run, w: knows_run(run, w)),
    "RestClient.get_training_run_by_tinker_path": Try(
        lambda w: (w.state,), lambda run, w: knows_run(run, w)
    ),
    "RestClient.get_weights_info_by_tinker_path": Try(
        lambda w: (w.state,), lambda info, w: (info.base_model, info.lora_rank) == (w.model, 4)
    ),
    "RestClient.list_training_runs": Try(
        nothing, lambda found, w: run_of(w) in {r.training_run_id for r in found.training_runs}
    ),
    "RestClient.list_checkpoints": Try(lambda w: (run_of(w),), lists(both)),
    "RestClient.list_user_checkpoints": Try(nothing, lists(both)),
    "RestClient.get_external_weights_urls": Try(
        lambda w: (w.saved("save_weights_external"),),
        lambda found, _w: "adapter_config.json" in found.urls,
    ),
    "RestClient.delete_checkpoint": Try(
        lambda w: (run_of(w), f"weights/{w.saved().rpartition('/')[2]}"), done
    ),
    "RestClient.delete_checkpoint_from_tinker_path": Try(lambda w: (w.saved(),), done),
    "RestClient.publish_checkpoint_from_tinker_path": Try(lambda w: (w.state,), done),
    "RestClient.unpublish_checkpoint_from_tinker_path": Try(lambda w: (w.state,), done),
    "RestClient.set_checkpoint_ttl_from_tinker_path": Try(lambda w: (w.state, None), done),
    "RestClient.get_session": Try(
        lambda w: (session_of(w),), lambda found, w: run_of(w) in found.training_run_ids
    ),
    "RestClient.list_sessions": Try(nothing, lambda found, w: session_of(w) in found.sessions),
    "RestClient.get_sampler": Try(
        lambda w: (sampling_session(w),), lambda found, w: found.base_model == w.model
    ),
    "RestClient.assign_session_project": Try(lambda w: (session_of(w), "p"), done),
    "RestClient.export_session_trace": Try(lambda w: (session_of(w),), done),
    "RestClient.search_sessions": Try(search, done),
    "RestClient.copy_weights": Try(lambda w: (w.state, "p"), done),
    "RestClient.get_checkpoint_archive_url": Try(
        lambda w: (run_of(w), f"weights/{w.state.rpartition('/')[2]}"), is_archive
    ),
    "RestClient.get_checkpoint_archive_url_from_tinker_path": Try(lambda w: (w.state,), is_archive),
    "RestClient.whoami": Try(nothing, done, refused_by_sdk=RuntimeError),
    # its twin asks from the wrong event loop up to 0.30
    "RestClient.get_audit_log": Try(nothing, done, refused_by_sdk=AssertionError),
    "RestClient.get_billing_usage": Try(dates, done),
    "RestClient.get_current_checkpoint_storage_usage": Try(nothing, done),
    "AdminClient.get_telemetry": Try(nothing, done),
    "AdminClient.get_audit_log": Try(nothing, done),
    "AdminClient.get_billing_usage": Try(dates, done),
    "AdminClient.get_current_checkpoint_storage_usage": Try(nothing, done),
}


def is_own(output: Any) -> bool:
    return "custom/own:sum" in output.metrics


def knows_run(run: Any, world: World) -> bool:
    return (run.training_run_id, run.base_model) == (run_of(world), world.model)


def used(service: Any, model: str) -> Any:
    """A client that has a session; one that was never used has none to close."""
    settled(service.create_sampling_client(base_model=model))
    return service


# ----------------------------------------------------------------------------------- the calls


def outcome_of(world: World, client: Any, method: str, tried: Try) -> dict[str, str]:
    """Of the method and, where there is one, its twin."""
    found = []
    for name in (method, f"{method}_async"):
        if not hasattr(client, name):
            continue
        try:
            owner = tried.of(world) if tried.of else client
            call = getattr(owner, name)
            arguments, keywords = tried.arguments(world), tried.keywords(world)
            if name == method:
                result = settled(call(*arguments, **keywords))
            else:
                result = awaited(lambda c=call, a=arguments, k=keywords: c(*a, **k))
            right = tried.right(result, world)
            found.append(("served", "") if right else ("wrong", f"{name} gave {result!r}"[:300]))
        except Exception as error:
            found.append(refusal(name, error, tried.refused_by_sdk))
    outcomes = {outcome for outcome, _ in found}
    # where the server refuses, it does not matter if one of the two stops in the SDK
    if len(outcomes) > 1 and outcomes != {"refused", "sdk"}:
        return {"outcome": "wrong", "told": " but ".join(f"{o}: {told}" for o, told in found)[:600]}
    return {"outcome": found[0][0], "told": found[0][1]}


def refusal(name: str, error: Exception, by_sdk: type[Exception] | None) -> tuple[str, str]:
    status = getattr(error, "status_code", None)
    if status in (400, 404, 410) or type(error).__name__ == "RequestFailedError":
        body = getattr(error, "body", None)
        told = body.get("detail") if isinstance(body, dict) else None
        return "refused", str(told or error)
    if by_sdk is not None and isinstance(error, by_sdk):
        return "sdk", f"{type(error).__name__}: {error}"[:300]
    return "wrong", f"{name}: {type(error).__name__}: {error}"[:300]


def public_methods(client: type) -> list[str]:
    """Without twins, whose outcome is that of the method."""
    names = {n for n in dir(client) if not n.startswith("_") and callable(getattr(client, n))}
    return sorted(n for n in names if n.removesuffix("_async") not in names - {n})


def rest_client(name: str, url: str, key: str, service: Any) -> Any:
    """None where this SDK has no such client."""
    client = getattr(tinker, name, None)
    try:
        return client(base_url=url, api_key=key) if client is not None else None
    except TypeError:
        return service.create_rest_client() if name == "RestClient" else None


def main(url: str, key: str, model: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    service = tinker.ServiceClient(base_url=url, api_key=key)
    trainer = settled(service.create_lora_training_client(model, rank=4, seed=0))
    state = settled(trainer.save_state("state")).path
    weights = settled(trainer.save_weights_for_sampler("weights")).path
    sampler = settled(service.create_sampling_client(model_path=weights))
    rest = rest_client("RestClient", url, key, service) or service.create_rest_client()
    world = World(url, key, model, service, trainer, sampler, rest, state, weights)
    clients = {
        "ServiceClient": service,
        "TrainingClient": trainer,
        "SamplingClient": sampler,
        "RestClient": rest,
        "AdminClient": rest_client("AdminClient", url, key, service),
    }
    methods = {}
    for kind in CLIENTS:
        if clients[kind] is None:
            continue
        for method in public_methods(type(clients[kind])):
            name = f"{kind}.{method}"
            if name in NOT_FOR_USERS:
                continue
            tried = TRIES.get(name)
            if tried is None:
                methods[name] = {"outcome": "untried", "told": ""}
            else:
                methods[name] = outcome_of(world, clients[kind], method, tried)
    print(json.dumps({"sdk": version("tinker"), "methods": methods}))


if __name__ == "__main__":
    main(*sys.argv[1:])
