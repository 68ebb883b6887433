"""Steps per second of icl_train's loop, against a plain PyTorch loop of the same model.

    uv run benchmarks/icl_training.py
    uv run benchmarks/icl_training.py device=cuda hidden_size=512 num_layers=8
    uv run benchmarks/icl_training.py quick=true

The rival is what a user would write by hand: nn.Modules for the same transformer (pre-norm, learned
positions), torch.optim.AdamW as it comes, clip_grad_norm_, and the same batches of balls and urns.
Both begin from the same weights, and the losses of every round must agree. `icl_train` is
Trainer.train_step as the script calls it; `icl_train, logged` also makes a line of metrics every
ten steps, in a file. Appends to benchmarks/results/icl_training.jsonl.
"""

import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
from common import Report, Settings, prepare, race

from utils.runs.run_dir import RunDir

if TYPE_CHECKING:
    import torch

    from training.icl.base import Family
    from training.icl.train import Trainer


@chz.chz(typecheck=True)
class Config(Settings):
    model: str = chz.field(default="transformer", doc="only its name in the table")
    hidden_size: int = chz.field(default=64, doc="width")
    num_layers: int = chz.field(default=1, doc="blocks")
    num_heads: int = chz.field(default=1, doc="of attention")
    context_length: int = chz.field(default=64, doc="draws in a sequence")
    batch_size: int = chz.field(default=64, doc="sequences per step")
    num_tasks: int = chz.field(default=64, doc="urns")
    steps: int = chz.field(default=50, doc="updates per round")


QUICK = {"context_length": 8, "batch_size": 4, "hidden_size": 16, "steps": 2}
# both sides add up in another order, and updates amplify the difference
TOLERANCES = {"cpu": 1e-3, "cuda": 1e-2}


def plain_model(config: Config, family: "Family") -> "torch.nn.Module":
    """The transformer as one writes it by hand, parameters in the order of CausalTransformer's."""
    from torch import nn

    width, heads = config.hidden_size, config.num_heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(width)
            self.norm2 = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            batch, length, _ = x.shape
            # GPT-NeoX keeps query, key and value of a head together
            joint = self.qkv(self.norm1(x)).view(batch, length, heads, -1).transpose(1, 2)
            query, key, value = joint.chunk(3, dim=-1)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(family.input_size, width)
            self.positions = nn.Embedding(family.input_length, width)
            self.blocks = nn.ModuleList(Block() for _ in range(config.num_layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, family.output_size, bias=False)

        def forward(self, tokens: "torch.Tensor") -> "torch.Tensor":
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Plain()


class PlainLoop:
    """Updates as in any tutorial."""

    def __init__(self, config: Config, family: "Family", tasks: Any, source: "Trainer") -> None:
        import torch

        from training.icl.tasks import make_generator

        self.model = plain_model(config, family)
        mine, theirs = list(self.model.parameters()), list(source.model.parameters())
        with torch.no_grad():
            for parameter, other in zip(mine, theirs, strict=True):
                assert parameter.shape == other.shape
                parameter.copy_(other)
        self.model.to(config.device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)
        self._config, self._family, self._tasks = config, family, tasks
        self._data = make_generator("data", 0)

    def run(self, _round: int) -> float:
        """The mean loss of a round."""
        import torch

        device = self._config.device
        losses = []
        for _ in range(self._config.steps):
            batch = self._family.sample(self._tasks, self._config.batch_size, self._data)
            logits = self.model(batch.inputs.to(device))
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch.targets.flatten().to(device)
            )
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.device is not None

    from training.icl.config import Training, Transformer
    from training.icl.families import make_family
    from training.icl.settings import BallsAndUrns
    from training.icl.tasks import new_task_set
    from training.icl.train import Trainer

    setting = BallsAndUrns(num_tasks=config.num_tasks, context_length=config.context_length)
    family = make_family(setting)
    tasks = new_task_set(setting, family, config.num_tasks, seed=0)
    shape = Transformer(
        hidden_size=config.hidden_size, num_layers=config.num_layers, num_heads=config.num_heads
    )
    training = Training(batch_size=config.batch_size, learning_rate=1e-3)

    def trainer() -> Trainer:
        return Trainer(shape, training, family, tasks, seed=0, device=config.device)

    bare, logged = trainer(), trainer()
    plain = PlainLoop(config, family, tasks, trainer())
    losses: dict[str, list[float]] = {"plain": [], "ours": [], "logged": []}

    def run_plain(number: int) -> None:
        losses["plain"].append(plain.run(number))

    def run_ours(_round: int) -> None:
        for _ in range(config.steps):
            bare.train_step()
        losses["ours"].append(bare.take_loss())

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder), resumed=False)

        def run_logged(_round: int) -> None:
            parts = []
            for i in range(1, config.steps + 1):
                logged.train_step()
                if i % 10 == 0 or i == config.steps:
                    parts.append((10 if i % 10 == 0 else i % 10, logged.take_loss()))
                    run.log_metrics(logged.step, {"train/loss": parts[-1][1]})
            losses["logged"].append(sum(n * loss for n, loss in parts) / config.steps)

        contenders: dict[str, Callable[[int], object]] = {
            "plain PyTorch loop": run_plain,
            "icl_train": run_ours,
            "icl_train, logged": run_logged,
        }
        seconds = race(contenders, config, "icl_training")
    worst = max(
        abs(mine - theirs)
        for name in ("ours", "logged")
        for mine, theirs in zip(losses[name], losses["plain"], strict=True)
    )
    report = Report("icl_training", config)
    case = (
        f"{config.num_layers} x {config.hidden_size}, {config.batch_size} sequences of "
        f"{config.context_length}"
    )
    for name, rounds in seconds.items():
        report.add(
            case,
            name,
            seconds=rounds,
            tokens=config.steps * config.batch_size * config.context_length,
            against=seconds["icl_train"],
            goal=1.0 if name == "plain PyTorch loop" else None,
            **{"steps/s": round(config.steps / statistics.median(rounds), 2)},
        )
    report.note("ratio: seconds of the row over those of icl_train's updates")
    report.note(f"largest difference of a round's losses: {worst:.2g}")
    report.finish()
    if worst > TOLERANCES[config.device]:
        raise SystemExit(f"losses differ by {worst:.3g}: the sides did not do the same work")


if __name__ == "__main__":
    chz.nested_entrypoint(main)
