"""Where the embedded model is kept.

uv run pytest tests/training/backends/local/test_embedded_cache.py
"""

from pathlib import Path

import pytest

from training.models import resolve_model
from utils.config.entrypoint import problems_of


def test_a_cache_that_cannot_be_written_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    for cache in (file, file / "below"):
        monkeypatch.setenv("AUTODIDACT_CACHE", str(cache))
        [problem] = problems_of(lambda: resolve_model("embedded"))
        assert problem.startswith(f"{cache}: the embedded model cannot be kept there (")
        assert problem.endswith(
            "set AUTODIDACT_CACHE to a folder that can be written, or name another model"
        )
