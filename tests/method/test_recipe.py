"""Every data set by name: the settings that it stands for, as a dry run shows them."""

import dataclasses

import pytest
from conftest import dry_run

from sphere_mini.recipe import RECIPES, SETS, make_recipe

COMMON = dict(
    lr="0.0001",
    min_lr="1e-06",
    encoder_lr_factor="0.1",
    clip="1.0",
    optimizer="adamw",
    ema="0.9997",
    hard_fraction="0.1",
    label_drop="0.1",
    perceptual="lpips",
    flip="True",
    batch_size="256",
)
CIFAR = {
    "image_size": "32",
    "patch_size": "2",
    "model": "s",
    "width": "512",
    "depth": "8",
    "num_heads": "8",
    "compression_ratio": "1.5",
    "mixer_depth": "2",
    "pixel_head": "conv",
    "alpha_max_deg": "80.0",
    "tokens": "256",
    "latent channels": "8",
    "latent dimension": "2,048",
    "epochs": "5000.0",
    "warmup_epochs": "10.0",
    "images an epoch": "50,000",
    "steps": "976,563",
    "warmup_steps": "1953",
    "recon_l1": "1.0",
    "recon_perceptual": "1.0",
    "con_l1": "0.5",
    "con_perceptual": "0.5",
    "latent": "0.1",
}
AT_256 = {
    "image_size": "256",
    "patch_size": "8",
    "model": "l",
    "width": "1024",
    "depth": "24",
    "num_heads": "16",
    "mixer_depth": "4",
    "pixel_head": "linear",
    "alpha_max_deg": "85.0",
    "tokens": "1024",
    "recon_perceptual": "1.0",
    "con_perceptual": "1.0",
    "latent": "0.1",
}
ANIMALS = AT_256 | {
    "compression_ratio": "1.5",
    "latent channels": "128",
    "latent dimension": "131,072",
    "epochs": "1000.0",
    "warmup_epochs": "10.0",
    "recon_l1": "25.0",
    "con_l1": "1.0",
}
IMAGENET = AT_256 | {
    "compression_ratio": "3.0",
    "compression": "3",
    "latent channels": "64",
    "latent dimension": "65,536",
    "epochs": "800.0",
    "warmup_epochs": "5.0",
    "images an epoch": "1,281,167",
    "steps": "4,003,647",
    "recon_l1": "50.0",
    "con_l1": "25.0",
}
PAPER = {  # what the paper's text says of each, written out again
    "cifar10": CIFAR | {"classes": "10", "parameters": "79,898,955", "compression": "1.5"},
    "cifar100": CIFAR | {"classes": "100"},
    "flowers102": ANIMALS | {"classes": "102", "parameters": "948,844,516"},
    "afhq": ANIMALS | {"conditional": "False", "parameters": "642,148,324"},
    "imagenet": IMAGENET | {"classes": "1000", "parameters": "950,354,532"},
}
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("flowers102", "afhq", "imagenet")]
OURS = {
    "digits": {
        "image_size": "8",
        "latent dimension": "128",
        "flip": "False",
        "perceptual": "none",
        "recon_perceptual": "0.0",
        "alpha_max_deg": "75.0",
        "l1_beta": "0.05",
        "spread": "0.0003",
        "latent_spares_encoder": "True",
        "steps": "1,053",
    },
    "fashion_mnist": {
        "image_size": "28",
        "latent dimension": "1,568",
        "flip": "True",
        "perceptual": "none",
        "recon_perceptual": "0.0",
        "alpha_max_deg": "80.0",
        "l1_beta": "0.2",
        "latent_spares_encoder": "True",
        "optimizer": "muon",
        "lr_schedule": "trapezoid",
        "steps": "9,375",
    },
    "folder": {
        "image_size": "32",
        "latent dimension": "2,048",
        "flip": "True",
        "perceptual": "efficientnet",
        "optimizer": "muon",
        "lr_schedule": "trapezoid",
        "muon_lr_factor": "4.0",
        "l1_beta": "0.05",
        "spread": "0.0003",
        "recon_perceptual": "1.0",
    },
}


def require_shown(shown, expected):
    assert {name: shown[name] for name in expected} == expected


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", *LARGE])
def test_the_papers_recipe_field_by_field(dataset):
    require_shown(dry_run("--dataset", dataset), COMMON | PAPER[dataset])


