"""What /chat/completions and /completions are asked, checked: the bodies as plain values."""

from dataclasses import dataclass
from typing import Any

from training.checks import flag, optional, real, whole
from training.serving.errors import bad_request
from training.serving.openai.fields import Fields, checked, unsupported, wrong_value

MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_PATH_LENGTH = 1000
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
# OpenAI's own
DEFAULT_COMPLETION_TOKENS = 16

_SAMPLING = frozenset(
    {
        *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "stop"),
        *("stream", "stream_options", "logprobs", "response_format", "return_token_ids"),
    }
)
_CHAT = _SAMPLING | {
    *("messages", "max_completion_tokens", "top_logprobs"),
    *("continue_final_message", "add_generation_prompt"),
}
_COMPLETION = _SAMPLING | {"prompt", "echo", "best_of", "parse_special"}
# they name, store, bill or cache, and change no answer
_IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
)
# what is not served here, with the values that ask for nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
}
_CHAT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **_NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (False,),
    "reasoning_effort": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "verbosity": (),
}
_COMPLETION_NEUTRAL: dict[str, tuple[Any, ...]] = {**_NEUTRAL, "suffix": ("",)}

Prompt = str | list[int]


@dataclass(frozen=True)
class Sampling:
    """What both routes share. `max_tokens` None: as many as the route gives. `logprobs`: None, or
    how many of the likeliest tokens are told beside each one. `schema`: the JSON schema that
    answers have to fit."""

    model: str
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None
    schema: dict[str, Any] | None
    return_token_ids: bool


@dataclass(frozen=True)
class ChatRequest:
    """`messages` as they were sent. `continues`: the last one is the beginning of the answer.
    `max_tokens` None: what the context leaves."""

    sampling: Sampling
    messages: list[Any]
    continues: bool


@dataclass(frozen=True)
class CompletionRequest:
    """`parse_special`: whether names of control tokens in a text are those tokens; None: there may
    be none. `max_tokens` of 0 asks for the prompt alone; None is DEFAULT_COMPLETION_TOKENS, or what
    the context leaves where that is less."""

    sampling: Sampling
    prompts: list[Prompt]
    echo: bool
    parse_special: bool | None


@dataclass(frozen=True)
class AdapterRequest:
    """Of vLLM's routes for adapters. `replaces`: one of that name may be loaded."""

    name: str
    path: str | None
    replaces: bool


def adapter_request(body: Any) -> AdapterRequest:
    """Raises ServingError 400 with the field's name as `param`."""
    fields = Fields(
        body,
        used=frozenset({"lora_name", "lora_path", "load_inplace"}),
        ignored=frozenset({"lora_int_id", "base_model_name"}),
        neutral={},
    )
    name, path = fields.needed("lora_name", _text), fields.read("lora_path", _text)
    return AdapterRequest(name, path, fields.read("load_inplace", flag, False))


def chat_request(body: Any) -> ChatRequest:
    """Raises ServingError 400 with the field's name as `param`."""
    fields = Fields(body, used=_CHAT, ignored=_IGNORED, neutral=_CHAT_NEUTRAL)
    messages = fields.needed("messages", _messages)
    top = fields.read("top_logprobs", _within(0, MAX_TOP_LOGPROBS))
    is_told = fields.read("logprobs", flag, False)
    if top is not None and not is_told:
        raise wrong_value("top_logprobs", top, "logprobs=true is needed for it")
    continues = fields.read("continue_final_message", flag, False)
    opens = fields.read("add_generation_prompt", flag, True)
    if continues and opens:
        raise bad_request(
            "continue_final_message=true needs add_generation_prompt=false: the answer has begun",
            param="add_generation_prompt",
            code="invalid_value",
        )
    if not continues and not opens:
        raise bad_request(
            "add_generation_prompt=false: without it nothing asks for an answer; it goes with "
            "continue_final_message=true alone",
            param="add_generation_prompt",
            code="invalid_value",
        )
    limit = fields.read("max_tokens", whole(1))
    newer = fields.read("max_completion_tokens", whole(1))
    if limit is not None and newer is not None and limit != newer:
        raise wrong_value("max_completion_tokens", newer, f"max_tokens={limit} says otherwise")
    sampling = _sampling(
        fields,
        max_tokens=newer if limit is None else limit,
        logprobs=(top or 0) if is_told else None,
    )
    return ChatRequest(sampling, messages, continues)


