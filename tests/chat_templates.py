"""Chat templates of the common kinds, on tokenizers of one token a byte."""

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<|begin|>{% for m in messages %}<|start_header|>{{ m.role }}<|end_header|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# the system text opens the LAST user message, as in Mistral's own template
MISTRAL = (
    "{% set ns = namespace(system='', last=0) %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}"
    "{% elif m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if ns.system and loop.index0 == ns.last %}{{ ns.system }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)


def byte_tokenizer(
    template: str | None,
    specials: tuple[str, ...] = (),
    *,
    eos: str | None = None,
    bos: str | None = None,
    adds_bos: bool = False,
    merges: tuple[tuple[str, str], ...] = (),
) -> PreTrainedTokenizerFast:
    """One token a byte, plus the special tokens and the merges given."""
    letters = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, list(merges)))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    if adds_bos:
        assert bos is not None
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos)
    made.chat_template = template
    return made


TOKENIZERS = {
    "chatml": byte_tokenizer(CHATML, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>"),
    "llama": byte_tokenizer(
        LLAMA,
        ("<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>", "<|end_of_text|>"),
        eos="<|end_of_text|>",
        bos="<|begin|>",
        adds_bos=True,
    ),
    "gemma": byte_tokenizer(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
        adds_bos=True,
    ),
    "mistral": byte_tokenizer(MISTRAL, ("<s>", "</s>"), eos="</s>", bos="<s>"),
}
