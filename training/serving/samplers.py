"""Sampling sessions of the Tinker face: snapshots that answer until their client's session ends."""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from training.api import SampleResponse
from training.serving import backend as calls
from training.serving.backend import Make
from training.serving.base_models import BaseModels
from training.serving.checkpoint_access import CheckpointAccess
from training.serving.errors import ServingError, bad_request, gone, not_found
from training.serving.promises import SAMPLE, Promise, Promises
from training.serving.sampled import Sampled
from training.serving.sampler_weights import LoadedWeights, SamplerCache, SamplerWeights
from training.serving.scheduler import Scheduler, Work, explain
from training.serving.sessions import Sessions
from training.serving.storage.rows import Run, Sampler
from training.serving.store import Store
from training.serving.workers import Workers

if TYPE_CHECKING:
    from training.serving.wire.codec import SampleRequest

# a request that waits longer for its model to load is promised an answer before it is checked
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class SamplerInfo:
    """`base_model`: what the client said, or for a checkpoint a name from which a client on this
    machine can load the tokenizer."""

    sampler_id: str
    base_model: str
    model_path: str | None


class Samplers:
    def __init__(
        self,
        store: Store,
        bases: BaseModels,
        checkpoints: CheckpointAccess,
        sessions: Sessions,
        cache: SamplerCache,
        promises: Promises,
        scheduler: Scheduler,
        workers: Workers,
        *,
        max_num_samples: int,
    ) -> None:
        self._rows = store.samplers
        self._bases = bases
        self._checkpoints = checkpoints
        self._sessions = sessions
        self._cache = cache
        self._promises = promises
        self._scheduler = scheduler
        self._workers = workers
        self._max_num_samples = max_num_samples
        # of sessions that are alive
        self._open: dict[str, tuple[Sampler, SamplerWeights]] = {}

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def create(
        self,
        owner: str,
        session_id: str,
        sampling_session_seq_id: int,
        *,
        base_model: str | None = None,
        model_path: str | None = None,
    ) -> str:
        """The id of a sampler whose weights are those of now; they load in the background."""
        self._sessions.require(owner, session_id)
        if (base_model is None) == (model_path is None):
            raise bad_request(
                "create_sampling_session: exactly one of base_model and model_path is needed; got "
                f"base_model={base_model!r} and model_path={model_path!r}",
                param="model_path",
            )
        sampler_id = _sampler_id(session_id, sampling_session_seq_id)
        known = self._rows.get(owner, sampler_id)
        if known is None and sampler_id in self._open:
            raise _used_before(sampling_session_seq_id)
        if known is not None:
            if model_path is not None and known.model_path == model_path:
                return sampler_id
            if base_model is not None and known.base_model == base_model:
                return sampler_id
            raise _used_before(sampling_session_seq_id)
        if base_model is not None:
            weights = self._cache.of_base(base_model)
        else:
            assert model_path is not None
            found = self._checkpoints.to_sample(owner, model_path)
            weights = self._cache.of_checkpoint(found)
        self._cache.use(weights)
        row = Sampler(sampler_id, owner, session_id, weights.base_model, weights.path)
        self._open[sampler_id] = (self._rows.add(row), weights)
        return sampler_id

    def check_new(self, session_id: str, sampling_session_seq_id: int) -> None:
        """Raises ServingError (400) where the session has a sampler of this number."""
        if _sampler_id(session_id, sampling_session_seq_id) in self._open:
            raise _used_before(sampling_session_seq_id)

    def add_moment(self, sampling_session_seq_id: int, run: Run, client: Any) -> dict[str, str]:
        """A sampler of a run's weights at one moment, which is in memory alone. Raises
        ServingError (410) where nobody would free it."""
        if not self._sessions.is_alive(run.session_id):
            raise gone(f"session {run.session_id} ended before its sampler was made")
        sampler_id = _sampler_id(run.session_id, sampling_session_seq_id)
        weights = self._cache.of_moment(run.base_model, client)
        self._cache.use(weights)
        row = Sampler(sampler_id, run.owner, run.session_id, run.base_model)
        self._open[sampler_id] = (row, weights)
        return {"sampling_session_id": sampler_id}

    def info(self, owner: str, sampler_id: str) -> SamplerInfo:
        """Raises ServingError: 404, and 410 for one that is gone."""
        known = self._open.get(sampler_id)
        if known is not None and known[0].owner == owner:
            row = known[0]
        else:
            found = self._rows.get(owner, sampler_id)
            if found is None:
                raise self._unknown(owner, sampler_id)
            row = found
        return SamplerInfo(sampler_id, self._bases.client_name(row.base_model), row.model_path)

    def free_session(self, session_id: str) -> int:
        """Lets go of the samplers of a session; how many there were. Requests that the engine has
        hold their weights to their end."""
        freed = [i for i, (row, _) in self._open.items() if row.session_id == session_id]
        for sampler_id in freed:
            self._cache.leave(self._open.pop(sampler_id)[1])
        return len(freed)

    async def sample(self, owner: str, request: "SampleRequest", *, digest: str) -> Promise:
        """The value is a Sampled. A request that waits for its model to load for long is accepted
        before it is checked."""
        row, weights = self._require(owner, request.sampling_session_id)
        promise, is_new = self._promises.begin(
            owner,
            SAMPLE,
            row.session_id,
            scope=row.sampler_id,
            seq_id=request.seq_id,
            digest=digest,
            num_sequences=request.num_samples,
            # a token of JSON is an object of its own
            request_bytes=32 * request.prompt.length,
        )
        if not is_new:
            return await self._promises.repeated(promise)
        with self._promises.accepting(promise):
            self._check(request)
            loaded = self._cache.open(weights)
            await asyncio.wait([loaded], timeout=_PATIENCE_SECONDS)
            if loaded.done():
                await self._add_sample(promise, request, loaded.result())
                return promise
        self._workers.begin(self._sample_later(promise, request, loaded))
        return promise

    async def _sample_later(
        self,
        promise: Promise,
        request: "SampleRequest",
        loaded: "asyncio.Future[LoadedWeights]",
    ) -> None:
        try:
            await asyncio.wait([loaded])
            await self._add_sample(promise, request, loaded.result())
        except Exception as error:
            self._promises.fail(promise, *explain(error, promise))

    async def _add_sample(
        self, promise: Promise, request: "SampleRequest", loaded: LoadedWeights
    ) -> None:
        make = await self._prepare(request, loaded)
        last_n = request.prompt_logprobs_last_n

        def finish(response: SampleResponse) -> Sampled:
            return Sampled(response, last_n)

        work = Work(promise, make, finish, rows=request.num_samples)
        self._scheduler.add_sample(request.sampling_session_id, work)

    async def _prepare(self, request: "SampleRequest", loaded: LoadedWeights) -> Make:
        calls.check_context(request.prompt.length, request.params.max_tokens, loaded.context_length)
        return await self._workers.check(
            partial(
                calls.prepare_sample,
                loaded.client,
                request.prompt,
                request.num_samples,
                request.params,
                include_prompt_logprobs=request.prompt_logprobs,
                topk_prompt_logprobs=request.topk_prompt_logprobs,
                topk_sample_logprobs=request.topk_sample_logprobs,
            )
        )

    def _check(self, request: "SampleRequest") -> None:
        if request.num_samples > self._max_num_samples:
            raise bad_request(
                f"num_samples: got {request.num_samples}, allowed 1 to {self._max_num_samples}; "
                "send several requests",
                param="num_samples",
            )
        if request.target_prompt_logprobs is not None or request.prompt_alt_tokens_k:
            name = (
                "prompt_alt_tokens_k" if request.prompt_alt_tokens_k else "target_prompt_logprobs"
            )
            raise bad_request(
                f"{name}: not served here; topk_prompt_logprobs gives the most likely tokens of "
                "each position",
                param=name,
            )

    def _require(self, owner: str, sampler_id: str) -> tuple[Sampler, SamplerWeights]:
        """Raises ServingError: 404 for an unknown one and another owner's, 410 for one whose
        session is finished or whose weights are gone."""
        known = self._open.get(sampler_id)
        if known is not None and known[0].owner == owner:
            self._sessions.require(owner, known[0].session_id)
            return known
        row = self._rows.get(owner, sampler_id)
        if row is None:
            raise self._unknown(owner, sampler_id)
        self._sessions.require(owner, row.session_id)
        # the server was restarted, or the session was silent and is back
        if row.model_path is None:
            weights = self._cache.of_base(row.base_model)
        else:
            found = self._checkpoints.to_sample(owner, row.model_path)
            if found.created_at > row.created_at:
                raise gone(
                    f"sampler {sampler_id}: {found.path} was overwritten since; make a new sampler"
                )
            weights = self._cache.of_checkpoint(found)
        self._cache.use(weights)
        known = self._open[sampler_id] = (row, weights)
        return known

    def _unknown(self, owner: str, sampler_id: str) -> ServingError:
        """Samplers that were never saved leave no trace but their session."""
        session_id, _, number = sampler_id.rpartition(":sample:")
        if number.isdecimal() and self._sessions.is_known(owner, session_id):
            return gone(
                f"sampler {sampler_id} is gone: its session ended or was silent for too long, or "
                "the server was restarted, and it was never saved; make a new one"
            )
        return not_found(f"sampling_session_id {sampler_id!r}", param="sampling_session_id")


def _sampler_id(session_id: str, number: int) -> str:
    return f"{session_id}:sample:{number}"


def _used_before(number: int) -> ServingError:
    return bad_request(
        f"sampling_session_seq_id: {number} was used before for another sampler; use the next "
        "number",
        param="sampling_session_seq_id",
    )
