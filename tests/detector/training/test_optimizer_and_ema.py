"""Learning rate, weight decay and the moving average, by hand and by loops."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from detector.config import ScheduleConfig
from detector.criterion import Losses
from detector.training.ema import WeightAverage
from detector.training.learner import Learner
from detector.training.optimizer import (
    build_optimizer,
    cosine_factor,
    lr_factor,
    multistep_factor,
    warmup_factor,
)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (1, 0.325), (2, 0.55), (3, 0.775), (4, 1.0), (5, 1.0), (10**6, 1.0)]
)
def test_warmup_rises_in_a_line_to_one(step: int, factor: float) -> None:
    assert warmup_factor(step, steps=4, first=0.1) == pytest.approx(factor)


def test_no_warmup_starts_at_one() -> None:
    assert warmup_factor(0, steps=0, first=0.1) == 1.0


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1), (7.999, 1), (8, 0.1), (10.5, 0.1), (11, 0.01), (99, 0.01)]
)
def test_multistep_falls_at_every_milestone(epoch: float, factor: float) -> None:
    assert multistep_factor(epoch, milestones=[8, 11], gamma=0.1) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 1), (1 / 3, 0.2 + 0.8 * 0.75), (0.5, 0.6), (2 / 3, 0.2 + 0.8 * 0.25), (1, 0.2), (1.5, 0.2)],
)
def test_cosine_falls_to_the_final_factor_and_stays(progress: float, factor: float) -> None:
    assert cosine_factor(progress, final=0.2) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig(milestones=[1, 2.5], gamma=0.5), [1] * 4 + [0.5] * 6 + [0.25] * 2),
        (
            ScheduleConfig(name="cosine", final_factor=0.2),
            [0.6 + 0.4 * math.cos(math.pi * k / 12) for k in range(12)],
        ),
    ],
)
def test_a_schedule_is_its_warm_up_times_its_fall(schedule: ScheduleConfig, expected: list[float]) -> None:
    """Three epochs of four steps: milestones are in epochs, the warm-up is in steps."""
    schedule = schedule.model_copy(update={"warmup_steps": 3, "warmup_factor": 0.4})
    warm_up = [0.4, 0.6, 0.8] + [1] * 9
    factors = [lr_factor(schedule, step, total_steps=12, steps_per_epoch=4) for step in range(12)]
    assert factors == pytest.approx([one * other for one, other in zip(warm_up, expected, strict=True)])


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return net


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("before", [torch.channels_last, torch.contiguous_format])
def test_a_state_is_restored_whatever_memory_format_it_was_in(name: str, before: torch.memory_format) -> None:
    """Oracle: the same two steps without a change; the fused kernels use memory as it is laid out."""

    def learner(layout: torch.memory_format) -> Learner:
        net: Any = small_net().to(memory_format=layout)
        optimizer = build_optimizer(net, name, 0.1, 0.9, weight_decay=0.01, decay_norm_and_bias=True)
        return Learner(net, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, 0)

    def step(learner: Learner, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in learner.model.parameters():
            value = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(value)
        learner.update(Losses({"box": torch.zeros(())}, torch.tensor(1)))

    after = torch.channels_last if before == torch.contiguous_format else torch.contiguous_format
    straight, moved = learner(before), learner(after)
    step(straight, 1)
    state, weights = copy.deepcopy((straight.state(), straight.model.state_dict()))
    moved.restore(state, weights, "the test")
    step(straight, 2)
    step(moved, 2)
    assert moved.model[0].weight.is_contiguous(memory_format=after)  # type: ignore[index]
    for one, other in zip(straight.model.parameters(), moved.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_momentum_that_a_run_did_not_have_begins_at_zero() -> None:
    """PyTorch's kernel would use uninitialised memory, and keep it if the first step is skipped."""

    def learner(momentum: float) -> Learner:
        net: Any = small_net()
        optimizer = build_optimizer(net, "sgd", 0.1, momentum, weight_decay=0.0, decay_norm_and_bias=True)
        return Learner(net, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, 0)

    before, after = learner(0.0), learner(0.9)
    after.restore(before.state(), before.model.state_dict(), "the test")
    for parameter in after.model.parameters():
        assert torch.equal(after.optimizer.state[parameter]["momentum_buffer"], torch.zeros_like(parameter))