def completion_request(body: Any) -> CompletionRequest:
    """Raises ServingError 400 with the field's name as `param`."""
    fields = Fields(body, used=_COMPLETION, ignored=_IGNORED, neutral=_COMPLETION_NEUTRAL)
    prompts = fields.needed("prompt", _prompts)
    echo = fields.read("echo", flag, False)
    max_tokens = fields.read("max_tokens", whole(0))
    if max_tokens == 0 and not echo:
        raise wrong_value("max_tokens", 0, "only with echo=true, which gives the prompt back")
    sampling = _sampling(
        fields,
        max_tokens=max_tokens,
        logprobs=fields.read("logprobs", _within(0, MAX_COMPLETION_LOGPROBS)),
    )
    best_of = fields.read("best_of", whole(1), sampling.n)
    if best_of != sampling.n:
        raise unsupported("best_of", best_of, (sampling.n,))
    if len(prompts) * sampling.n > MAX_PROMPTS:
        raise bad_request(
            f"n={sampling.n} for {len(prompts)} prompts: at most {MAX_PROMPTS} answers in one "
            "request; send several",
            param="n",
            code="invalid_value",
        )
    return CompletionRequest(sampling, prompts, echo, fields.read("parse_special", flag))


def _sampling(fields: Fields, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
    stream = fields.read("stream", flag, False)
    if fields.has("stream_options") and not stream:
        raise bad_request(
            "stream_options needs stream=true", param="stream_options", code="invalid_value"
        )
    stop = fields.read("stop", _stops, ())
    has_format, schema = fields.read("response_format", _response_format, (False, None))
    if stop and has_format:
        raise bad_request(
            "stop goes with no response_format of JSON: it could cut the value",
            param="stop",
            code="invalid_value",
        )
    temperature = real("a number from 0 to 2", lambda t: 0 <= t <= 2)
    return Sampling(
        model=fields.needed("model", _model),
        max_tokens=max_tokens,
        temperature=fields.read("temperature", temperature, 1.0),
        top_p=fields.read("top_p", real("a number above 0 and at most 1", lambda p: 0 < p <= 1), 1),
        top_k=fields.read("top_k", _top_k, -1),
        min_p=fields.read("min_p", real("a number from 0 to 1", lambda p: 0 <= p <= 1), 0),
        seed=fields.read("seed", whole()),
        n=fields.read("n", _within(1, MAX_CHOICES), 1),
        stop=stop,
        stream=stream,
        include_usage=fields.read("stream_options", _include_usage, False),
        logprobs=logprobs,
        schema=schema,
        return_token_ids=fields.read("return_token_ids", flag, False),
    )


# ------------------------------------------------------------------------------------------ checks


def _within(least: int, most: int) -> Any:
    number = whole()

    def check(value: Any) -> int:
        if not least <= number(value) <= most:
            raise ValueError(f"a whole number from {least} to {most} is needed")
        return number(value)

    return check


def _top_k(value: Any) -> int:
    """0 and -1 are off, as in other servers."""
    number = whole(-1)(value)
    return -1 if number == 0 else number


def _model(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a model's name is needed; GET /models lists them")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH_LENGTH:
        raise ValueError(f"a text of 1 to {MAX_PATH_LENGTH} characters is needed")
    return value


def _messages(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list of at least one message is needed")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ValueError(f"a text or a list of at most {MAX_STOPS} texts is needed")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_LENGTH:
            raise ValueError(f"texts of 1 to {MAX_STOP_LENGTH} characters are needed")
    return tuple(stops)


def _include_usage(value: Any) -> bool:
    """Of stream_options."""
    options = Fields(
        value,
        used=frozenset({"include_usage"}),
        # padding against eavesdroppers
        ignored=frozenset({"include_obfuscation"}),
        neutral={"continuous_usage_stats": (False,)},
    )
    return options.read("include_usage", flag, False)


def _response_format(value: Any) -> tuple[bool, dict[str, Any] | None]:
    """Whether it asks for JSON, and of what schema."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return False, None
    if kind == "json_object":
        return True, {"type": "object"}
    if kind != "json_schema":
        raise ValueError("a type of text, json_object or json_schema is needed")
    name = "response_format.json_schema"
    described = value.get("json_schema")
    if not isinstance(described, dict):
        raise wrong_value(name, described, "an object with the schema is needed")
    schema = described.get("schema")
    if not isinstance(schema, dict):
        raise wrong_value(f"{name}.schema", schema, "a JSON schema as an object is needed")
    # a schema is enforced whatever strict says
    checked(f"{name}.strict", described.get("strict"), optional(flag))
    return True, schema


def _prompts(value: Any) -> list[Prompt]:
    """A text, token ids, or a list of either."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("a text, a list of token ids, or a list of either is needed")
    if _is_tokens(value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts are allowed, got {len(value)}")
    if all(isinstance(item, str) for item in value):
        return list(value)
    if all(isinstance(item, list) and item and _is_tokens(item) for item in value):
        return list(value)
    raise ValueError(
        "a text, a list of token ids (whole numbers from 0), or a list of either is needed"
    )


def _is_tokens(value: list[Any]) -> bool:
    # bool is an int, and no token; no vocabulary is that large
    return set(map(type, value)) == {int} and 0 <= min(value) <= max(value) < 2**31
