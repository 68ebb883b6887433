"""Forms of answers, a JSON schema or a grammar in llguidance's dialect of Lark, as llguidance takes
them."""

import json
from typing import Any, Literal

from llguidance import LLMatcher


def compiled_form(field: Literal["grammar", "json_schema"], text: str) -> str:
    """The form that `text` writes, for an LLMatcher, which is what finds mistakes in it."""
    if field == "grammar":
        return LLMatcher.grammar_from_lark(text)
    # compact JSON: without this, a small model can emit white space until its budget ends
    return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})


def form_problem(field: Literal["grammar", "json_schema"], form: Any) -> str | None:
    """What is wrong with a grammar, or with the dict of a JSON schema; no model is needed."""
    try:
        text = form if field == "grammar" else json.dumps(form)
    except (TypeError, ValueError) as error:
        return f"it is no plain data for JSON ({error})"
    return LLMatcher.validate_grammar(compiled_form(field, text), None).strip() or None
