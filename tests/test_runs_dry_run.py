import pytest
from conftest import dry_run

from sphere_mini.recipe import PERCEPTUALS


def test_a_dry_run_touches_no_disk_and_obeys_flags(tmp_path):
    flags = ("--dataset", "folder", "--data-dir", tmp_path / "nowhere", "--out", "run")
    flags += ("--image-size", 64, "--set", "patch_size=8", "--steps", 7)
    shown = dry_run(*flags, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (shown["tokens"], shown["steps"], shown["latent dimension"]) == ("64", "7", "8,192")


@pytest.mark.parametrize("perceptual", PERCEPTUALS)
def test_every_perceptual_loss_has_a_dry_run(perceptual):
    flags = ("--dataset", "folder", "--image-size", 16, "--set", "depth=1")
    shown = dry_run(*flags, "--perceptual", perceptual)
    assert shown["perceptual"] == perceptual
    assert float(shown["GFLOPs per training image"].replace(",", "")) > 0