def test_statistics_of_a_step_that_fp16_leaves_out_stay_as_they_were() -> None:
    """A gradient that overflows is no fault in fp16, but its batch did not contribute to the weights."""
    net: Any = small_net()
    optimizer = build_optimizer(net, "sgd", 0.1, 0.9, weight_decay=0.0, decay_norm_and_bias=True)
    learner = Learner(net, optimizer, torch.amp.GradScaler("cpu", init_scale=65536.0), None, 0)
    before = copy.deepcopy(net.state_dict())
    learner.begin(0.1)
    loss = net(torch.rand(2, 3, 8, 8)).sum()
    learner.scaler.scale(loss).backward()
    net[0].weight.grad.fill_(torch.inf)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    _, fault = learner.update(Losses({"box": loss.detach()}, torch.tensor(1)))
    assert not fault
    floats = {name: value for name, value in before.items() if value.is_floating_point()}
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in floats.items())


@pytest.mark.parametrize("clip_norm", [0.5, 1e6, None])
@pytest.mark.parametrize("scale", [1024.0, None])
def test_a_long_gradient_is_shortened_whatever_the_loss_was_scaled_by(
    clip_norm: float | None, scale: float | None
) -> None:
    """Oracle: the gradient of the loss itself, and one step of SGD with lr 1 by hand."""
    net: Any = small_net()
    optimizer = build_optimizer(net, "sgd", 1.0, 0.0, weight_decay=0.0, decay_norm_and_bias=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    learner = Learner(net, optimizer, scaler, clip_norm, 0)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    learner.begin(1.0)
    loss = net(pixels).square().mean()
    gradients = torch.autograd.grad(loss, [*net.parameters()], retain_graph=True)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    learner.scaler.scale(loss).backward()
    norm, _ = learner.update(Losses({"box": loss.detach()}, torch.tensor(1)))
    length = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    assert float(norm) == pytest.approx(length, rel=1e-5)
    assert length > 0.5
    factor = 1.0 if clip_norm is None else min(1.0, clip_norm / length)
    for was, gradient, now in zip(before, gradients, net.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), was - factor * gradient, rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_loss_is_restored() -> None:
    """Otherwise fp16 would have to find it again, by skipping a dozen steps."""

    def learner(scale: float) -> Learner:
        net: Any = small_net()
        optimizer = build_optimizer(net, "sgd", 0.1, 0.9, weight_decay=0.0, decay_norm_and_bias=True)
        return Learner(net, optimizer, torch.amp.GradScaler("cpu", init_scale=scale), None, 0)

    before, after = learner(8.0), learner(65536.0)
    after.restore(before.state(), before.model.state_dict(), "the test")
    assert after.scaler.get_scale() == 8.0


def test_a_run_that_goes_on_in_fp16_begins_with_a_scale_of_its_own() -> None:
    """A run that had no scale has none to restore."""

    def learner(scaler: torch.amp.GradScaler) -> Learner:
        net: Any = small_net()
        optimizer = build_optimizer(net, "sgd", 0.1, 0.9, weight_decay=0.0, decay_norm_and_bias=True)
        return Learner(net, optimizer, scaler, None, 0)

    before = learner(torch.amp.GradScaler("cpu", enabled=False))
    after = learner(torch.amp.GradScaler("cpu", init_scale=512.0))
    after.restore(before.state(), before.model.state_dict(), "the test")
    assert after.scaler.get_scale() == 512.0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_groups_of_parameters_stand_in_the_order_that_saved_states_go_by(name: str) -> None:
    """A checkpoint has only their numbers: in another order a weight would get the momentum of another."""
    net = small_net()
    optimizer = build_optimizer(net, name, 0.1, 0.9, 0.5, False, slowed=net[0], slowed_lr_factor=0.25)
    names = {parameter: key for key, parameter in net.named_parameters()}
    assert [
        (group["weight_decay"], group["lr_factor"], [names[parameter] for parameter in group["params"]])
        for group in optimizer.param_groups
    ] == [
        (0.5, 1.0, ["2.weight"]),
        (0.5, 0.25, ["0.weight"]),
        (0.0, 1.0, ["1.weight", "1.bias", "2.bias"]),
        (0.0, 0.25, ["0.bias"]),
    ]


def test_the_momentum_of_sgd_is_nothing_to_adamw() -> None:
    """As the configuration says: for sgd only."""
    optimizer = build_optimizer(small_net(), "adamw", 0.1, 0.5, weight_decay=0.0, decay_norm_and_bias=True)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("everything", [True, False])
def test_weight_decay_shrinks_what_the_configuration_says(name: str, everything: bool) -> None:
    """Without a gradient, one step of SGD and of AdamW multiplies a decayed weight by 1 - lr * decay."""
    net = small_net()
    net[2].requires_grad_(False)
    before = {key: tensor.detach().clone() for key, tensor in net.named_parameters()}
    optimizer = build_optimizer(net, name, 0.1, 0.9, weight_decay=0.5, decay_norm_and_bias=everything)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {"0.weight", "0.bias", "1.weight", "1.bias"} if everything else {"0.weight"}
    for key, tensor in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if key in decayed else 1
        torch.testing.assert_close(tensor.detach(), before[key] * factor, msg=key)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_part_of_the_model_moves_by_its_part_of_the_learning_rate(name: str) -> None:
    """With a gradient of 1 everywhere the first step of SGD and of AdamW is the learning rate."""
    net = small_net()
    before = {key: tensor.detach().clone() for key, tensor in net.named_parameters()}
    optimizer = build_optimizer(net, name, 0.1, 0.9, 0.0, False, slowed=net[0], slowed_lr_factor=0.25)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for key, tensor in net.named_parameters():
        moved = 0.025 if key.startswith("0.") else 0.1
        torch.testing.assert_close(before[key] - tensor.detach(), torch.full_like(tensor, moved), msg=key)


def test_momentum_reaches_sgd() -> None:
    """Two steps with gradient 1: lr, then lr * (1 + momentum)."""
    net = nn.Linear(1, 1, bias=False)
    start = net.weight.item()
    optimizer = build_optimizer(net, "sgd", 0.1, 0.9, weight_decay=0.0, decay_norm_and_bias=True)
    for _ in range(2):
        net.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert net.weight.item() == pytest.approx(start - 0.1 - 0.19, abs=1e-6)


def test_a_first_step_that_is_left_out_leaves_no_momentum() -> None:
    """The fused kernel takes uninitialised memory for the momentum, and would leave it so."""
    net = nn.Linear(512, 512, bias=False)
    optimizer = build_optimizer(net, "sgd", 0.1, 0.9, weight_decay=0.0, decay_norm_and_bias=True)
    start = net.weight.detach().clone()
    net.weight.grad = torch.ones_like(net.weight)
    used = torch.full_like(net.weight, 1e30)
    del used
    for left_out in (1.0, 0.0):
        optimizer.found_inf = torch.tensor(left_out)  # type: ignore[attr-defined]
        optimizer.step()
    torch.testing.assert_close(net.weight.detach(), start - 0.1)


def test_average_equals_an_explicit_loop_over_weights_and_statistics() -> None:
    """a <- d a + (1 - d) w, with d = min(decay, n / (n + 10)) at update n, in Python floats."""
    net = small_net()
    average = WeightAverage(net, decay=0.25)
    watched = ["0.weight", "2.bias", "1.running_mean", "1.running_var"]
    expected = {key: net.state_dict()[key].flatten().tolist() for key in watched}
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 8):  # 3 / 13 < 0.25 < 4 / 14: the decay rises, then stays
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        average.update(net)
        decay = min(0.25, n / (n + 10))
        for key in watched:
            new = net.state_dict()[key].flatten().tolist()
            expected[key] = [decay * a + (1 - decay) * w for a, w in zip(expected[key], new, strict=True)]
    for key in watched:
        assert average.model.state_dict()[key].flatten().tolist() == pytest.approx(expected[key], abs=1e-5)


def test_average_is_a_copy_that_is_not_trained() -> None:
    net = small_net()
    average = WeightAverage(net, decay=0.9)
    assert not average.model.training and net.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in net.parameters())
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        average.model[0].weight.zero_()
    assert net[0].weight.equal(before)


def test_average_of_a_constant_is_the_constant() -> None:
    net = small_net()
    average = WeightAverage(net, decay=0.999)
    for _ in range(50):
        average.update(net)
    for one, other in zip(average.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert math.isfinite(average.model[1].running_var.sum().item())
