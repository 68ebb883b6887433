"""Every benchmark in its quick size on a tiny random model, in this process."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import chz
import pytest
from bbh_world import save_bbh_model
from tiny_chat import save_chat_model

from utils.runs.files import read_jsonl


@pytest.fixture
def run(
    load_benchmark: Any, tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """run(name, *arguments) -> the printed table and the rows of the results file."""

    def run_one(name: str, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
        shared = ["quick=true", "device=cpu", "threads=1", f"model={tiny_model('llama_tied')}"]
        argv = [*shared, f"results_dir={tmp_path}", *arguments]
        chz.nested_entrypoint(load_benchmark(name).main, argv=argv)
        return capsys.readouterr().out, read_jsonl(tmp_path / f"{name}.jsonl")

    return run_one


def by_contender(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["contender"]: row for row in rows}


def test_training_speed(run: Any) -> None:
    table, rows = run("training_speed", "memory=false", "repeats=2")
    found = by_contender(rows)
    assert list(found) == [
        "engine",
        "HF + PEFT",
        "HF + PEFT, few logits",
        "frozen products, torch",
        "frozen products, oneDNN packed",
    ]
    assert found["engine"]["ratio"] == 1
    assert found["HF + PEFT"]["goal"] == ">= 3"
    assert "Largest difference of a round's losses" in table
    assert all(row["median s"] > 0 and row["tokens/s"] > 0 for row in rows)
    machine = rows[0]["machine"]
    assert machine["threads"] == 1 and machine["cpu"] and machine["packages"]["torch"]
    assert rows[0]["settings"]["quick"] is True


def test_training_profile(run: Any, load_benchmark: Any) -> None:
    _, rows = run("training_profile", "batch_size=2")
    module = load_benchmark("training_profile")
    found = by_contender(rows)
    alone = "frozen products alone"
    assert list(found) == [*module.PARTS, module.REST, "a step", alone]
    unsure = (module.REST, module.CASTS)
    assert all(row["ms"] > 0 for part, row in found.items() if part not in unsure)
    parts = sum(found[part]["ms"] for part in (*module.PARTS, module.REST))
    assert parts == pytest.approx(found["a step"]["ms"], abs=0.5)


@pytest.mark.parametrize("contender", ["engine", "HF + PEFT", "HF + PEFT, few logits"])
def test_training_memory(load_benchmark: Any, tiny_model: Any, contender: str) -> None:
    module = load_benchmark("training_speed")
    options = {"model": tiny_model("llama_tied"), "device": "cpu", "threads": 1, "quick": True}
    found = module.peak_memory(module.Config(**options, **module.QUICK), contender)
    assert 0 < found["loaded MiB"] <= found["peak MiB"]


def test_training_speed_notices_other_work(
    run: Any, load_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_benchmark("training_speed")
    real = module.engine_step
    monkeypatch.setattr(module, "engine_step", lambda c, batch: real(c, batch) + 0.01)
    with pytest.raises(SystemExit, match="losses differ by"):
        run("training_speed", "memory=false")


def test_sampling(run: Any) -> None:
    # this interpreter has no vLLM, which its process tells
    table, rows = run("sampling", f"rivals_python={sys.executable}")
    found = by_contender(rows)
    assert list(found) == ["engine", "transformers generate()"]
    assert [row["case"][:3] for row in rows] == ["1 x", "1 x", "3 x", "3 x"]
    assert found["transformers generate()"]["goal"] == ">= 4.5"
    assert "vllm: skipped, it is not installed there" in table
    assert "llama.cpp: skipped, model=" in table and "has no GGUF file here" in table


def test_a_rival_in_a_process(load_benchmark: Any, tmp_path: Path) -> None:
    rivals = load_benchmark("rival_process")
    script = tmp_path / "rival.py"
    script.write_text(
        "import json, os, sys\n"
        "print(json.dumps({'ready': json.loads(sys.stdin.readline())['rival']}), flush=True)\n"
        "print(json.dumps({'got': json.loads(sys.stdin.readline())}), flush=True)\n"
        "sys.exit('its last words: ' + os.environ['VLLM_CPU_KVCACHE_SPACE'])\n"
    )
    python = Path(sys.executable)
    process = rivals.RivalProcess(python, script, {"rival": "r"}, VLLM_CPU_KVCACHE_SPACE="1")
    try:
        assert process.about == "r"
        assert process.ask({"prompt": [1]}) == {"got": {"prompt": [1]}}
        with pytest.raises(RuntimeError, match="its last words: 1"):
            process.ask({})
    finally:
        process.close()
    with pytest.raises(rivals.MissingRivalError, match=r"vllm_environment\.sh makes it"):
        rivals.RivalProcess(tmp_path / "python", script, {})


def test_sampling_profile(run: Any) -> None:
    from training.backends.local.sampler import Sampler

    step = Sampler.step
    _, rows = run("sampling", "parts=profile")
    assert Sampler.step is step
    cases = {row["case"] for row in rows}
    assert cases == {f"{n} rows, {a}" for n in (1, 3) for a in ("no adapter", "rank 32")}
    for case in cases:
        parts = {row["contender"]: row for row in rows if row["case"] == case}
        whole = parts.pop("a step")
        assert sum(row["ms"] for row in parts.values()) == pytest.approx(whole["ms"], abs=0.1)
        assert whole["operators"] > 100
        assert {"drawing", "head", "norms", "attention", "layers' products"} <= set(parts)


def test_grpo_update(run: Any) -> None:
    table, rows = run("grpo_update", "trl=false")
    assert [(row["case"], row["contender"]) for row in rows] == [
        ("update", "prompt shared"),
        ("update", "prompt repeated"),
        ("whole step", "engine"),
    ]
    assert rows[1]["goal"] == ">= 2.5"
    assert "Gradients with and without sharing" in table
    assert "TRL: skipped, trl=false" in table


def test_sft_epoch(run: Any) -> None:
    table, rows = run("sft_epoch", "trl=false")
    assert [(row["case"], row["contender"]) for row in rows] == [("epoch", "engine")]
    assert "TRL: skipped, trl=false" in table


def test_sft_epoch_steps_of_whole_batches(load_benchmark: Any) -> None:
    with pytest.raises(ValueError, match="num_examples=7: not a multiple of batch_size=2"):
        load_benchmark("sft_epoch").Config(num_examples=7, batch_size=2)


def test_adapters(run: Any) -> None:
    table, rows = run("adapters")
    # three adapters go in two groups, whose times add up
    assert {row["case"] for row in rows} == {"train 1", "sample 1", "train 3", "sample 3"}
    assert all(row["peak MiB"] > 0 for row in rows)
    assert "Losses together and one by one" in table


def test_growth(run: Any, tmp_path: Path) -> None:
    table, rows = run("growth")
    assert [row["case"] for row in rows[::2]] == [
        *("adapters 1", "adapters 2", "group 2", "group 1", "prompt 8", "prompt 16"),
        f"model {rows[0]['settings']['model']}",
        *("dtype float32", "dtype bfloat16"),
    ]
    assert {row["contender"] for row in rows} == {"sample", "update"}
    # each axis is counted from its first point, also where that is not the smallest
    firsts = [row for row in rows if row["case"] in ("adapters 1", "group 2", "prompt 8")]
    assert [row["of linear"] for row in firsts] == [1] * 6
    by_case = {(row["case"], row["contender"]): row for row in rows}
    one, two = by_case["group 1", "update"], by_case["group 2", "update"]
    assert one["of linear"] == pytest.approx(2 * one["median s"] / two["median s"], abs=1e-3)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "growth.md").read_text()
    assert all(f"## {axis}" in page for axis in ("adapters", "group", "prompt", "model", "dtype"))
    assert "of linear" in table


def test_growth_in_parts(
    run: Any, load_benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = load_benchmark("growth")
    measured: list[Any] = []

    def measure(point: Any, config: Any) -> Any:
        measured.append(point)
        return growth.Measured({"sample": [1.0], "update": [2.0]}, 100.0, 150.0, 1000)

    monkeypatch.setattr(growth, "measure", measure)
    axes = 'axes=["adapters","group"]'
    run("growth", "reuse=true", 'axes=["adapters"]')
    assert [point.adapters for point in measured] == [1, 2]
    # what there is counts, and what is left is not begun after the time
    (tmp_path / "growth.md").unlink()
    run("growth", "reuse=true", axes, "max_minutes=-1")
    assert not (tmp_path / "growth.md").exists()
    run("growth", "reuse=true", axes)
    assert [(point.adapters, point.group) for point in measured[2:]] == [(1, 1)]
    assert "## group" in (tmp_path / "growth.md").read_text()
    # other conditions are other points, and so is everything without reuse
    run("growth", "reuse=true", 'axes=["adapters"]', "warmup=2")
    assert len(measured) == 3 + 2
    run("growth", 'axes=["adapters"]')
    assert len(measured) == 3 + 2 + 2


def test_growth_names_a_wrong_axis(load_benchmark: Any) -> None:
    with pytest.raises(ValueError, match=r"axes=.*'rank'.*allowed are adapters, group"):
        load_benchmark("growth").Config(axes=["rank"])
    with pytest.raises(ValueError, match=r"adapters=\[0\]"):
        load_benchmark("growth").Config(adapters=[0])


def test_starting(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.backends.local import loading

    monkeypatch.setenv("AUTODIDACT_CACHE", str(tmp_path / "cache"))
    probed: list[Any] = []
    take = loading.take_probe
    monkeypatch.setattr(loading, "take_probe", lambda *given: probed.append(given) or take(*given))
    before = dict(os.environ)
    table, rows = run("starting", "model=" + save_chat_model(tmp_path / "chat"))
    assert {row["contender"] for row in rows if row["case"] == "open"} == {
        *("compared", "known", "at its own place"),
    }
    # in the warm-up and the one round; and of the model at its own place at the first start alone
    assert len(probed) == 3 and "The comparison: " in table
    assert {row["contender"] for row in rows if row["case"] == "prove"} == {
        f"{who}, {how}"
        for who in ("a run's sampler", "a checkpoint", "a checkpoint and its trainer")
        for how in ("first prompts", "proof with them", "proof before")
    }
    assert dict(os.environ) == before


@pytest.mark.slow
def test_serving(run: Any, tmp_path: Path) -> None:
    """A server in a process of its own, on a tiny model that can chat."""
    before = dict(os.environ)
    table, rows = run("serving", f"model={save_chat_model(tmp_path / 'chat')}")
    assert [(row["case"], row["contender"]) for row in rows] == [
        ("start", "to the greeting"),
        ("start", "to the first answer"),
        ("1 clients", "in process"),
        ("1 clients", "one server"),
        ("2 clients", "in process"),
        ("2 clients", "one server"),
        ("20 open samples", "in process"),
        ("20 open samples", "one server"),
        ("2 rounds of 2 clients", "one server"),
        ("chat, max_train_tokens=64", "idle"),
        ("chat, max_train_tokens=64", "beside training"),
        ("chat, max_train_tokens=24", "idle"),
        ("chat, max_train_tokens=24", "beside training"),
        ("2 runs", "one after the other"),
        ("2 runs", "one server"),
    ]
    assert rows[0]["seconds"][0] < rows[1]["seconds"][0]
    served = [row for row in rows if row["contender"] == "one server"]
    assert all(row["ratio"] > 0 for row in served if "ratio" in row)
    assert served[0]["CPU s"] > 0 and served[0]["clients' CPU s"] > 0
    # in the warm-up and the one round
    assert len(served[0]["server MiB"].split()) == 2
    # no thread for a sample, and each answer is that of the engine in process
    assert served[2]["threads"] - served[2]["threads before"] < 10
    assert served[2]["right"] == 20
    assert len(served[3]["server MiB"].split()) == 2
    chats = [row for row in rows if row["case"].startswith("chat")]
    assert all(0 < row["p50 ms"] <= row["p95 ms"] for row in chats)
    assert chats[0]["ratio"] == 1 and chats[2]["pass alone s"] > 0
    assert "Losses in process and through the server: " in table
    assert dict(os.environ) == before


@pytest.mark.slow
def test_serving_notices_other_work(
    run: Any, load_benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_benchmark("serving")
    real = module.remote_work
    monkeypatch.setattr(
        module, "remote_work", lambda *given: [loss * 1.01 for loss in real(*given)]
    )
    model = save_chat_model(tmp_path / "chat")
    with pytest.raises(SystemExit, match="losses differ by"):
        run("serving", f"model={model}", "parts=clients", "clients=1")


def test_adapters_of_chosen_layers(run: Any, load_benchmark: Any) -> None:
    config = chz.entrypoint(
        load_benchmark("adapters").Config, argv=["num_adapters=180", "target_modules=q_proj,v_proj"]
    )
    assert (config.num_adapters, config.target_modules) == ([180], ["q_proj", "v_proj"])


def test_race_takes_turns_and_leaves_out_the_warmup(load_benchmark: Any) -> None:
    common = load_benchmark("common")
    calls: list[tuple[str, int]] = []
    contenders = {name: lambda r, n=name: calls.append((n, r)) for name in "ab"}
    seconds = common.race(contenders, common.Settings(repeats=2, warmup=1, device="cpu"), "race")
    assert calls == [(name, r) for r in range(3) for name in "ab"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_report_ratios(
    load_benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = load_benchmark("common")
    config = common.Settings(results_dir=tmp_path, device="cpu")
    report = common.Report("made_up", config)
    engine = [1.0, 2.0, 4.0]
    report.add("case", "engine", seconds=engine, tokens=100, against=engine)
    report.add("case", "other", seconds=[3.0, 8.0, 8.0], tokens=100, against=engine, goal=1.5)
    report.note("a note")
    report.finish()
    rows = read_jsonl(tmp_path / "made_up.jsonl")
    assert [row["tokens/s"] for row in rows] == [50, 12.5]
    # the median of (3, 8, 8) over that of (1, 2, 4); 3/1, 8/2 and 8/4 in the rounds
    assert (rows[1]["ratio"], rows[1]["per round"]) == (4.0, "2.00-4.00")
    assert rows[1]["seconds"] == [3.0, 8.0, 8.0]
    out = capsys.readouterr().out
    assert "a note" in out and "seconds" not in out


def test_quick_runs_leave_the_results_alone(
    load_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = load_benchmark("common")
    monkeypatch.setattr(common, "append_jsonl", lambda *_: pytest.fail("written"))
    report = common.Report("made_up", common.Settings(quick=True, device="cpu"))
    report.add("case", "engine", seconds=[1.0])
    report.finish()


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux resets it")
def test_peak_memory_forgets_what_was_before(load_benchmark: Any) -> None:
    memory = load_benchmark("common").PeakMemory("cpu")
    size = 64 * 2**20
    held = bytearray(os.urandom(1) * size)
    memory.reset()
    with_it = memory.mib()
    del held
    memory.reset()
    without = memory.mib()
    again = bytearray(os.urandom(1) * size)
    assert len(again) == size
    assert with_it - without > 50
    assert memory.mib() - without > 50


def test_settings_refuse_no_warmup(load_benchmark: Any) -> None:
    with pytest.raises(ValueError, match="warmup=0"):
        load_benchmark("common").Settings(warmup=0)


def test_bbh_adapters(run: Any, tmp_path: Path) -> None:
    table, rows = run("bbh_adapters", f"model={save_bbh_model(tmp_path / 'model')}")
    assert [(row["case"], row["contender"], row["adapters timed"]) for row in rows] == [
        ("1 adapters", "engine, together", 1),
        ("1 adapters", "HF + PEFT, one by one", 1),
        ("3 adapters", "engine, together", 3),
        ("3 adapters", "HF + PEFT, one by one", 1),
    ]
    assert all(row["peak MiB"] > 0 and row["tokens/s"] > 0 for row in rows)
    assert "first losses" in table


def test_knowledge_inner(run: Any, tmp_path: Path) -> None:
    table, rows = run("knowledge_inner", f"model={save_bbh_model(tmp_path / 'model')}")
    rival = "HF + PEFT, one by one"
    assert [(row["case"], row["contender"], row["timed"], row["goal"]) for row in rows] == [
        (f"{case}, 2 adapters", contender, timed, goal)
        for case in ("train", "train and answer")
        for contender, timed, goal in (
            ("engine, together", "2 adapters", None),
            (rival, "1 adapters", ">= 2"),
            (f"{rival}, padded to 1024", "1 steps", ">= 20"),
        )
    ]
    assert all(row["peak MiB"] > 0 for row in rows)
    # the answers cost something, the padded rival's as much as the other's
    seconds = {(row["case"].split(",")[0], row["contender"]): row["seconds"][0] for row in rows}
    for contender in {row["contender"] for row in rows}:
        assert seconds["train and answer", contender] > seconds["train", contender]
    assert "An adapter: 9 steps on " in table and "First 3 losses" in table


def test_knowledge_inner_notices_other_work(
    run: Any, load_benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_benchmark("knowledge_inner")
    real = module.AdamParams
    # the first loss is the untrained adapter's; the later ones show the updates
    monkeypatch.setattr(
        module, "AdamParams", lambda learning_rate, **kw: real(learning_rate / 2, **kw)
    )
    with pytest.raises(SystemExit, match="first losses differ by"):
        run("knowledge_inner", f"model={save_bbh_model(tmp_path / 'model')}")


def test_icl_training(run: Any) -> None:
    table, rows = run("icl_training", "repeats=2")
    found = by_contender(rows)
    assert list(found) == ["plain PyTorch loop", "icl_train", "icl_train, logged"]
    assert found["plain PyTorch loop"]["goal"] == ">= 1"
    assert all(row["steps/s"] > 0 for row in rows)
    assert "largest difference of a round's losses" in table


def test_mup_transfer(run: Any, tmp_path: Path) -> None:
    _, rows = run("mup_transfer")
    assert list(by_contender(rows)) == ["standard", "mup"]
    assert {len(row["best rates"].split()) for row in rows} == {2}
    points = (tmp_path / "mup_transfer.csv").read_text().splitlines()
    # two parametrisations: four layers at two widths, at the start and moved, and the losses
    layers, widths, rates = 5, 2, 2
    assert len(points) == 1 + 2 * (2 * layers * widths + widths * rates)
    assert (tmp_path / "mup_transfer.png").stat().st_size > 10_000


@pytest.mark.slow
def test_architectures(
    load_benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is right, and one that cannot be built, since it is not a language model."""
    argv = [
        'only=["llama","gemma4_assistant"]',
        "processes=1",
        f"docs_file={tmp_path / 'page.md'}",
        f"results_dir={tmp_path}",
    ]
    chz.nested_entrypoint(load_benchmark("architectures").main, argv=argv)
    right, not_built = read_jsonl(tmp_path / "architectures.jsonl")
    assert right["verdict"] == "right" and right["peft"] == ""
    assert right["differences"].keys() == {
        "together",
        "alone",
        "sampling",
        "sampling, greedy",
        "LoRA",
        "gradients",
        "LoRA sampling",
        "LoRA sampling, greedy",
    }
    assert max(right["differences"].values()) <= 1e-4
    assert not_built["verdict"] == "not built" and "vocab_size" in not_built["text"]
    assert "llama" in capsys.readouterr().out
    page = (tmp_path / "page.md").read_text()
    assert "Of 2 architectures: 1 right, 1 not built." in page and "## Right (1)" in page
    with pytest.raises(ValueError, match="only=\\['lama'\\]: allowed are afmoe, "):
        load_benchmark("architectures").Config(only=["lama"])


