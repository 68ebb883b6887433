"""Talk to a model, or to an adapter trained on it, in the terminal.

    uv run scripts/chat.py
    uv run scripts/chat.py checkpoint_path=runs/sft/XXXX
    uv run scripts/chat.py model_name=path/to/model temperature=0 system="Answer in one word."

A run's folder stands for its last checkpoint; its checkpoints.jsonl says where the others are.
Answers appear as they are written. Ctrl-C stops an answer; /new forgets the conversation, /quit or
Ctrl-D ends. A conversation that outgrows the model's context loses its oldest turns, which is told.
With the input from a pipe, every line is a message. Writes no files.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Literal

import chz
from dotenv import load_dotenv

from training.adapter_proof import AdapterProof
from training.api import ModelInput, SamplingClient, SamplingParams, ServiceClient
from training.chat import parse_response, render_prompt, stop_sequences
from training.checkpoint_folders import checkpoint_folder
from training.connect import (
    BACKEND_DOC,
    NUM_ENGINES_DOC,
    SAMPLING_WEIGHTS_DOC,
    Backend,
    SamplingWeights,
    connect,
    has_own_engines,
)
from training.domains.base import Message
from training.models import check_sampling_weights, resolve_model
from training.running_response import RunningResponse
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import SAMPLING, WHAT, group
from utils.devices import DTYPE_DOC, Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_GREETING: Message = {"role": "user", "content": "Hello."}


@chz.chz(typecheck=True)
class Config:
    model_name: str = chz.field(
        default="embedded", doc="embedded, a folder or a hub id", metadata=WHAT
    )
    checkpoint_path: str | None = chz.field(
        default=None, doc="an adapter of that model, or the run that trained it"
    )
    system: str = chz.field(default="", doc="a system message")
    template: Literal["auto", "role_colon"] = chz.field(
        default="auto", doc="the model's own chat template, or the plain form for base models"
    )

    backend: Backend = chz.field(default="local", doc=BACKEND_DOC, metadata=group("Where it runs"))
    num_engines: int | None = chz.field(default=None, doc=NUM_ENGINES_DOC)
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    sampling_weights: SamplingWeights | None = chz.field(default=None, doc=SAMPLING_WEIGHTS_DOC)

    temperature: float = chz.field(
        default=0.7, doc="0: always the likeliest token", metadata=SAMPLING
    )
    top_p: float = chz.field(default=1.0, doc="likeliest tokens with this much mass in all")
    max_tokens: int = chz.field(default=512, doc="longest answer")
    seed: int | None = chz.field(default=None, doc="the same answers every time")

    @chz.validate
    def _check(self) -> None:
        problems = []
        if self.temperature < 0:
            problems.append(f"temperature={self.temperature}: a number from 0 is needed")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}: above 0 and at most 1 is needed")
        if self.max_tokens < 1:
            problems.append(f"max_tokens={self.max_tokens}: at least 1 is needed")
        raise_problems(problems)


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # that a checkpoint is what answers is worth a line
    logging.getLogger("training.adapter_proof").setLevel(logging.INFO)
    if has_own_engines(config.backend):
        checks = (
            lambda: resolve_model(config.model_name),
            lambda: check_sampling_weights(config.model_name, config.sampling_weights),
        )
        raise_problems(list(dict.fromkeys(problems_of(*checks))))
    path = config.checkpoint_path
    opening: list[Message] = [{"role": "system", "content": config.system}] if config.system else []
    with held_log(), as_config_errors():
        service = connect(
            config.backend,
            base_url=config.base_url,
            device=config.device,
            dtype=config.dtype,
            num_engines=config.num_engines,
            sampling_weights=config.sampling_weights,
        )
        if path is not None:
            path = checkpoint_folder(path)
        # the model is what the checkpoint says, where there is one and nothing else is asked for
        sampler = service.create_sampling_client(model_path=path, base_model=config.model_name)
        tokenizer = sampler.get_tokenizer()
        stop = stop_sequences(tokenizer, config.template)
        context = context_of(service, sampler)
        render_prompt(tokenizer, [*opening, _GREETING], template=config.template)
    if path is not None:
        proof = AdapterProof(service, sampler.get_base_model(), with_answers=True)
        proof.check(sampler, path, checkpoint=path)
    # bytes that are no text are shown as what they are, and end nothing
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    messages = list(opening)
    with contextlib.closing(service):
        for turn, text in enumerate(read_lines()):
            if text == "/new":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": text})
            params = SamplingParams(
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                stop=stop,
                seed=None if config.seed is None else config.seed + turn,
            )
            try:
                prompt = fit(tokenizer, messages, len(opening), context, config)
                answer = show_answer(sampler, prompt, params, config.template)
            except ValueError as error:
                messages.pop()
                print(f"(not sent: {error}. Write another message, or /new)", file=sys.stderr)
            else:
                messages.append({"role": "assistant", "content": answer})


def context_of(service: ServiceClient, sampler: SamplingClient) -> int | None:
    """Tokens that the model takes, prompt and answer together; None where that is not told."""
    models = service.get_server_capabilities().supported_models
    lengths = {model.model_name: model.max_context_length for model in models}
    return lengths.get(sampler.get_base_model())


def fit(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    num_opening: int,
    context: int | None,
    config: Config,
) -> list[int]:
    """The prompt of `messages`, whose oldest turns after the first `num_opening` messages are
    removed until an answer has room, which is told.

    Raises ValueError where the last message alone has none, or the template refuses it.
    """
    prompt = render_prompt(tokenizer, messages, template=config.template)
    if context is None:
        return prompt
    kept = list(messages)
    # a long answer is allowed a quarter of the context at the expense of what was said
    room = context - min(config.max_tokens, context // 4)
    while len(prompt) > room and len(kept) > num_opening + 2:
        del kept[num_opening : num_opening + 2]
        prompt = render_prompt(tokenizer, kept, template=config.template)
    if len(prompt) >= context:
        raise ValueError(
            f"{len(prompt)} tokens, and the model's context holds {context}, prompt and answer "
            "together"
        )
    if len(kept) < len(messages):
        print(
            f"(the model's context of {context} tokens is full: it no longer sees the oldest "
            f"{len(messages) - len(kept)} messages; /new begins anew)",
            file=sys.stderr,
        )
        messages[:] = kept
    return prompt


def read_lines() -> Iterator[str]:
    """What the user types, line by line, up to /quit or the end."""
    asking = sys.stdin.isatty()
    while True:
        try:
            text = input("\n> " if asking else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/quit":
            return
        if text:
            yield text


def show_answer(
    sampler: SamplingClient, prompt: list[int], params: SamplingParams, template: str
) -> str:
    """Prints the answer while it is written; the whole of it, or what there was at Ctrl-C."""
    tokenizer = sampler.get_tokenizer()
    running = RunningResponse(tokenizer, template=template)
    tokens: list[int] = []
    shown: list[str] = []
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(_pieces(sampler, prompt, params)) as pieces,
    ):
        for piece in pieces:
            tokens += piece
            new = running.add(piece)
            print(new, end="", flush=True)
            shown.append(new)
    text = parse_response(tokenizer, tokens, template=template)
    # what was held back: a character that is cut off, blanks
    begun = "".join(shown)
    print(text[len(begun) :] if text.startswith(begun) else "")
    return text


def _pieces(
    sampler: SamplingClient, prompt: list[int], params: SamplingParams
) -> Generator[list[int], None, None]:
    """Token by token from the local backend; a remote one sends the answer whole."""
    stream = getattr(sampler, "stream", None)
    if stream is None:
        response = sampler.sample(ModelInput.from_ints(prompt), 1, params).result()
        yield response.sequences[0].tokens
        return
    with contextlib.closing(stream(ModelInput.from_ints(prompt), params)) as tokens:
        for token in tokens:
            yield [token]


if __name__ == "__main__":
    config_entrypoint(main)
