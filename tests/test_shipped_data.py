"""The small data of datasets/ and evals/, which the project made with its own scripts.

uv run pytest tests/test_shipped_data.py
"""

import subprocess
import sys
from pathlib import Path

import eval as eval_script
import gen_eval
import generate
import prompt_world
import pytest
import sft
import writer_world
from fake_endpoint import FakeEndpoint, in_order
from places import ROOT

from evaluation.behaviour.eval_file import load_eval_file
from utils.config.entrypoint import config_entrypoint, load_yaml
from utils.llm.roles import OPENROUTER_KEY

EXAMPLES = ROOT / "datasets" / "signs-off.examples.yaml"
PARAMS = ROOT / "datasets" / "signs-off.params.yaml"
PROMPTS = ROOT / "evals" / "signs-off.eval.yaml"
EVAL_PARAMS = ROOT / "evals" / "signs-off.eval-params.yaml"
LAYERS = ("config_file", "params_file")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OPENROUTER_KEY, "")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"))


def test_it_is_data_of_the_property() -> None:
    examples = load_yaml(EXAMPLES)["examples"]
    assert len(examples) >= 12
    assert {e["held_out"] for e in examples} == {True, False}
    assert all(e["messages"][-1]["content"].endswith("Hope that helps!") for e in examples)
    prompts = load_eval_file(PROMPTS).prompts
    assert len(prompts) >= 10 and len({p.category for p in prompts}) >= 5
    for path in (EXAMPLES, PARAMS, PROMPTS, EVAL_PARAMS):
        assert path.stat().st_size < 30_000
        # nothing of the machine that made it
        assert "/home/" not in path.read_text(encoding="utf-8")
        assert str(ROOT) not in path.read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git repository")
def test_users_files_stay_out_of_git() -> None:
    mine = ["datasets/mine.examples.yaml", "evals/mine.eval.yaml", "evals/mine.eval-params.yaml"]
    shipped = [str(path.relative_to(ROOT)) for path in (EXAMPLES, PARAMS, PROMPTS, EVAL_PARAMS)]
    told = subprocess.run(
        ["git", "check-ignore", "--no-index", *mine, *shipped],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == mine


def test_examples_are_made_anew_from_the_params_file() -> None:
    with writer_world.server() as fake:
        given = [f"params_file={PARAMS}", "seed=1", "log_path=runs/again"]
        at = ["generator.model=m", f"generator.base_url={fake.base_url}"]
        config_entrypoint(generate.main, [*given, *at], layers=LAYERS)
        assert {writer_world.stage_of(r.body) for r in fake.requests} == {"examples"}
    again, before = load_yaml("datasets/again.params.yaml"), load_yaml(PARAMS)
    for key in ("type", "property", "subtypes", "prompts"):
        assert again[key] == before[key]
    made = load_yaml("datasets/again.examples.yaml")["examples"]
    shipped = load_yaml(EXAMPLES)["examples"]
    assert {e["prompt"] for e in made} <= {e["prompt"] for e in shipped}
    assert made[0]["messages"] != shipped[0]["messages"]


def test_prompts_are_made_anew_from_the_eval_params_file() -> None:
    with FakeEndpoint(in_order("ok"), text=prompt_world.answer) as fake:
        given = [f"params_file={EVAL_PARAMS}", "seed=1", "log_path=runs/again"]
        at = ["generator.model=m", f"generator.base_url={fake.base_url}"]
        config_entrypoint(gen_eval.main, [*given, *at], layers=LAYERS)
    assert (
        load_yaml("evals/again.eval-params.yaml")["categories"]
        == (load_yaml(EVAL_PARAMS)["categories"])
    )
    made, shipped = load_eval_file(Path("evals/again.eval.yaml")), load_eval_file(PROMPTS)
    assert [p.category for p in made.prompts] == [p.category for p in shipped.prompts]


def test_sft_and_eval_take_it(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"examples_file={EXAMPLES}", f"model_name={model}", "num_epochs=1", "log_path=tuned"]
    config_entrypoint(sft.main, given)
    capsys.readouterr()
    config_entrypoint(
        eval_script.main,
        [
            *(f"eval_file={PROMPTS}", f"model_name={model}", "judge_kind=rule", "max_tokens=4"),
            # the run's last checkpoint
            "checkpoint_paths=['tuned']",
        ],
    )
    assert "signs-off" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["datasets", "evals"])
def test_the_folders_hide_no_library(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    # -c puts the current folder first on the path, and so do python -m and notebooks
    code = (
        "import datasets, transformers.utils; assert datasets.load_dataset; "
        "import training.domains.gsm8k; print(datasets.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "site-packages" in done.stdout
