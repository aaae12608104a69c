"""What test_distributed.py measures on one process and, under torchrun, on two."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from sphere_mini import training
from sphere_mini.cli import run_script
from sphere_mini.data.images import to_model_range
from sphere_mini.data.sets import load_data
from sphere_mini.distributed import connect, first_on_node, from_rank_0, gather, rank_shard
from sphere_mini.errors import UserError
from sphere_mini.recipe import make_recipe
from sphere_mini.training import distribute, new_state, train, train_step

FIELDS = {"width": 16, "depth": 2, "num_heads": 2, "batch_size": 24, "steps": 75, "lr": 1e-3}
FIELDS["spread"] = 0.0  # of pairs within each part of a batch: the one term that a split changes


def measure(path: Path, device: torch.device) -> None:
    """Save the gradients of the first step, and what happens in 75 steps."""
    found = {"gradients": measure_gradients(device)}
    found |= measure_steps(device)
    found["messages"] = gather([message_of(from_rank_0), message_of(first_on_node)])
    from_rank_0(lambda: torch.save(found, path))


def measure_gradients(device: torch.device) -> dict:
    """The first step's gradients, in float64, for each way to split the batch."""
    data, _ = load_data(make_recipe("digits"), device)
    gradients = {}
    for count, checkpointed in ((1, False), (2, False), (4, False), (1, True), (2, True)):
        fields = dict(grad_accum=count, checkpoint_activations=checkpointed, **FIELDS)
        recipe = make_recipe("digits", **fields).resolved(len(data))
        torch.set_default_dtype(torch.float64)
        state = new_state(recipe, data)
        fill(state.model)
        found = {}
        state.optimizer.register_step_pre_hook(
            lambda *_, state=state, found=found: keep_gradients(found, state)
        )
        distribute(state)
        x = to_model_range(rank_shard(data.images[:24])).double()
        train_step(state, recipe, x, rank_shard(data.labels[:24]))
        torch.set_default_dtype(torch.float32)
        gradients[count, checkpointed] = found
    return gradients


def measure_steps(device: torch.device) -> dict:
    """75 steps' losses, noise levels and rows of the data set, and the weights after them."""
    data, _ = load_data(make_recipe("digits"), device)
    recipe = make_recipe("digits", **FIELDS).resolved(len(data))
    state = new_state(recipe, data)
    levels = []
    seen = []
    batches = data.batches
    losses = training.sphere_losses

    def noted_batches(rows):
        return batches(row for row in rows if seen.append(row) is None)

    def noted_losses(*args):
        levels.append(args[3].r_near)
        return losses(*args)

    data.batches = noted_batches
    training.sphere_losses = noted_losses
    found = {"losses": [step["loss"].item() for step in train(state, recipe, data)]}
    training.sphere_losses = losses
    found["levels"] = gather([torch.stack(levels)])
    found["seen"] = gather([torch.stack(seen)])
    found["weights"] = gather([state.model.weights_hash()])
    found["ema"] = gather([state.ema.weights_hash()])
    return found


def fill(model: torch.nn.Module) -> None:
    """Draw the layers that start at zero too, so that every parameter has a gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )


def keep_gradients(found: dict, state: training.TrainState) -> None:
    """Note the gradients as the optimizer sees them."""
    for name, weight in state.model.named_parameters():
        if weight.grad is not None:
            found[name] = weight.grad.clone()


def message_of(run) -> str:
    """The error that all processes get where rank 0 alone has one."""

    def fail() -> None:
        raise UserError("rank 0 has found a mistake")

    try:
        run(fail)
    except UserError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    run_script(lambda: measure(Path(sys.argv[1]), connect("cpu")))
