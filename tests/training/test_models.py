"""What a model's name tells without loading the model, and what that costs."""

import subprocess
import sys

import pytest

from training.models import EMBEDDED, check_rank, context_length, resolve_model

# half of torch and most of transformers: seconds of every start
HEAVY = ("torch._dynamo", "torch.distributed.tensor", "sympy", "transformers.modeling_utils")


def test_the_embedded_models_settings_are_those_that_transformers_reads() -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve_model(EMBEDDED)).get_text_config()
    assert context_length(EMBEDDED) == config.max_position_embeddings
    check_rank(EMBEDDED, "rank", config.hidden_size)
    with pytest.raises(ValueError, match=f"rank={config.hidden_size + 1}: at most"):
        check_rank(EMBEDDED, "rank", config.hidden_size + 1)


def test_a_start_with_the_embedded_model_imports_what_it_needs() -> None:
    """All that scripts/serve.py imports, and what they ask of the model before it is loaded."""
    code = f"""
import sys
import training.backends.local.service
import training.serving.app
print("transformers" in sys.modules)
from training.models import EMBEDDED, check_rank, context_length, load_tokenizer
context_length(EMBEDDED)
check_rank(EMBEDDED, "rank", 4)
load_tokenizer(EMBEDDED).apply_chat_template([{{"role": "user", "content": "Hello"}}])
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stdout.split("\n")[:2] == ["False", "[]"]
