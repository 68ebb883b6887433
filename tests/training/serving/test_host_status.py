"""What the host tells the page: of everybody in numbers, of an owner's own clients by name."""

from pathlib import Path
from typing import Any

from host_world import OWNER, PROMPT, Client, Clock, data_of, make_host, open_store, serve
from tiny_chat import save_chat_model

from training.api import SamplingParams
from training.serving.host import Host


def test_what_the_page_is_told(connect_local: Any, tmp_path: Path) -> None:
    clock = Clock()
    folder = save_chat_model(tmp_path / "chat")
    store = open_store(tmp_path)
    host = make_host(connect_local(), store, folder, clock)

    async def scenario(host: Host) -> None:
        first, other = Client(host), Client(host, "ben")
        model = await first.create()
        clock.now = 100.0
        host.heartbeat(OWNER, first.session_id)
        await first.train(model, data_of(0, (9, 12)))
        sampler = await first.snapshot(model)
        await first.sample(sampler, PROMPT, 3, SamplingParams(max_tokens=5, stop=[]))
        clock.now = 104.0
        status = host.status()
        assert {k: status[k] for k in ("sessions", "models", "samplers", "running", "waiting")} == {
            "sessions": 2,
            "models": 1,
            "samplers": 1,
            "running": 0,
            "waiting": 0,
        }
        assert status["uptime_seconds"] == 104.0
        assert status["base_models"] == [folder, "an/alias"]
        # 8 and 11 positions, three samples of 5 tokens, in a window of 30 seconds
        assert status["trained_per_second"] == 19 / 30 and status["sampled_per_second"] == 15 / 30
        (client,) = host.clients(OWNER)
        assert client["session_id"] == first.session_id
        assert (client["silent_seconds"], client["models"], client["open_requests"]) == (4, 1, 0)
        (theirs,) = host.clients("ben")
        assert theirs["session_id"] == other.session_id and theirs["models"] == 0
        assert host.clients("nobody") == [] and host.num_open(OWNER) == 0
        newer = host.create_session(OWNER, tags=["a", "b"], sdk_version="0.38.0")
        newest = host.create_session(OWNER, tags=["a"], display_name="mine")
        found = host.clients(OWNER)
        assert [c["session_id"] for c in found] == [newest, newer, first.session_id]
        assert [c["name"] for c in found] == ["mine", "a b", ""]
        assert found[1]["sdk_version"] == "0.38.0"
        host.finish(OWNER, newest)
        assert len(host.clients(OWNER)) == 2

    try:
        serve(host, scenario)
    finally:
        store.close()
