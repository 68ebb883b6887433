"""The SDK's command line, unmodified, against scripts/serve.py; and a restart of the server.

uv run pytest tests/training/serving/test_tinker_cli.py -m slow
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from peft import PeftModel
from served import Served, served
from tiny_chat import chat_tokenizer, save_chat_model
from tiny_models import hf_logprobs, hf_model

pytestmark = pytest.mark.slow

TOKENS = chat_tokenizer().encode("Hello there")


def datum() -> tinker.Datum:
    inputs: dict[str, Any] = {"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)}
    return tinker.Datum(tinker.ModelInput.from_ints(TOKENS[:-1]), inputs)


def tinker_cli(server: Served, *arguments: str, json_format: bool = True) -> Any:
    """What it prints as JSON, or as it is."""
    form = ["--format", "json"] if json_format else []
    done = subprocess.run(
        [sys.executable, "-m", "tinker.cli", *form, *arguments],
        env={**os.environ, "TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=120,
    )
    # beside other work the SDK's process may be aborted by its own threads as it ends, when all has
    # been done and printed; what it printed and did is looked at in either case
    assert done.returncode in (0, -signal.SIGABRT), done
    return json.loads(done.stdout) if json_format and done.stdout.strip() else done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("server")
    save_chat_model(made / "model")
    return made


def test_the_command_line_and_a_restart(folder: Path, tmp_path: Path) -> None:
    settings = ["model_name=model"]
    with served(folder, settings) as server:
        port = int(server.url.rpartition(":")[2])
        service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
        trainer = service.create_lora_training_client("model", rank=2, seed=0).result()
        step = tinker.AdamParams(learning_rate=0.05)
        trainer.forward_backward([datum()], "cross_entropy")
        trainer.optim_step(step).result()
        path = trainer.save_state("kept").result().path
        sampler_path = trainer.save_weights_for_sampler("kept").result().path
        output = trainer.forward([datum()], "cross_entropy").result()
        run = trainer.model_id

        runs = tinker_cli(server, "run", "list")
        assert [r["training_run_id"] for r in runs["runs"]] == [run]
        assert tinker_cli(server, "run", "info", run)["training_run_id"] == run
        listed = tinker_cli(server, "checkpoint", "list", "--run-id", run)
        assert {c["tinker_path"] for c in listed["checkpoints"]} == {path, sampler_path}
        assert "model" in json.dumps(tinker_cli(server, "model", "list"))
        tinker_cli(server, "checkpoint", "set-ttl", path, "--ttl", "7200")
        assert tinker_cli(server, "checkpoint", "info", path)["expires_at"]
        tinker_cli(server, "checkpoint", "set-ttl", path, "--remove")
        tinker_cli(server, "checkpoint", "publish", path)
        assert tinker_cli(server, "checkpoint", "info", path)["public"] is True
        tinker_cli(server, "checkpoint", "unpublish", path)
        tinker_cli(server, "checkpoint", "download", path, "-o", str(tmp_path))
        [files] = [p.parent for p in tmp_path.rglob("adapter_config.json")]
        loaded = PeftModel.from_pretrained(hf_model(str(folder / "model")), str(files)).eval()
        with torch.no_grad():
            wanted = hf_logprobs(loaded, TOKENS[:-1], torch.tensor(TOKENS[1:]))
        got = output.loss_fn_outputs[0]["logprobs"].to_torch()
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
        # the export that the download went through is gone
        kinds = {c["tinker_path"] for c in tinker_cli(server, "checkpoint", "list")["checkpoints"]}
        assert kinds == {path, sampler_path}
        tinker_cli(server, "checkpoint", "delete", "-y", sampler_path, json_format=False)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL

    # the same key and the same address, so the client that was open goes on
    with served(folder, [*settings, f"port={port}"]) as again:
        assert (again.url, again.key) == (server.url, server.key)
        rest = tinker.RestClient(base_url=again.url, api_key=again.key)
        kept = [c.tinker_path for c in rest.list_checkpoints(run).result().checkpoints]
        assert kept == [path]
        with pytest.raises(Exception, match="checkpoint") as told:
            trainer.forward([datum()], "cross_entropy").result()
        assert path in str(told.value)
        fresh = tinker.ServiceClient(base_url=again.url, api_key=again.key)
        resumed = fresh.create_training_client_from_state_with_optimizer(path).result()
        after = resumed.forward([datum()], "cross_entropy").result()
        assert after.metrics["loss:sum"] == output.metrics["loss:sum"]
        fresh.close("success").result()
        assert again.end(signal.SIGTERM) == 0
