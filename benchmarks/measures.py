"""What `speed.py` measures, in a process of its own that imports one version of the package.

It reads the name of a measure a line and answers with its figure in JSON, so that two versions can
be asked in turn: each measures itself by its own file of this name.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from sphere_mini.data.images import ImageSet, batch_indices, to_model_range
from sphere_mini.distributed import autocast, pick_device
from sphere_mini.perceptual import load_perceptual
from sphere_mini.recipe import SETS, make_recipe
from sphere_mini.sampling import draw_from_seeds, generate
from sphere_mini.training import (
    draw_rank_noise,
    new_state,
    train_step,
    update_ema,
)

LEAST_SECONDS = 0.5  # that a figure rests on
DRAWN = 100  # images of a batch
GUIDANCE = 1.5
PRODUCT_SIDE = {"cpu": 2048}  # of the matrices whose product shows the peak
LARGE_PRODUCT = 8192


class Bench:
    """A model in training on images of random bytes, and the measures of it.

    settings: dataset, recipe, and fields of the recipe, as for `make_recipe`.
    """

    def __init__(self, dataset: str, recipe: str | None, fields: dict) -> None:
        self.device = pick_device()
        num_classes = SETS[dataset].num_classes
        self.recipe = make_recipe(dataset, recipe, grad_accum=1, **fields).resolved(10_000)
        recipe = self.recipe
        names = [str(label) for label in range(num_classes)]
        self.config = recipe.sphere_config(names)
        # of random weights, which take as long as trained ones
        self.perceptual = load_perceptual(recipe.perceptual, self.device, pretrained=False)
        generator = torch.Generator().manual_seed(0)
        shape = (2 * recipe.batch_size, 3, recipe.image_size, recipe.image_size)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.arange(len(images)) % num_classes
        self.data = ImageSet(images.to(self.device), labels.to(self.device), tuple(names))
        self.state = new_state(recipe, self.data)
        [(images, self.y)] = self.data.batches([torch.arange(recipe.batch_size)])
        self.x = to_model_range(images)

    def train(self) -> None:
        """One training step, waited for."""
        train_step(self.state, self.recipe, self.x, self.y, self.perceptual)["loss"].item()

    def networks(self, perceptual: nn.Module | None = None) -> None:
        """Forward and backward passes of one step, without a perceptual network unless given."""
        recipe = self.without_perceptual if perceptual is None else self.recipe
        with autocast(self.device, recipe.dtype):
            losses = self.state.loss_module(self.x, self.y, self.drawn, recipe, perceptual)
        losses["loss"].backward()
        losses["loss"].item()

    def with_perceptual(self) -> None:
        """The same with the perceptual network."""
        self.networks(self.perceptual)

    @cached_property
    def without_perceptual(self) -> object:
        """The recipe with pixel losses alone."""
        fields = dict(perceptual="none", recon_perceptual=0.0, con_perceptual=0.0)
        return type(self.recipe)(**vars(self.recipe) | fields)

    @cached_property
    def drawn(self) -> tuple:
        """All that is random in one step."""
        return draw_rank_noise(self.state, self.recipe, len(self.x))

    def optimizer(self) -> None:
        """Clipping, the optimizer's step and the average of the weights."""
        model = self.state.model
        for weight in model.parameters():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip)
        self.state.muon.step()
        self.state.optimizer.step()
        update_ema(self.state, self.recipe.ema)
        norm.item()

    def noise(self) -> None:
        """All that is random in one step."""
        draw_rank_noise(self.state, self.recipe, len(self.x)).r_far.sum().item()

    def images(self) -> None:
        """The step's images from the set in memory."""
        rows = batch_indices(self.state.step, self.recipe.batch_size, len(self.data), 0)
        [(images, _)] = self.data.batches([rows])
        to_model_range(images)[0, 0, 0, 0].item()

    def draw(self, count: int, num_steps: int, guidance: float = 1.0, place: str = "both") -> None:
        """Samples, waited for."""
        y = torch.arange(count) % max(1, self.config.num_classes)
        with autocast(self.device, self.recipe.dtype):
            images = generate(self.state.ema, y, num_steps, guidance, place, seeds=range(count))
        images[0, 0, 0, 0].item()

    def seeds(self) -> None:
        """The noise of the samples' seeds alone."""
        draw_from_seeds(range(DRAWN), self.config, 2)[1][0, 0, 0, 0].item()

    def product(self) -> None:
        """A product of large square matrices in the type of the run's products."""
        (self.factor @ self.factor)[0, 0].item()

    @cached_property
    def factor(self) -> Tensor:
        """The matrix that `product` multiplies with itself."""
        side = PRODUCT_SIDE.get(self.device.type, LARGE_PRODUCT)
        with autocast(self.device, self.recipe.dtype):
            one = torch.ones(1, 1, device=self.device)
            dtype = (one @ one).dtype
        return torch.randn(side, side, device=self.device, dtype=dtype)

    def peak_memory(self) -> float:
        """GB at the most so far: the device's, or on a CPU that of the whole process."""
        if self.device.type == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
        return torch.accelerator.max_memory_allocated() / 1e9

    def figures(self) -> dict[str, Callable[[], float]]:
        """Every measure by its name: images/s, TFLOP/s, ms, GB."""
        size = self.recipe.batch_size
        side = len(self.factor)
        figures = {
            "product TFLOP/s": lambda: 2 * side**3 / seconds(self.product) / 1e12,
            "training images/s": lambda: size / seconds(self.train),
            "networks ms": lambda: 1000 * seconds(self.networks),
            "clip, optimizer, EMA ms": lambda: 1000 * seconds(self.optimizer),
            "noise ms": lambda: 1000 * seconds(self.noise),
            "images ms": lambda: 1000 * seconds(self.images),
            "1 step images/s": lambda: DRAWN / seconds(lambda: self.draw(DRAWN, 1)),
            "4 steps images/s": lambda: DRAWN / seconds(lambda: self.draw(DRAWN, 4)),
            "4 steps, guidance at pixels images/s": lambda: (
                DRAWN / seconds(lambda: self.draw(DRAWN, 4, GUIDANCE, "pixel"))
            ),
            "4 steps, guidance at both images/s": lambda: (
                DRAWN / seconds(lambda: self.draw(DRAWN, 4, GUIDANCE, "both"))
            ),
            "seeds ms": lambda: 1000 * seconds(self.seeds),
            "1 image ms": lambda: 1000 * seconds(lambda: self.draw(1, 1)),
            "peak memory GB": self.peak_memory,
        }
        if self.perceptual is not None:
            figures["networks and perceptual ms"] = lambda: 1000 * seconds(self.with_perceptual)
        return figures


def seconds(work: Callable[[], None]) -> float:
    """Seconds of one call, the mean of as many as take half a second, at least three."""
    calls = 0
    since = time.perf_counter()
    while (passed := time.perf_counter() - since) < LEAST_SECONDS or calls < 3:
        work()
        calls += 1
    return passed / calls


def main() -> None:
    """Answer measures' names on the standard input by figures on the standard output."""
    bench = Bench(**json.loads(sys.argv[1]))
    bench.train()
    figures = bench.figures()
    print(json.dumps(list(figures)), flush=True)  # the first step is done
    for line in sys.stdin:
        print(json.dumps(figures[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
