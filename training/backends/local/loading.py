"""Opening a base model: by transformers or, where that was compared before, from its files.

Importing transformers' models takes longer than everything else at a start. The embedded model is
therefore opened through transformers once, its logits are compared with the engine's, and a note in
its folder says so; later starts read the weights themselves. Of other models such notes are in the
user's cache (notes.py).
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from training.backends.local.attention import ATTENTION_NAME, AttentionPlan, Kind, SegmentAttention
from training.backends.local.attention import attention_forward as attend_packed
from training.backends.local.batching import Segment
from training.backends.local.comparison import MODES, Mode, Probe, first_line, take_probe
from training.backends.local.embedded import is_embedded_dir
from training.backends.local.llama import LLAMA_SHAPED
from training.backends.local.notes import (
    Note,
    comparison_key,
    read_note,
    versions,
    weights_digest,
    write_note,
)
from utils.json_files import read_json, read_json_object
from utils.runs.files import atomic_write_text

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
COMPARED_FILE = "compared_with_transformers.json"
# the coarsest times that file systems keep
_TIMES_NS = 2 * 10**9


@dataclass
class BaseModel:
    """A causal LM in parts.

    `kinds` [layer] is what the attention of a Llama-shaped model does. `use_attention(mode)` sets
    the attention that its own code calls and says whether that is possible. `probe` is to be
    compared with; it is None where an earlier start did that, and `note` says what came of it.
    `weights_digest` is of all the weights; `file_state` is what their file was when they were read.
    """

    config: Any
    dtype: torch.dtype
    architecture: str
    body: Any
    body_name: str
    head: Any
    head_name: str
    eos_token_ids: list[int] | None
    kinds: dict[int, Kind]
    use_attention: Callable[[Mode], bool]
    probe: Probe | None
    note: Note
    key: str
    weights_digest: str
    file_state: list[int] | None


def loads_with_transformers(path: str | Path, dtype: torch.dtype) -> bool:
    """Whether open_model() imports transformers' models, unless the weights were changed."""
    folder = Path(path)
    return not is_embedded_dir(folder) or _read_compared(folder, dtype) is None


def open_model(path: str | Path, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Raises ValueError where the model cannot be run at all."""
    folder = Path(path)
    if is_embedded_dir(folder) and (compared := _read_compared(folder, dtype)) is not None:
        model = _open_files(folder, device, dtype, compared)
        if model.weights_digest == compared.weights:
            return model
    return _open_transformers(path, device, dtype)


def note_comparison(path: str | Path, model: BaseModel, note: Note) -> None:
    """To be called once the engine's logits were seen to equal the model's own."""
    folder = Path(path)
    if is_embedded_dir(folder):
        _write_compared(folder, model.dtype, _Compared(model.weights_digest, model.file_state))
    else:
        write_note(model.key, note)


class _Compared(NamedTuple):
    """The digest of the embedded model's weights that were compared, and their file's state."""

    weights: str
    file_state: list[int] | None


def _compared_file(folder: Path, dtype: torch.dtype) -> Path:
    suffix = "" if dtype == torch.float32 else f"_in_{str(dtype).removeprefix('torch.')}"
    return folder / COMPARED_FILE.replace(".json", f"{suffix}.json")


def _read_compared(folder: Path, dtype: torch.dtype) -> _Compared | None:
    """With the same versions of what computes; others are compared again."""
    file = _compared_file(folder, dtype)
    match read_json(file) if file.is_file() else None:
        case {"weights": str(weights), "file_state": state, "versions": found}:
            return _Compared(weights, state) if found == versions() else None
    return None


def _write_compared(folder: Path, dtype: torch.dtype, compared: _Compared) -> None:
    file = _compared_file(folder, dtype)
    try:
        atomic_write_text(file, json.dumps({"versions": versions(), **compared._asdict()}))
    except OSError as error:
        logger.warning("%s: %s; the model is looked at again next time", file, error)


def _file_state(file: Path) -> list[int] | None:
    """What changes when a file is written; None where it was written so lately that it could be
    written again at the same time, as far as its file system tells."""
    stat = file.stat()
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < _TIMES_NS:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


# ----------------------------------------------------------------------------------- transformers


class _KindsOf:
    """An attention plan that notes what each layer asks for."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan
        self.kinds: dict[int, Kind] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        self.kinds[layer] = kind
        return self._plan.attend(layer, query, key, value, kind)


def _take_probe(model: Any, head: Any, path: str | Path, dtype: torch.dtype) -> Probe:
    try:
        return take_probe(model, len(head.weight), head.weight.device)
    except Exception as error:
        # a model's own code may fail in any way; some have parts that know float32 only
        raise ValueError(
            f"{path}: transformers' own {type(model).__name__} cannot compute in "
            f"{str(dtype).removeprefix('torch.')} on {head.weight.device} ({first_line(error)})"
        ) from error


@torch.no_grad()
def _open_transformers(path: str | Path, device: torch.device, dtype: torch.dtype) -> BaseModel:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AttentionInterface,
        AutoConfig,
        AutoModelForCausalLM,
    )
    from transformers.utils import logging as transformers_logging

    state = _file_state(Path(path) / WEIGHTS_FILE) if is_embedded_dir(Path(path)) else None
    AttentionInterface.register(ATTENTION_NAME, attend_packed)
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(path)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{path}: model_type {config.model_type!r} is none of transformers' causal language "
            "models; it is not supported by the local engine"
        )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation="eager"
        )
    except SafetensorError as error:
        raise ValueError(f"{path}: its weights cannot be read ({error})") from error
    model.requires_grad_(False).eval().to(device)
    architecture = type(model).__name__
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        raise ValueError(
            f"{path}: {architecture} has no body and output head that can be told apart; it is "
            "not supported by the local engine"
        )
    weights = weights_digest(model.parameters())
    key = comparison_key(path, model.config, weights, device, dtype)
    note = read_note(key)
    if note is not None and note.mode not in {mode.name for mode in MODES}:
        note = None
    probe = _take_probe(model, head, path, dtype) if note is None else None
    if probe is not None and not probe.finite:
        raise ValueError(f"{path}: its own logits are not finite; are there NaN weights?")
    text_config = config.get_text_config()
    use_attention = _attention_switch(model)
    kinds: dict[int, Kind] = {}
    if text_config.model_type in LLAMA_SHAPED:
        use_attention(MODES[0])
        plan = _KindsOf(SegmentAttention([Segment(1, None)]))
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        model.base_model(token, use_cache=False, plan=plan)
        kinds = plan.kinds
    eos = getattr(model.generation_config, "eos_token_id", None)
    return BaseModel(
        config=text_config,
        dtype=dtype,
        architecture=architecture,
        body=model.base_model,
        body_name=str(model.base_model_prefix),
        head=head,
        head_name=next(name for name, module in model.named_modules() if module is head),
        eos_token_ids=_as_list(eos),
        kinds=kinds,
        use_attention=use_attention,
        probe=probe,
        note=note or Note(MODES[0].name, ()),
        key=key,
        weights_digest=weights,
        file_state=state,
    )


