"""What a training run costs, from shapes alone: the answer to `train.py --dry-run`."""

from dataclasses import asdict

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..distributed import autocast, precision, world
from ..losses import StepNoise, sphere_losses
from ..model import SphereEncoder
from ..perceptual import NETWORKS
from ..presets import SETS, Recipe

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
ATTENTION = {  # a CPU's kernels, which some versions of torch leave out of their count
    FLASH: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    FLASH_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}


def cost(recipe: Recipe, num_images: int, num_classes: int, device: torch.device) -> dict[str, int]:
    """What a resolved recipe takes: parameters, FLOPs of matrix products per image, bytes of memory on the device.

    From shapes alone: nothing is computed or read. The bytes are those of the weights, their average, Adam's two
    moments, the gradients and what the losses keep for them (of one process with one part the larger of both), and the
    images where memory holds them.
    """
    config, build = (
        recipe.sphere_config([str(k) for k in range(num_classes)]),
        NETWORKS.get(recipe.perceptual),
    )
    saved = {}
    size = recipe.batch_size // recipe.grad_accum // world()[1]
    images = num_images if recipe.fits_memory(num_images) else 0
    perceptual = build(pretrained=False) if build else None

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(tensor: Tensor) -> None:
        keep(tensor)

    step, decode, encode = (
        FlopCounterMode(display=False, custom_mapping=ATTENTION) for _ in range(3)
    )
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes, autocast(torch.device("cpu"), precision(device, recipe.dtype)):
        model = SphereEncoder(config)
        frozen = (
            [shapes.from_tensor(weight) for weight in perceptual.parameters()] if perceptual else []
        )
        x, v = (
            torch.zeros(size, 3, config.image_size, config.image_size),
            torch.zeros(size, *config.latent_shape),
        )
        r, y = torch.zeros(size), torch.zeros(size).long() if config.num_classes else None
        if (
            recipe.checkpoint_activations
        ):  # all that one block keeps while it is done again, and what enters each
            tokens, c = (
                torch.zeros(2 * size, config.latent_shape[0], config.width),
                torch.zeros(2 * size, config.width),
            )
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                tokens = model.decoder.blocks[0](
                    tokens, c if config.num_classes else None, model.decoder.rope
                )
            for end in (model.encoder, model.decoder):
                end.checkpoint_activations = True
                for block in end.blocks:
                    block.register_forward_pre_hook(lambda _, inputs: keep_input(inputs[0]))
        with step, saved_tensors_hooks(keep, lambda tensor: tensor):
            noise = StepNoise(v, r, r, torch.zeros(size, 4).bool())
            sphere_losses(model, x, y, noise, recipe.loss_weights, perceptual)["loss"].backward()
        with decode, torch.no_grad():
            model.decode(v, y)
        with encode, torch.no_grad():
            model.encode(x, y)
    for weight in [*model.parameters(), *frozen]:
        saved.pop(weight.untyped_storage()._cdata, None)
    count = sum(p.numel() for p in model.parameters())
    both = sum if recipe.grad_accum > 1 or world()[1] > 1 else max  # gradients are there already
    held = 16 * count + 4 * sum(p.numel() for p in frozen) + both((4 * count, sum(saved.values())))
    flops = {
        name: mode.get_total_flops() // size
        for name, mode in (("step", step), ("decode", decode), ("encode", encode))
    }
    return {"parameters": count, "bytes": held + images * 3 * config.image_size**2} | flops


def dry_run(recipe: Recipe, device: torch.device) -> None:
    """Print a recipe and what it takes; a folder's images are not counted, nothing is read or written."""
    num_images, num_classes, _ = SETS[recipe.dataset]
    recipe = recipe.resolved(num_images)
    facts, config = cost(recipe, num_images, num_classes, device), recipe.sphere_config(())
    (tokens, channels), unknown = config.latent_shape, "as many as the folder has"
    bare = "" if num_classes or not recipe.conditional else " without layers for classes"
    facts["loop"] = 4 * facts["decode"] + 3 * facts["encode"]
    giga = {
        name: f"{value / 1e9:,.0f}" if value > 1e11 else f"{value / 1e9:.3g}"
        for name, value in facts.items()
    }
    shown = asdict(recipe) | {
        name: getattr(config, name) for name in ("width", "depth", "num_heads", "patch_size")
    }
    shown |= {"images an epoch": f"{num_images:,}" if num_images else unknown}
    shown |= {
        "steps": f"{recipe.steps:,}" if recipe.steps else f"{recipe.epochs:g} epochs of {unknown}"
    }
    shown |= {} if recipe.steps else {"warmup_steps": f"{recipe.warmup_epochs:g} epochs"}
    shown |= {
        "classes": (num_classes or unknown) if recipe.conditional else 0,
        "tokens": tokens,
        "latent channels": channels,
    }
    shown |= {
        "latent dimension": f"{tokens * channels:,}",
        "parameters": f"{facts['parameters']:,}" + bare,
    }
    shown |= {"compression": f"{3 * config.image_size**2 / (tokens * channels):.4g}"}
    shown |= {"GFLOPs per training image": giga["step"]}
    shown |= {"GFLOPs per generated image": f"{giga['decode']} in one step, {giga['loop']} in four"}
    shown |= {"memory per device": f"about {giga['bytes']} GB in {precision(device, recipe.dtype)}"}
    for name, value in shown.items():
        print(f"{name:<28}{value}")
