"""A tiny random model that can chat: one token a byte, ChatML, in a folder of its own."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def chat_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = CHATML
    return made


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Words with their blank, single bytes for what it does not know; decoding strips one leading
    blank, as Llama 2's and Gemma's do."""
    pieces = ["\u2581yes", "\u2581no", "\u2581", "y", "e", "s", "n", "o", "."]
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab |= {piece: len(vocab) + i for i, piece in enumerate(pieces)}
    merges = [("y", "e"), ("ye", "s"), ("\u2581", "yes"), ("n", "o"), ("\u2581", "no")]
    vocab |= {piece: len(vocab) + i for i, piece in enumerate(["ye", "yes", "no"])}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@torch.no_grad()
def save_chat_model(folder: Path, *, favourites: str = "", seed: int = 0) -> str:
    """The output layer prefers the letters of `favourites`, so that some answers come often."""
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    generator = torch.Generator().manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    # The first hidden dimension is made constant; the head reads a preference from it.
    model.model.embed_tokens.weight[:, 0] = 4.0
    wanted = tokenizer.encode(favourites, add_special_tokens=False)
    model.lm_head.weight[:, 0] = -1.0
    model.lm_head.weight[wanted, 0] = 2.0
    model.save_pretrained(folder)
    return str(folder)
