"""What self-edits are like, counted by hand.

uv run pytest tests/training/domains/arc/test_arc_features.py
"""

import json
from typing import Any

from training.domains.arc.features import change_table
from training.domains.arc.self_edit import Bounds, SelfEdit

BOUNDS = Bounds(min_learning_rate=1e-5, max_learning_rate=5e-3, min_epochs=1, max_epochs=3)


def sample(
    when: str, reward: float, rate: float, *families: str, epochs: int = 1, all_tokens: bool = False
) -> dict[str, Any]:
    edit = SelfEdit(
        use_basic_augmentations="basic" in families,
        use_size_augmentations="size" in families,
        use_chain_augmentations="chain" in families,
        use_repeat_augmentations="repeat" in families,
        strategy="train_using_all_tokens" if all_tokens else "train_using_output_tokens",
        learning_rate=rate,
        num_train_epochs=epochs,
    )
    return {"when": when, "reward": reward, "answer": json.dumps(edit.to_json())}


def test_features_before_and_after_with_what_they_earned() -> None:
    samples = [
        sample("held out, before", 0.0, 1e-5),
        sample("held out, before", 0.0, 1e-3, "basic", "size", epochs=3, all_tokens=True),
        sample("train, batch 1", 1.0, 5e-3),
        sample("train, batch 1", 0.0, 0.00299, "basic"),
        sample("held out, after", 1.0, 3e-3, "size"),
        {"when": "held out, after", "reward": 0.0, "answer": "no JSON"},
    ]
    headers, rows = change_table(samples, BOUNDS)
    assert headers[1:3] == ["held out, before", "after"]
    assert rows == [
        ["learning rate 1e-05 to 3e-05", "1/2", "0/2", "0.00 of 1"],
        ["learning rate 0.001 to 0.003", "1/2", "0/2", "0.00 of 2"],
        ["learning rate 0.003 to 0.01", "0/2", "1/2", "1.00 of 2"],
        ["basic augmentations", "1/2", "0/2", "0.00 of 2"],
        ["size augmentations", "1/2", "1/2", "0.50 of 2"],
        ["no augmentation", "1/2", "0/2", "0.50 of 2"],
        ["loss on all tokens", "1/2", "0/2", "0.00 of 1"],
        ["loss on outputs", "1/2", "1/2", "0.50 of 4"],
        ["1 epoch", "1/2", "1/2", "0.50 of 4"],
        ["3 epochs", "1/2", "0/2", "0.00 of 1"],
        ["no valid form", "0/2", "1/2", "0.00 of 1"],
    ]


def test_rates_at_the_edges_of_bins() -> None:
    for rate, name in ((1e-5, "1e-05 to 3e-05"), (3e-5, "3e-05 to 0.0001"), (1e-4, "0.0001 to")):
        _, rows = change_table([sample("held out, before", 0.0, rate)], BOUNDS)
        assert rows[0][0].startswith(f"learning rate {name}")