def _attention_switch(model: Any) -> Callable[[Mode], bool]:
    can_switch = model._can_set_attn_implementation()

    def use_attention(mode: Mode) -> bool:
        if not can_switch:
            return not mode.packed
        own = "eager" if mode.eager or not model._supports_sdpa else "sdpa"
        model.set_attn_implementation(ATTENTION_NAME if mode.packed else own)
        return True

    return use_attention


def _as_list(eos: Any) -> list[int] | None:
    return eos if eos is None or isinstance(eos, list) else [eos]


# ------------------------------------------------------------------------------------ plain files


def _open_files(
    folder: Path, device: torch.device, dtype: torch.dtype, compared: _Compared
) -> BaseModel:
    """A Llama-shaped model from config.json and model.safetensors, with the parts that LlamaBody
    takes from transformers' modules. A file that is as it was when `compared` has the same digest;
    of another one it is taken, and noted where the weights are still the same."""
    from safetensors.torch import load_file

    config = SimpleNamespace(**read_json_object(folder / "config.json"))
    generation = read_json_object(folder / "generation_config.json")
    assert config.model_type in LLAMA_SHAPED and config.hidden_act == "silu"
    assert config.rope_parameters["rope_type"] == "default"
    state = _file_state(folder / WEIGHTS_FILE)
    weights = {
        name: tensor.to(device=device, dtype=dtype)
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
    }
    if state is not None and state == compared.file_state:
        digest = compared.weights
    else:
        digest = weights_digest(weights.values())
        if digest == compared.weights and state is not None:
            _write_compared(folder, dtype, _Compared(digest, state))

    def linear(name: str) -> SimpleNamespace:
        return SimpleNamespace(weight=weights[f"{name}.weight"], bias=weights.get(f"{name}.bias"))

    def norm(name: str) -> SimpleNamespace:
        weight = weights[f"{name}.weight"]
        return SimpleNamespace(weight=weight, variance_epsilon=config.rms_norm_eps)

    def layer(number: int) -> SimpleNamespace:
        prefix = f"model.layers.{number}"
        attention = {n: linear(f"{prefix}.self_attn.{n}_proj") for n in "qkvo"}
        mlp = {n: linear(f"{prefix}.mlp.{n}_proj") for n in ("gate", "up", "down")}
        return SimpleNamespace(
            self_attn=SimpleNamespace(
                head_dim=config.head_dim, **{f"{n}_proj": part for n, part in attention.items()}
            ),
            mlp=SimpleNamespace(act_fn=F.silu, **{f"{n}_proj": part for n, part in mlp.items()}),
            input_layernorm=norm(f"{prefix}.input_layernorm"),
            post_attention_layernorm=norm(f"{prefix}.post_attention_layernorm"),
        )

    embedding = weights["model.embed_tokens.weight"]
    numbers = range(config.num_hidden_layers)
    return BaseModel(
        config=config,
        dtype=dtype,
        architecture=config.architectures[0],
        body=SimpleNamespace(
            embed_tokens=lambda tokens: F.embedding(tokens, embedding),
            rotary_emb=_rotary(config.rope_parameters["rope_theta"], config.head_dim, device),
            norm=norm("model.norm"),
            layers=[layer(number) for number in numbers],
        ),
        body_name="model",
        head=SimpleNamespace(
            weight=embedding if config.tie_word_embeddings else weights["lm_head.weight"],
            bias=None,
        ),
        head_name="lm_head",
        eos_token_ids=_as_list(generation.get("eos_token_id")),
        kinds={number: Kind(config.head_dim**-0.5, None, None) for number in numbers},
        use_attention=lambda mode: mode.packed,
        probe=None,
        note=Note(MODES[0].name, ()),
        key="",
        weights_digest=digest,
        file_state=state,
    )


def _rotary(
    theta: float, head_dim: int, device: torch.device
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Cosines and sines [1, T, head_dim], as transformers' module of the default kind has them."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=device) / head_dim
    frequencies = 1.0 / (theta**exponents)

    def rotary(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    return rotary
