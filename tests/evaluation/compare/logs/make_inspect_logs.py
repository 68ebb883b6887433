"""Writes the inspect_ai logs of this folder, with inspect_ai itself and no network:

    uv run --no-project --python 3.12 --with inspect-ai==0.3.285 \
        tests/evaluation/compare/logs/make_inspect_logs.py
"""

import shutil
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Score, Target, match, mean, scorer, stderr
from inspect_ai.solver import TaskState

HERE = Path(__file__).parent
SUMS = [
    Sample(f"{a} + {b} = ", target=str(a + b), id=f"sum-{a}-{b}", metadata={"tens": a // 10})
    for a, b in [(2, 3), (4, 4), (11, 5), (17, 8), (12, 9), (23, 4), (28, 14), (21, 21)]
]
ANSWERS = {
    "base": ["5", "9", "16", "24", "21", "26", "41", "42"],
    "tuned": ["5", "8", "16", "25", "20", "27", "42", "42"],
}


@scorer(metrics={"*": [mean(), stderr()]})
def style():
    """Two numbers for each answer; none for 41, as where a grader refuses."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        if answer == "41":
            return Score.unscored(reason="the grader refused")
        return Score(value={"digits": len(answer), "even": int(answer) % 2 == 0})

    return score


def write(name: str, form: str, answers: list[str], samples: list[Sample], epochs: int = 1) -> None:
    outputs = [ModelOutput.from_content("mockllm/model", text) for text in answers]
    for output in outputs:
        # else the library would fetch a tokenizer to count them
        output.usage = ModelUsage(input_tokens=8, output_tokens=1, total_tokens=9)
    model = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
    folder = HERE / "made"
    [log] = eval(
        Task(dataset=samples, scorer=[match(numeric=True), style()], name="sums"),
        model=model,
        epochs=epochs,
        max_samples=1,
        max_connections=1,
        log_dir=str(folder),
        log_format=form,
        display="none",
    )
    assert log.status == "success", str(log.error)[:500]
    shutil.move(log.location.removeprefix("file://"), HERE / f"{name}.{form}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    for form in ("eval", "json"):
        write("base", form, ANSWERS["base"], SUMS)
        # one item is missing on this side, and one is new
        write(
            "tuned",
            form,
            [*ANSWERS["tuned"][:7], "99"],
            [*SUMS[:7], Sample("90 + 9 = ", target="99", id="sum-90-9", metadata={"tens": 9})],
        )
    write("epochs", "eval", [text for text in ANSWERS["tuned"] for _ in "12"], SUMS, epochs=2)
