"""Puzzles of plain grids as Kaggle's files, and rl_loop.py's settings that are quick on them."""

import json
from pathlib import Path

ARC = (
    *("domain=arc", "grid_format=digits", "evaluation=greedy", "max_tokens=300", "cap=2"),
    *("inner_rank=2", "max_inner_steps=4", "min_epochs=1", "max_epochs=1", "max_answer_tokens=4"),
)


def arc_files(folder: Path, *sides: int) -> list[str]:
    """Both splits with a task for each length of their square grids' sides, and the settings."""
    folder.mkdir()
    settings = []
    for split, prefix in (("train", ""), ("test", "test_")):
        tasks, solutions = {}, {}
        for side in sides:
            grid = [[1] * side] * side
            name = f"{split}-{side}"
            pairs = [{"input": grid, "output": grid}] * 2
            tasks[name] = {"train": pairs, "test": [{"input": grid}]}
            solutions[name] = [grid]
        for what, content in (("challenges", tasks), ("solutions", solutions)):
            path = folder / f"{split}-{what}.json"
            path.write_text(json.dumps(content))
            settings.append(f"{prefix}{what}_file={path}")
    return settings
