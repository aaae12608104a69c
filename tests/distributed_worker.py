"""What test_distributed.py measures on one process and, under torchrun, on two: gradients, weights, what was seen."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from sphere_mini import training
from sphere_mini.command_line import run_script
from sphere_mini.data import to_model_range
from sphere_mini.datasets import load_data
from sphere_mini.distributed import connect, first_of_node, from_rank_0, gather, own_rows
from sphere_mini.errors import UserError
from sphere_mini.presets import make_recipe
from sphere_mini.training import distribute, new_state, train, train_step

FIELDS = {"width": 16, "depth": 2, "num_heads": 2, "batch_size": 24, "steps": 75, "lr": 1e-3}


def measure(path: Path, device: torch.device) -> None:
    """Save what the first step's gradients are, in float64, for each way to split the batch; and 75 steps' traces."""
    found = {"gradients": {}}
    data, _ = load_data(make_recipe("digits"), device)
    for parts, checkpointed in ((1, False), (2, False), (4, False), (1, True), (2, True)):
        recipe = make_recipe(
            "digits", grad_accum=parts, checkpoint_activations=checkpointed, **FIELDS
        )
        recipe = recipe.resolved(len(data))
        torch.set_default_dtype(torch.float64)
        state = new_state(recipe, recipe.sphere_config(data.class_names), device)
        fill(state.model)
        state.optimizer.register_step_pre_hook(lambda *_, of=state: keep_gradients(found, of))
        distribute(state)
        x, y = to_model_range(own_rows(data.images[:24])).double(), own_rows(data.labels[:24])
        train_step(state, recipe, x, y)
        torch.set_default_dtype(torch.float32)
        found["gradients"][parts, checkpointed] = found.pop("last")
    recipe = make_recipe("digits", **FIELDS).resolved(len(data))
    state, levels, seen = new_state(recipe, recipe.sphere_config(data.class_names), device), [], []
    batches, losses = data.batches, training.sphere_losses
    data.batches = lambda rows: batches(row for row in rows if seen.append(row) is None)
    training.sphere_losses = lambda *args: levels.append(args[3].r_near) or losses(*args)
    found["losses"] = [step["loss"].item() for step in train(state, recipe, data)]
    training.sphere_losses = losses
    found["levels"], found["seen"] = gather([torch.stack(levels)]), gather([torch.stack(seen)])
    found["weights"] = gather([state.model.weights_hash()])
    found["ema"] = gather([state.ema.weights_hash()])
    found["messages"] = gather([message_of(from_rank_0), message_of(first_of_node)])
    from_rank_0(lambda: torch.save(found, path))


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
    found["last"] = {
        name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None
    }


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
