"""AdamW with the state layout of FusedAdam in Transformer Engine and apex, for machines without either."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Adam(torch.optim.Optimizer):
    """Adam or AdamW (Loshchilov and Hutter, arXiv 1711.05101) with `step` in the parameter group.

    Megatron's distributed optimizer saves and loads optimizer state by that layout: per parameter `exp_avg` and
    `exp_avg_sq`, per group `step`. A state with a `step` per parameter (torch's AdamW) is rejected, because loading
    it would silently restart the bias correction.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        betas: Decay rates of the first and the second moment.
        eps: Term added to the square root of the second moment.
        weight_decay: Weight decay, decoupled if `adam_w_mode`, otherwise added to the gradient.
        adam_w_mode: Whether to use AdamW instead of Adam with L2 regularization.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                group["step"] = group.get("step", 0) + 1
                self._update_group(group, parameters)

    def _update_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients: list[torch.Tensor] = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        first = [self.state[parameter]["exp_avg"] for parameter in parameters]
        second = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        if group["weight_decay"] and not self.adam_w_mode:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        # The foreach operations update all parameters in a few calls; a loop would be dominated by call overhead.
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        if group["weight_decay"] and self.adam_w_mode:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # The bias corrections are Python floats: `step` is shared by the group and is not a tensor.
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_addcdiv_(parameters, first, denominator, -group["lr"] / (1 - beta1 ** group["step"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; raise ValueError for one that torch's own Adam wrote."""
        if any("step" in state for state in state_dict["state"].values()):
            raise ValueError(
                "this optimizer state has a step count per parameter, so torch.optim wrote it: its bias correction "
                "would restart. Save it again with megatron_prime's Adam, or start with a fresh optimizer"
            )
        super().load_state_dict(state_dict)


def install() -> None:
    """Make Megatron's optimizers use this Adam.

    Megatron falls back to torch's AdamW, which keeps `step` per parameter. The distributed optimizer cannot load such a
    state, because it expects the layout of Transformer Engine and apex.
    """
    from megatron.core import optimizer as megatron_optimizer
    from megatron.core.optimizer import distrib_optimizer

    # Both modules bound the fallback when they were imported, and choose the state layout by these flags.
    megatron_optimizer.Adam = Adam  # type: ignore[assignment, misc]
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = Adam  # type: ignore[assignment, misc]
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def install_without_fused() -> None:
    """Call `install` unless Megatron found the fused Adam of Transformer Engine or apex."""
    from megatron.core import optimizer as megatron_optimizer

    if megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        install()
