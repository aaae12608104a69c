"""What a run writes on the way, also where there is no room."""

import pytest
import torch
from conftest import random_model, run
from PIL import Image
from short_runs import DIGITS, TINY, assert_same_end, no_room, saved_step
from tqdm import tqdm

from sphere_mini.data.images import ImageSet
from sphere_mini.runs.log import readable_time
from sphere_mini.runs.progress import show_row, training_picture


def fail_second_save(monkeypatch, spoil, mend):
    """The second checkpoint is written where `spoil` makes it impossible; `mend` mends that."""
    save, calls = torch.save, []

    def torch_save(content, path):
        calls.append(path)
        if len(calls) != 2:
            return save(content, path)
        spoil()
        try:
            save(content, path)
        finally:
            mend()

    monkeypatch.setattr(torch, "save", torch_save)


def file_in_its_place(folder):
    away = folder.with_name("away")

    def spoil():
        folder.rename(away)
        folder.write_text("a file")

    def mend():
        folder.unlink()
        away.rename(folder)

    return spoil, mend


@pytest.mark.parametrize("trouble", [no_room, file_in_its_place])
def test_a_failed_save_is_said_and_the_next_one_works(trouble, tmp_path, monkeypatch, straight):
    folder = tmp_path / "run"
    fail_second_save(monkeypatch, *trouble(folder))
    done = run(*DIGITS, "--out", folder)
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "warning" in line]
    assert len(said) == 1 and "the checkpoint of step 10 could not be written" in said[0]
    assert_same_end(folder, straight)
    assert not list(folder.glob("*.tmp"))


def test_a_run_whose_last_save_fails_ends_with_an_error(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fail_second_save(monkeypatch, *no_room(folder))
    done = run("train.py", *TINY, "--steps", 8, "--save-every", 4, "--out", folder)
    assert done.returncode == 2 and "the last checkpoint could not be written" in done.stderr
    assert "go on from step 4" in done.stderr and saved_step(folder) == 4
    assert run("train.py", "--resume", folder).returncode == 0 and saved_step(folder) == 8


def test_a_training_picture_of_large_images_has_few_of_them(tmp_path):
    for size, columns in ((8, 10), (256, 2)):
        model = random_model(image_size=size, patch_size=size // 2, num_classes=2)
        images = torch.zeros(20, 3, size, size, dtype=torch.uint8)
        data = ImageSet(images, torch.zeros(20).long(), ("a", "b"))
        training_picture(model, data, "training").save(tmp_path / f"{size}.png")
        tile, width = max(size, 48), Image.open(tmp_path / f"{size}.png").width
        assert columns * tile < width < (columns + 2) * tile + 40


def test_a_training_picture_without_classes_is_short_enough_to_see_its_end():
    model = random_model(num_classes=0)
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(20).long(), ())
    picture = training_picture(model, data, "held out")
    assert picture.height < 9 * 56  # three rows in one step, three in four, two of real images


def test_a_line_of_the_log_says_how_long_the_rest_takes(capsys):
    bar = tqdm(range(1000), total=1000, disable=True)
    show_row(bar, {"step": 400, "loss": 0.5, "images_per_s": 25.0}, batch_size=5)
    assert capsys.readouterr().out == "step 400 of 1,000: loss 0.5000, 25 images/s, 2 min left\n"
    row = {"step": 1000, "loss": 0.4, "held_out_psnr": 18.06, "images_per_s": 25.0}
    show_row(bar, row, batch_size=5)
    seen = "step 1,000 of 1,000: loss 0.4000, held-out images 18.1 dB, 25 images/s, 0 s left\n"
    assert capsys.readouterr().out == seen
    times = {99: "99 s", 150: "2 min", 5940: "99 min", 12240: "3.4 h", 36e5: "1,000.0 h"}
    assert [readable_time(seconds) for seconds in times] == list(times.values())
