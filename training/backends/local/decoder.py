"""The frozen base model: any Hugging Face causal LM made of ordinary linear layers.

Three things of the model are replaced: its linear layers (LoRA, packed weights), its attention (see
attention.py), and its output head, which is computed here in float32, in chunks and only for the
positions that need it. Bodies shaped like Llama's have a forward pass of their own (llama.py); of
others the model's own code runs, in one of the ways of bodies.py.
"""

import hashlib
import logging
import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from training.backends.local.attention import AttentionPlan
from training.backends.local.bodies import Body, PackedBody, RowsBody, limits_time_steps
from training.backends.local.comparison import MODES, Mode, choose_mode
from training.backends.local.linear import (
    LoraLinear,
    LoraPass,
    PackedMatrix,
    PassHolder,
    RowMatrix,
    accumulate_low_rank,
    add_low_rank_,
    sampled_rows,
)
from training.backends.local.llama import LLAMA_SHAPED, LlamaBody
from training.backends.local.loading import BaseModel, note_comparison, open_model
from training.backends.local.notes import Note
from training.backends.local.peft_names import takes_adapters
from training.backends.local.quantized import Int4Matrix, embedded_blocks
from training.backends.local.rotary import Rotaries, frequency_switches
from utils.devices import choose_dtype, warn_if_emulated

logger = logging.getLogger(__name__)

HEAD = "unembed"
# Rows of logits held at once: 64 rows of a 150k vocabulary are 38 MB in float32.
HEAD_CHUNK = 64


class LayerInfo:
    """A linear layer LoRA can be added to; `path` is its name inside the Hugging Face model.

    Layers with one `product` read the same input; this one's outputs are its `columns`.
    """

    __slots__ = ("columns", "group", "in_features", "out_features", "path", "product")

    def __init__(
        self, path: str, group: str, product: str, columns: slice, in_features: int
    ) -> None:
        self.path = path
        self.group = group
        self.product = product
        self.columns = columns
        self.out_features = columns.stop - columns.start
        self.in_features = in_features


