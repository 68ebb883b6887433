"""How an engine works; known without loading torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from training import checks

# besides the trainer's own
SamplingWeights = Literal["bfloat16", "int4"]


@dataclass(frozen=True)
class EngineOptions:
    """Sizes of the batched passes, and switches that benchmarks compare.

    max_train_tokens: packed tokens per micro-batch; None: 2048 on CPU, 16384 on a GPU.
    max_prefill_tokens: prompt tokens prefilled at once. max_rows: samples decoding together.
    share_prompts: compute a prefix common to several sequences once.
    decode_steps_while_training: how many tokens every sample gets after each micro-batch of a
    training pass. With 0, which makes a program's bits its own, sampling waits for the whole pass.
    Above 0, as a server wants it, new samples join there too, with at most max_prefill_tokens of
    prompts at once (or one longer prompt), so that no row waits for more than one micro-batch and
    one such prefill. Optimizer steps and snapshots of clients that are not in the pass run there
    too.
    gather_seconds: an idle worker that has a pass to begin waits until so long no request has come
    (at most a fiftieth of the time for which it worked before, and ten times that in all), so that
    requests which clients send one by one run together. For servers, whose requests are waited for
    from their arrival on; a program in process submits first and waits after.
    sampling_weights: on a CPU, what decoded rows are multiplied with instead of the trainer's
    weights: "bfloat16", a copy of float32 ones, or "int4", weights of four bits, those of the
    embedded model's own file. Faster, and off from the trainer by what bfloat16 is off; prompts are
    computed as without it.
    """

    max_train_tokens: int | None = None
    max_prefill_tokens: int = 4096
    max_rows: int = 256
    share_prompts: bool = True
    decode_steps_while_training: int = 0
    gather_seconds: float = 0.0
    sampling_weights: str | None = None

    def __post_init__(self) -> None:
        checks.check_fields(
            self,
            max_train_tokens=checks.optional(checks.whole(1)),
            max_prefill_tokens=checks.whole(1),
            max_rows=checks.whole(1),
            share_prompts=checks.flag,
            decode_steps_while_training=checks.whole(0),
            gather_seconds=checks.real("a number from 0", lambda number: number >= 0),
            sampling_weights=checks.optional(checks.one_of(get_args(SamplingWeights))),
        )