@pytest.mark.slow
def test_imagenet_xl_has_the_papers_parameters():
    shown = dry_run("--dataset", "imagenet", "--model", "xl", "--perceptual", "none")
    require_shown(shown, {"parameters": "1,388,922,404", "width": "1152", "model": "xl"})
    require_shown(shown, {"recon_perceptual": "0.0", "con_l1": "25.0"})


@pytest.mark.parametrize("dataset", OURS)
def test_our_own_recipes(dataset):
    shown = dry_run("--dataset", dataset)
    require_shown(shown, OURS[dataset] | {"model": "nano"})
    assert ("epochs" in shown["steps"]) == (dataset == "folder")  # known when it is read


def test_ours_for_larger_images_spreads_less_and_takes_the_papers_pixel_loss():
    fields = {size: make_recipe(image_size=size) for size in (16, 64, 256)}
    assert [recipe.spread for recipe in fields.values()] == pytest.approx([3e-4, 7.5e-5, 4.6875e-6])
    assert [recipe.l1_beta for recipe in fields.values()] == [0.05, 0.05, 1.0]


@pytest.mark.parametrize("dataset", SETS)
def test_both_recipes_of_every_set(dataset):
    paper, quick = [make_recipe(dataset, recipe) for recipe in RECIPES]
    assert (paper.perceptual, paper.lr) == ("lpips", 1e-4)
    ours = {
        "fashion_mnist": ("nano", 1.2e-2),
        "cifar10": ("mini", 2e-3),
        "cifar100": ("mini", 2e-3),
    }
    assert (quick.model, quick.lr) == ours.get(dataset, ("nano", 2.4e-2))
    assert paper.image_size == quick.image_size
    assert paper.flip == quick.flip == (dataset != "digits")


def test_digits_without_classes_take_a_smaller_rate():
    with_classes, without = [make_recipe("digits", conditional=flag) for flag in (True, False)]
    assert without == dataclasses.replace(with_classes, conditional=False, lr=4e-3)
    assert make_recipe("digits", conditional=False, lr=1e-2).lr == 1e-2


def test_micro_batches_are_the_fewest_that_fit():
    splits = [make_recipe("imagenet", batch_size=batch).grad_accum for batch in (256, 8, 2, 30, 13)]
    assert splits == [64, 2, 1, 10, 13]
    assert make_recipe("cifar10").grad_accum == 4
    assert make_recipe("cifar10", "paper", model="nano").grad_accum == 4
    assert make_recipe("imagenet", model="mini").grad_accum == 64


def test_sets_that_the_paper_lacks_take_what_is_most_alike():
    assert make_recipe("folder", "paper").pixel_head == "conv"
    assert make_recipe("folder", "paper", image_size=256).alpha_max_deg == 85
    small = make_recipe("folder")
    assert (small.alpha_max_deg, small.recon_l1) == (80, 1)
    large = make_recipe("folder", image_size=256)
    assert (large.alpha_max_deg, large.recon_l1) == (85, 25)
    mini = make_recipe("folder", model="mini")  # ours, and so is its recipe, but for the rate
    assert (mini.perceptual, mini.lr, mini.epochs) == ("efficientnet", 2e-3, small.epochs)
    # a large network is not for the quick recipe
    assert make_recipe("folder", model="s").perceptual == "lpips"


def test_cifar_in_minutes_is_the_papers_with_another_network_and_rates():
    quick = make_recipe("cifar10", "quick")
    changed = dict(
        model="mini",
        grad_accum=1,
        perceptual="efficientnet",
        latent_spares_encoder=True,
        lr=2e-3,
        min_lr=0.0,
        encoder_lr_factor=0.5,
        ema=0.999,
        epochs=18.0,
        warmup_epochs=1.5,
    )
    assert quick == dataclasses.replace(make_recipe("cifar10"), **changed)
    assert quick.resolved(50_000).steps == 3_516
    assert make_recipe("cifar10", "quick", model="mini") == quick
    assert make_recipe("cifar10", "quick", model="s").grad_accum == 4  # as many as a GPU takes
    assert make_recipe("cifar10", "quick", batch_size=1024).grad_accum == 4
    for model in ("nano", "tiny"):  # for CPUs, as before
        small = make_recipe("cifar10", "quick", model=model)
        assert (small.model, small.batch_size, small.patch_size) == (model, 32, 4)