@pytest.mark.slow
def test_gpu_suite(load_benchmark: Any, tmp_path: Path) -> None:
    """Whole, in tiny sizes and on the CPU."""
    suite = load_benchmark("gpu_suite")
    out = tmp_path / "all.json"
    chz.nested_entrypoint(suite.main, argv=[f"out={out}", "quick=true", "device=cpu"])
    told = json.loads(out.read_text())
    assert told["steps"].keys() == suite.STEPS.keys()
    assert {step["ended"] for step in told["steps"].values()} == {"finished"}
    assert "passed" in told["steps"]["tests"]["last lines"][-1]
    for name in ("training", "sampling", "grpo", "adapters"):
        rows = told["steps"][name]["rows"]
        assert len(rows) >= 2 and all("contender" in row and "machine" not in row for row in rows)
    assert told["machine"]["cores"] and told["run"]


def test_gpu_suite_tells_what_did_not_finish(
    load_benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    suite = load_benchmark("gpu_suite")
    assert sum(step.seconds for step in suite.STEPS.values()) < 9 * 60
    steps = {
        "slow": suite.Step("adapters", (), 0),
        "wrong": suite.Step("adapters", ("no_such=1",), 60),
    }
    monkeypatch.setattr(suite, "STEPS", steps)
    out = tmp_path / "some.json"
    with pytest.raises(SystemExit) as caught:
        chz.nested_entrypoint(suite.main, argv=[f"out={out}", "device=cpu"])
    assert caught.value.code == 1
    told = json.loads(out.read_text())["steps"]
    assert told["slow"]["ended"] == "stopped at its limit of 0 s"
    assert told["wrong"]["ended"].startswith("failed (")
    assert any("no_such" in line for line in told["wrong"]["last lines"])
    assert "wrong: failed" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists; choose another name"):
        suite.Config(out=out)
    with pytest.raises(ValueError, match=r"steps=\['none'\]: allowed are slow, wrong"):
        suite.Config(out=tmp_path / "new", steps=["none"])


@pytest.mark.slow
def test_busy(run: Any) -> None:
    table, rows = run("busy", "workloads=train", "candidates=")
    assert [(row["case"], row["contender"], row["fair"]) for row in rows] == [
        ("train beside 0", "engine", 1.0),
        ("train beside 0", "HF + PEFT", 1.0),
        ("train beside 1", "engine", rows[2]["fair"]),
        ("train beside 1", "HF + PEFT", rows[2]["fair"]),
    ]
    assert all(row["slower"] > 0 and row["tokens/s"] > 0 for row in rows)
    assert "from connect()" in table


@pytest.mark.slow
def test_busy_leaves_out_who_takes_too_long(run: Any) -> None:
    _, rows = run("busy", "workloads=decode", "candidates=", "rivals=false", "max_seconds=0")
    assert [(row["case"], row["slower"]) for row in rows] == [
        ("decode beside 0", "over 0 s"),
        ("decode beside 1", None),
    ]


def test_fair_slowdown(load_benchmark: Any) -> None:
    case = load_benchmark("busy").Case
    fair = {(b, n): case(b, n).fair_slowdown(2, 2) for b, n in ((0, 1), (2, 1), (1, 3))}
    assert fair == {(0, 1): 1.0, (2, 1): 2.0, (1, 3): 3.5}
    # one thread of its own on four cores meets nobody
    assert case(3).fair_slowdown(1, 4) == 1.0
    assert case(0).fair_slowdown(4, 2) == 1.0


def test_busy_processes_have_the_environment_in_their_name(
    load_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    with load_benchmark("busy")._environment("OMP_WAIT_POLICY=passive+OMP_NUM_THREADS=1"):
        chosen = {k: v for k, v in os.environ.items() if "OMP_" in k}
        assert "GOMP_SPINCOUNT" not in chosen
        assert (chosen["OMP_WAIT_POLICY"], chosen["OMP_NUM_THREADS"]) == ("passive", "1")
    assert os.environ["GOMP_SPINCOUNT"] == "5"


def test_pool_scale(run: Any) -> None:
    _, rows = run("pool", "parts=scale", "service_ms=1")
    assert [(row["case"], row["requests a batch"]) for row in rows] == [
        ("1 engines", 8),
        ("2 engines", 8),
    ]
    for row in rows:
        assert row["driver CPU ms a request"] > 0 and row["round s"] >= 0.001
        assert row["round with a loss s"] > 0


@pytest.mark.slow
def test_pool_overhead(run: Any) -> None:
    _, rows = run("pool", "parts=overhead,two")
    found = [(row["case"], row["contender"]) for row in rows if "Ray" not in row["contender"]]
    assert found == [
        *((case, name) for case in ("inner loop", "GRPO step") for name in OVERHEAD),
        *((case, name) for case in ("inner loop", "GRPO step") for name in TWO),
    ]
    for row in rows:
        assert row["median s"] > 0
        if row["contender"] == "child process":
            assert 0 < row["outside the engine ms"] < 1000 * row["median s"]


OVERHEAD = ("in process", "child process")
TWO = ("one engine, two threads", "two engines, one thread each")
