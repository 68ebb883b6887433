# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A finished reinforcement run
# Loads the newest run of `scripts/rl_loop.py` and plots its rewards. Set `run` to look at another.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

from utils.runs.files import read_jsonl

root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "runs").is_dir())
run = max((root / "runs" / "rl_loop").iterdir(), key=lambda path: path.stat().st_mtime)
metrics = read_jsonl(run / "metrics.jsonl")
samples = read_jsonl(run / "samples.jsonl")
print(run.name, len(metrics), "lines of metrics,", len(samples), "answers")

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name in ("train/reward", "eval/reward"):
    points = [(m["step"], m[name]) for m in metrics if name in m]
    axes.plot([step for step, _ in points], [value for _, value in points], "o-", label=name)
axes.set_xlabel("updates")
axes.set_ylabel("mean reward")
axes.legend()
plt.show()

# %% [markdown]
# The best and the worst answer of the run:

# %%
for sample in (max(samples, key=lambda s: s["reward"]), min(samples, key=lambda s: s["reward"])):
    print(f"step {sample['step']}, {sample['problem']}: reward {sample['reward']:.2f}")
    print(sample["answer"], "\n")
