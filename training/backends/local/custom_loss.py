"""A loss of the user's own by two passes: logprobs, then cross_entropy with weights -dC/dlogp,
which is exact because cross_entropy is linear in the logprobs."""

from collections.abc import Sequence

import torch

from training.api import CustomLoss, Datum, ForwardBackwardOutput, TensorData


def for_logprobs(data: Sequence[Datum]) -> list[Datum]:
    """The data of the first pass, a cross_entropy without weights."""
    targets = [{"target_tokens": datum.loss_fn_inputs["target_tokens"]} for datum in data]
    return [Datum(d.model_input, t) for d, t in zip(data, targets, strict=True)]


class Surrogate:
    """What the loss makes of the first pass: `data` of the second one, a cross_entropy."""

    def __init__(
        self, data: list[Datum], loss_fn: CustomLoss, first: ForwardBackwardOutput
    ) -> None:
        leaves = [o["logprobs"].to_torch().requires_grad_() for o in first.loss_fn_outputs]
        loss, self._metrics = loss_fn(data, leaves)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        self._loss, self._leaves = float(loss.detach()), leaves
        self.data = [
            Datum(
                d.model_input,
                {**d.loss_fn_inputs, "weights": torch.zeros_like(leaf) if g is None else -g},
            )
            for d, leaf, g in zip(for_logprobs(data), leaves, gradients, strict=True)
        ]

    def combined(self, second: ForwardBackwardOutput) -> ForwardBackwardOutput:
        """What is told of both passes together."""
        own = {"loss:sum": self._loss, "surrogate_loss:sum": second.metrics["loss:sum"]}
        logprobs = [{"logprobs": TensorData.from_torch(leaf)} for leaf in self._leaves]
        return ForwardBackwardOutput(second.loss_fn_output_type, logprobs, {**self._metrics, **own})