class Decoder:
    """hidden(): packed tokens to final hidden states; head_*(): hidden states to logprobs."""

    def __init__(
        self,
        model_path: str | Path,
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        sampling_weights: str | None = None,
    ) -> None:
        """`dtype` of the base model; default: float32 on a CPU, else bfloat16. `sampling_weights`:
        see EngineOptions."""
        self.model_path = str(model_path)
        self.device = device
        self.dtype = dtype or getattr(torch, choose_dtype(None, device.type))
        warn_if_emulated(self.dtype, device.type)
        # of the engine's own body: a GPU computes and keeps bfloat16 in half the time and memory, a
        # CPU has slower kernels for it
        self.activations = torch.float32 if device.type == "cpu" else self.dtype
        model = open_model(model_path, device, self.dtype)
        self.config = model.config
        self.body_name, self.head_name = model.body_name, model.head_name
        self.eos_token_ids = model.eos_token_ids
        self.context_length = int(getattr(self.config, "max_position_embeddings", 0) or 2**31)
        self._frequency_switches = frequency_switches(self.config)
        self.holder = PassHolder()
        self.layers: dict[str, LayerInfo] = {}
        self._products: dict[str, LoraLinear] = {}
        self._prepare_body(model)
        self._prepare_head(model.head)
        # tells base models of one shape apart, and is the same on all devices
        self.fingerprint = self._take_fingerprint()
        # what no adapter touches included: embeddings, norms, experts
        self.weights_digest = model.weights_digest
        self._choose_mode(model)
        if sampling_weights == "int4":
            self._decode_in_int4()
        elif sampling_weights == "bfloat16":
            self._decode_in_bfloat16()
        # the weights beside embeddings that no adapter can be added to, by name
        plain = isinstance(self._body, LlamaBody)
        self.without_adapters = () if plain else _other_matrices(model.body)

    # ------------------------------------------------------------------------------- construction

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def _prepare_body(self, model: BaseModel) -> None:
        self._body: Body | None = None
        # a text model inside of another one (GOT-OCR2) has its layers elsewhere
        if self.config.model_type in LLAMA_SHAPED and hasattr(model.body, "embed_tokens"):
            kinds = [model.kinds[i] for i in range(len(model.kinds))]
            self._body = llama = LlamaBody(model.body, self.holder, kinds, self.activations)
            linears = llama.linears
        else:
            linears = _replace_linears(model.body, self.holder, self.config.model_type)
        if not linears:
            raise ValueError(f"{self.model_path}: no linear layers found to adapt")
        for linear, paths in linears:
            self._products[linear.name] = linear
            for path, columns in zip(paths, linear.columns, strict=True):
                group = "attn" if "attn" in path or "attention" in path else "mlp"
                self.layers[path] = LayerInfo(path, group, linear.name, columns, linear.in_features)

    def _choose_mode(self, model: BaseModel) -> None:
        """Sets the body to the mode that is right for the model, by comparison or by its note."""
        left_out: list[str] = []
        rotaries = None if self._body is not None else Rotaries(model.body)

        def leave_out(name: str) -> None:
            _restore_linear(model.body, self._products.pop(name))
            del self.layers[name]
            left_out.append(name)

        def use(mode: Mode) -> None:
            if rotaries is None:
                return
            if not model.use_attention(mode):
                raise ValueError("its attention cannot be exchanged")
            if mode.cached and not mode.packed and limits_time_steps(model.body):
                raise ValueError("its step from token to token leaves out time_step_limit")
            if mode.packed:
                self._body = PackedBody(model.body, rotaries)
            else:
                self._body = RowsBody(
                    model.body,
                    self.holder,
                    padding=mode.padding,
                    cached=mode.cached,
                    length_kind=self.length_kind,
                )

        modes = MODES[:1] if rotaries is None else MODES
        if model.probe is None:
            for name in model.note.left_out:
                leave_out(name)
            use(next(mode for mode in modes if mode.name == model.note.mode))
        else:
            mode = choose_mode(self, model.probe, modes, use, leave_out, model.architecture)
            note_comparison(self.model_path, model, Note(mode.name, tuple(left_out)))
        if left_out:
            logger.info(
                "%s does not apply %d linear layers to every token of a text, or only to choose; "
                "they get no adapters: %s",
                model.architecture,
                len(left_out),
                ", ".join(left_out),
            )

    def _prepare_head(self, head: Any) -> None:
        self.head_weight: torch.Tensor = head.weight.detach().float()
        self.head_bias = None if head.bias is None else head.bias.detach().float()
        self.softcap = _softcap(self.config)
        self.logit_scale = _logit_scale(self.config)
        self.head_tied = bool(getattr(self.config, "tie_word_embeddings", False))
        self.vocab_size, width = self.head_weight.shape
        self.layers[HEAD] = LayerInfo(HEAD, "unembed", HEAD, slice(0, self.vocab_size), width)
        self._head_matrix = PackedMatrix(self.head_weight)
        self._head_backward: PackedMatrix | None = None

    def _decode_in_int4(self) -> None:
        blocks = embedded_blocks(self.config)
        for product in self.products():
            paths = [path for path, layer in self.layers.items() if layer.product == product.name]
            product.decode_matrix = Int4Matrix([blocks[path] for path in paths])

    def _decode_in_bfloat16(self) -> None:
        warn_if_emulated(torch.bfloat16, self.device.type)
        for product in self.products():
            product.decode_matrix = PackedMatrix(product.forward_matrix.dense().bfloat16())

    def _take_fingerprint(self) -> str:
        """A hash of the rows that were sampled of every layer, which are let go."""
        samples = [sample for product in self.products() for sample in product.samples]
        digest = hashlib.sha256()
        for sample in [*samples, sampled_rows(self.head_weight)]:
            digest.update(sample.numpy().tobytes())
        for product in self.products():
            product.samples.clear()
        return digest.hexdigest()[:16]

    def weight(self, path: str) -> torch.Tensor:
        """A layer's base weight [out, in]."""
        if path == HEAD:
            return self.head_weight
        layer = self.layers[path]
        return self._products[layer.product].forward_matrix.dense()[layer.columns]

    def length_kind(self, length: int) -> int:
        """Sequences of different kinds are computed with different rotary frequencies."""
        return bisect_left(self._frequency_switches, length)

    def longest_of_kind(self, length: int) -> int:
        """The most tokens a sequence can have with the frequencies of one of this length."""
        switches = self._frequency_switches[self.length_kind(length) :]
        return min([*switches, self.context_length])

    def products(self) -> list[LoraLinear]:
        """The body's linear layers as they are computed, in order."""
        return list(self._products.values())

    # ------------------------------------------------------------------------------------- passes

    def hidden(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        plan: AttentionPlan,
        lora: LoraPass,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states [T, hidden] of packed tokens, after the model's last norm; only the
        rows `wanted` [n], ascending, if given."""
        self.holder.current = lora
        lora.tokens = len(tokens_T)
        if lora.training:
            lora.anchor = torch.zeros((), requires_grad=True)
        assert self._body is not None
        try:
            if isinstance(self._body, LlamaBody):
                return self._body(tokens_T, positions_T, plan, wanted)
            hidden = self._body(tokens_T, positions_T, plan)
            return hidden if wanted is None else hidden.index_select(0, wanted)
        finally:
            # or the adapters of this pass would stay until the next one
            self.holder.current = LoraPass()

    @property
    def shares_prefixes(self) -> bool:
        """Whether segments may have a parent."""
        return self._body is not None and self._body.shares_prefixes

    @property
    def runs_all_layers(self) -> bool:
        """Whether the body is the engine's own code, in which every token runs through each."""
        return isinstance(self._body, LlamaBody)

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether sequences that stand after others in a pass leave these their bits: in the
        engine's own code only products see how many rows there are, and packed ones do not care
        from two on."""
        matrices = [self._head_matrix, *(p.forward_matrix for p in self.products())]
        return self.runs_all_layers and all(matrix.packed for matrix in matrices)

    def new_cache(self) -> Any:
        """To be given to the SegmentAttention of a prefill; sampling goes on from it."""
        assert self._body is not None
        return self._body.new_cache()

    def logits(self, hidden: torch.Tensor, lora: LoraPass) -> torch.Tensor:
        """hidden [n, hidden] -> float32 logits [n, vocab]; slices of `lora` index these rows."""
        return self._capped(self._raw_logits(hidden.float(), lora)[0])

    def _raw_logits(
        self, hidden: torch.Tensor, lora: LoraPass
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Before scaling and soft-capping, and what accumulate_low_rank needs of them."""
        if len(hidden) == 1 and self._head_row is not None:
            out = self._head_row(hidden)
        else:
            out = self._head_matrix(hidden, self.head_bias)
        return out, add_low_rank_(out, hidden, HEAD, lora)

    @cached_property
    def _head_row(self) -> RowMatrix | None:
        """Made when a single row is first decoded: it takes half as much memory again."""
        if not RowMatrix.holds(self.head_weight):
            return None
        return RowMatrix(self.head_weight, self.head_bias)

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap

    def _head_backward_matrix(self) -> PackedMatrix:
        if self._head_backward is None:
            self._head_backward = PackedMatrix(self.head_weight.T)
        return self._head_backward

    def target_logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, lora: LoraPass
    ) -> torch.Tensor:
        """Logprobs of `targets` [n] or [n, K], by a float32 softmax over chunks of rows."""
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for rows, part in self._chunks(len(hidden), lora):
            logprobs = F.log_softmax(self.logits(hidden[rows], part), dim=-1)
            index = targets[rows].view(len(logprobs), -1)
            out[rows] = logprobs.gather(1, index).view(out[rows].shape)
        return out

    def target_logprobs_and_grad(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        gradient_of: Any,
        lora: LoraPass,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs [n(, K)] and dL/d(hidden) [n, hidden]; head adapters' gradients are added.

        `gradient_of(rows, logprobs)` gives dL/d(logprobs) of those rows. One chunk of logits lives
        at a time: its gradient (g one_hot - sum(g) softmax) is used at once and never stored.
        """
        logprobs_out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden, dtype=torch.float32)
        for rows, part in self._chunks(len(hidden), lora):
            x = hidden[rows].float()
            raw, hiddens = self._raw_logits(x, part)
            logits = self._capped(raw)
            index = targets[rows].view(len(logits), -1)
            log_z = logits.logsumexp(-1, keepdim=True)
            chosen = logits.gather(1, index) - log_z
            logprobs_out[rows] = chosen.view(logprobs_out[rows].shape)
            g = gradient_of(rows, logprobs_out[rows]).view(index.shape)
            # d tanh(z / c) * c = 1 - (logits / c)^2
            slope = None if self.softcap is None else 1 - (logits / self.softcap) ** 2
            d_logits = logits.sub_(log_z).exp_().mul_(-g.sum(1, keepdim=True))
            d_logits.scatter_add_(1, index, g)
            if slope is not None:
                d_logits *= slope
            if self.logit_scale != 1:
                d_logits *= self.logit_scale
            dx = self._head_backward_matrix()(d_logits)
            accumulate_low_rank(x, d_logits, dx, HEAD, part, hiddens)
            d_hidden[rows] = dx
        return logprobs_out, d_hidden

    def _chunks(self, n: int, lora: LoraPass) -> Iterator[tuple[slice, LoraPass]]:
        """Row ranges, each with the part of `lora` that covers it."""
        for start in range(0, n, HEAD_CHUNK):
            stop = min(start + HEAD_CHUNK, n)
            yield slice(start, stop), lora.rows(start, stop)


def _replace_linears(
    body: Any, holder: PassHolder, model_type: str
) -> list[tuple[LoraLinear, list[str]]]:
    """Those that text runs through and that PEFT can adapt too; towers for images and sound keep
    their layers."""
    inside = _text_modules(body)
    found = [
        (parent, child_name, f"{parent_name}.{child_name}".removeprefix("."), child)
        for parent_name, parent in body.named_modules()
        if parent in inside
        for child_name, child in parent.named_children()
        if _is_linear(child) and takes_adapters(model_type, child_name)
    ]
    linears = []
    for parent, child_name, path, child in found:
        linear = LoraLinear(path, [child], holder)
        setattr(parent, child_name, linear)
        linears.append((linear, [path]))
    return linears


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    """nn.Linear or GPT-2's Conv1D; of the first's subclasses those that compute the same, as a
    router (PhiMoE, Llama 4) does not."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    x = torch.linspace(-1, 1, module.in_features).to(module.weight).unsqueeze(0)
    try:
        out = module(x)
    except (RuntimeError, TypeError, ValueError):
        # it reads something else than rows of in_features
        return False
    wanted = F.linear(x, module.weight, module.bias)
    return isinstance(out, torch.Tensor) and out.shape == wanted.shape and out.allclose(wanted)


def _logit_scale(config: Any) -> float:
    """Of models that scale what their head gives: Cohere, Falcon-H1, Granite, Inkling, MiniCPM3."""
    multiplies = ["logit_scale", "lm_head_multiplier"]
    divides = ["logits_scaling", "logits_mup_width_multiplier"]
    if config.model_type == "hyperclovax":
        multiplies += [divides.pop(0)]
    factor = next((f for f in (getattr(config, name, None) for name in multiplies) if f), 1.0)
    divisor = next((f for f in (getattr(config, name, None) for name in divides) if f), 1.0)
    return float(factor) / float(divisor)


def _softcap(config: Any) -> float | None:
    """Gemma's, RecurrentGemma's and xLSTM's names for it."""
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return next((cap for cap in (getattr(config, name, None) for name in names) if cap), None)


def _restore_linear(body: nn.Module, linear: LoraLinear) -> None:
    """Puts an ordinary layer with the same weight back."""
    weight = linear.forward_matrix.dense()
    bias = linear.bias is not None
    plain = nn.Linear(linear.in_features, linear.out_features, bias, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(linear.bias, requires_grad=False)
    parent, _, child = linear.name.rpartition(".")
    setattr(body.get_submodule(parent), child, plain)


def _text_modules(body: Any) -> set[nn.Module]:
    """Of a model of several kinds of input, its language model's."""
    text = body.get_decoder()
    # a model inside that knows no vocabulary reads something else
    others = [
        module
        for module in text.modules()
        if module is not text
        and hasattr(module, "get_input_embeddings")
        and not hasattr(module.config, "vocab_size")
    ]
    return set(text.modules()).difference(*(other.modules() for other in others))


def _other_matrices(body: Any) -> tuple[str, ...]:
    """Weights of two and more dimensions that text runs through outside linear layers, as layers of
    one kind have them in common: experts, routers, convolutions, linear layers that were left."""
    inside = _text_modules(body)
    names = (
        re.split(r"\.\d+\.", f"{path}.{name}", maxsplit=1)[-1]
        for path, module in body.named_modules()
        if module in inside and not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    )
    return tuple(dict.fromkeys(names))
