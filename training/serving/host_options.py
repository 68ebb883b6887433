"""The sizes and times of a host."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HostOptions:
    """max_rank, max_models: of adapters in training. sampler_adapters: kept in memory to sample
    from; those that were not used for longest sleep in files. session_seconds: without a sign of
    life, until a client is taken for dead. result_seconds, max_result_bytes: what is kept of
    results for clients that ask again. max_open_requests, max_open_bytes: of one owner, without an
    answer.

    engine_rows: samples that the engine decodes at once, with reserved_rows more for clients that
    have fewer than that (so EngineOptions.max_rows is the sum of both); train_requests of all
    models, train_depth of one, are handed to the engine at once. sweep_seconds: between two looks
    at what is stale. idle_seconds: without work for the engine, until memory of freed adapters goes
    back to the system. uploads: whether clients may upload adapters; one that is not finished after
    upload_seconds goes.
    """

    max_rank: int = 256
    max_models: int = 256
    sampler_adapters: int = 16
    session_seconds: float = 300.0
    result_seconds: float = 600.0
    max_result_bytes: int = 2 * 2**30
    max_open_requests: int = 20_000
    max_open_bytes: int = 4 * 2**30
    engine_rows: int = 256
    reserved_rows: int = 64
    train_requests: int = 32
    train_depth: int = 4
    sweep_seconds: float = 5.0
    idle_seconds: float = 60.0
    uploads: bool = False
    upload_seconds: float = 3600.0
