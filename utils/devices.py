"""Which device a run computes on."""


def choose_device(device: str | None) -> str:
    """cuda where there is one, unless told: cpu, cuda or cuda:N. ValueError for what this machine
    does not have."""
    import torch

    available = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if device is None:
        return available[-1]
    numbered = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if device not in (*available, *numbered):
        raise ValueError(
            f"device={device!r} is not available; allowed here: {', '.join(available)}"
        )
    return device
