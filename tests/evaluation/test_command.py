"""`sample.py RUN evaluate`: what it measures, writes and complains of."""

import errno
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, random_model, run
from PIL import Image
from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

from sphere_mini import SphereEncoder, generate
from sphere_mini.data import grids
from sphere_mini.data.images import ImageSet
from sphere_mini.data.picture_files import open_picture, square_pixels
from sphere_mini.evaluation import Reference, reference, scores
from sphere_mini.evaluation.features import extract, load_extractor
from sphere_mini.evaluation.metrics import judge_digits, psnr
from sphere_mini.files import OURS

SMALL = ("--num-images", 80)


@pytest.fixture
def crops(tmp_path, photos):
    """Eight-pixel crops of scikit-learn's two photographs, 80 a class to train on, 20 held out."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), photos, strict=True):
        for split, count in (("train", 80), ("test", 20)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(count):
                top, left = (rng.integers(side - 8) for side in photo.shape[:2])
                Image.fromarray(photo[top : top + 8, left : left + 8]).save(
                    tmp_path / f"data/{split}/{name}/{k}.png"
                )
    model = random_model(num_classes=2, class_names=("china", "flower"))
    model.save_pretrained(
        tmp_path / "run", training={"dataset": "folder", "data_dir": str(tmp_path / "data")}
    )
    return tmp_path


def load_images(folder):
    return torch.stack([square_pixels(open_picture(path), 8) for path in sorted(folder.iterdir())])


def figures(folder, name="scores.json"):
    return json.loads((folder / name).read_text())


def test_the_digits_model_is_judged(tmp_path):
    done = run(
        "sample.py", DIGITS_MODEL, "evaluate", "--num-steps", 1, 4, "--out", tmp_path / "new"
    )
    assert done.returncode == 0, done.stderr
    found = figures(tmp_path / "new")
    rows = found["samples"]
    model, labels = SphereEncoder.from_pretrained(DIGITS_MODEL), torch.arange(1000) % 10
    for row, num_steps in zip(rows, (1, 4), strict=True):
        known = judge_digits(generate(model, labels, num_steps, seeds=range(1000)), labels)
        assert row["steps"] == num_steps and row["agreement"] == pytest.approx(
            [known["agreement"]], abs=2e-3
        )
        assert row["FD-pixels-1000"] == pytest.approx([known["frechet"]], rel=0.02)
        assert row["deviation"] == pytest.approx([known["deviation"]], rel=0.02)
        assert row["deviation of digits"] == pytest.approx([0.206], abs=1e-3)
        facts = {
            "features": "pixels",
            "images": 1000,
            "seeds": "0 to 999",
            "noise": "shared",
            "schedule": "fixed",
        }
        facts |= {
            "weights": model.weights_hash(),
            "reference": "1,797 training images of digits",
            "guidance": 1.0,
        }
        assert {name: row[name] for name in facts} == facts
        assert 0 <= row["memorised"][0] < 0.02 < row["recall"][0] < row["precision"][0]
    assert (
        rows[1]["FD-pixels-1000"] < rows[0]["FD-pixels-1000"]
        and rows[1]["recall"] > rows[0]["recall"]
    )
    (again,) = found["reconstruction"]
    assert again["PSNR"] > 20 and again["rFD-pixels-1000"] < rows[1]["FD-pixels-1000"][0]
    assert [row["points"].split(",")[0] for row in found["coverage"]] == [
        "all",
        "mean class",
    ]
    image = Image.open(tmp_path / "new" / "closest.png")
    image.load()
    assert image.text["weights"] == model.weights_hash() and "evaluate" in image.text["command"]
    assert np.asarray(image).std() > 20


@pytest.mark.parametrize("command", ["evaluate --num-steps 1", "generate"])
def test_what_is_interrupted_leaves_no_empty_file(command, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "score_samples", interrupted)
    monkeypatch.setattr(grids, "image_grid", interrupted)
    out = tmp_path / ("figures" if "evaluate" in command else "a.png")
    done = run("sample.py", DIGITS_MODEL, *command.split(), "--out", out)
    assert done.returncode == 130
    assert not [path for path in tmp_path.rglob("*") if path.suffix]


def test_a_picture_that_cannot_be_written_does_not_block_its_name(tmp_path, monkeypatch):
    flags = ("--num-steps", 1, "--per-class", 1, "--out", tmp_path / "a.png")
    with monkeypatch.context() as context:
        context.setattr(grids, "save_picture", full_disk)
        done = run("sample.py", DIGITS_MODEL, *flags)
    assert done.returncode == 2 and "No space left" in done.stderr
    assert run("sample.py", DIGITS_MODEL, *flags).returncode == 0
    Image.open(tmp_path / "a.png").load()


def test_figures_on_a_full_disk_leave_no_half_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", full_disk)
    flags = (*SMALL, "--num-steps", 1, "--out", tmp_path / "new")
    done = run("sample.py", DIGITS_MODEL, "evaluate", *flags)
    assert done.returncode == 2 and "No space left" in done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == [OURS]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_scores_without_their_package_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    flags = (*SMALL, "--num-steps", 1, "--out", tmp_path / "new")
    done = run("sample.py", DIGITS_MODEL, "evaluate", *flags)
    assert done.returncode == 2
    assert "torch_fidelity is missing; run `pip install -e '.[eval]'`" in done.stderr
    assert not list(tmp_path.rglob("scores*"))


def test_no_more_latents_than_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "MOST_NUMBERS", 50 * 128)  # 128 in a latent of the digits
    assert (
        run(
            "sample.py",
            DIGITS_MODEL,
            "evaluate",
            *SMALL,
            "--num-steps",
            1,
            "--out",
            tmp_path / "few",
        ).returncode
        == 0
    )
    assert figures(tmp_path / "few")["coverage"][0]["images"] == 50


def test_the_table_of_the_terminal_is_aligned_and_kept(tmp_path):
    flags = ("--num-steps", 1, *SMALL, "--out", tmp_path)
    first, second = (
        run("sample.py", DIGITS_MODEL, "evaluate", *flags, "--seed", seed) for seed in (0, 80)
    )
    tables = re.findall(r"(?:^\|.*\n)+", first.stdout, re.MULTILINE)
    assert len(tables) == 3 and all(
        len({len(line) for line in text.splitlines()}) == 1 for text in tables
    )
    assert first.stdout != second.stdout and "scores-2.json" in second.stdout
    assert figures(tmp_path)["samples"] != figures(tmp_path, "scores-2.json")["samples"]
    kept = (tmp_path / "scores.md").read_text()
    assert kept.count("| FD-pixels-80") == 2 and "0 to 79" in kept and "80 to 159" in kept
    assert kept.count("- weights: 8279fa23779331b1") == kept.count("| PSNR of mean image ") == 2
    assert "- all figures: scores.json" in kept and "- all figures: scores-2.json" in kept
    assert kept.count("- command: python sample.py ") == kept.count("| mean class") == 2
    assert sorted(path.name for path in tmp_path.glob("closest*")) == [
        "closest-2.png",
        "closest.png",
    ]


def test_flags_of_sampling_are_combined(tmp_path):
    flags = ("--num-steps", 2, 3, "--noise", "shared", "fresh", "--schedule", "fixed", "decay")
    assert (
        run("sample.py", DIGITS_MODEL, "evaluate", *flags, *SMALL, "--out", tmp_path).returncode
        == 0
    )
    rows = figures(tmp_path)["samples"]
    assert [row["steps"] for row in rows] == [2] * 2 + [3] * 4  # two steps have one noise
    distances = [row["FD-pixels-80"][0] for row in rows]
    assert len(set(distances)) == 6  # each of these flags changes the samples


def test_guidance_at_every_place_and_repeats(tmp_path):
    flags = (
        "--num-steps",
        3,
        "--guidance",
        1,
        1.5,
        "--guidance-place",
        "latent",
        "pixel",
        "both",
        "--repeats",
        2,
    )
    done = run("sample.py", DIGITS_MODEL, "evaluate", *flags, *SMALL, "--out", tmp_path)
    rows = figures(tmp_path)["samples"]
    assert [(row["guidance"], row["place"]) for row in rows][1:] == [
        (1.5, p) for p in ("latent", "pixel", "both")
    ]
    assert rows[0]["guidance"] == 1 and rows[0]["seeds"] == "0 to 159"
    assert len({tuple(row["FD-pixels-80"]) for row in rows}) == 4
    ((first, second),) = [rows[0]["FD-pixels-80"]]
    assert first != second
    assert f"{(first + second) / 2:.2f} ± {abs(first - second) / 2**0.5:.2f}" in done.stdout


def test_a_folder_with_held_out_images(crops):
    done = run(
        "sample.py", crops / "run", "evaluate", "--features", "pixels", *SMALL, "--num-steps", 2
    )
    assert done.returncode == 0, done.stderr
    found = figures(crops / "run")
    of = found["samples"][0]["memorised below"]
    kept, left_out = map(int, re.search(r"1% of (\d+) held-out images .*\((\d+) near", of).groups())
    assert kept + left_out == 40
    assert found["samples"][0]["reference"] == f"160 training images of folder {crops / 'data'}"
    assert "agreement" not in found["samples"][0]
    again = found["reconstruction"][0]
    assert again["PSNR held out"] > 0
    folders = [crops / "data" / "train" / name for name in ("china", "flower")]
    real = torch.cat([load_images(folder) for folder in folders]) / 255
    blur = real.mean(0, keepdim=True).expand_as(real)
    assert again["PSNR of mean image"] == pytest.approx(psnr(blur, real).mean().item(), abs=0.01)
    assert "mean class" in done.stdout


def test_a_small_folder_is_scored_as_far_as_it_goes(crops):
    """160 images are too few for a distance of 1,280 features: all else is measured."""
    done = run("sample.py", crops / "run", "evaluate", "--num-steps", 1)
    assert done.returncode == 0, done.stderr
    left_out = "left out: the Fréchet distance, which takes 1,280 images or more;"
    assert left_out in done.stdout and "warning" not in done.stdout
    found = figures(crops / "run")
    row = found["samples"][0]
    assert row["images"] == 160 and not [name for name in row if name.startswith("F")]
    assert {"KD-EfficientNet", "precision", "recall", "memorised"} <= set(row)
    assert row["KD-EfficientNet"][0] > 0  # this model is untrained
    again = found["reconstruction"][0]
    assert {"PSNR", "PSNR held out"} <= set(again) and not [n for n in again if n.startswith("rF")]
    real = again["KD-EfficientNet of 40 held out"]  # as samples that were real would score
    assert abs(real) < 0.3 * row["KD-EfficientNet"][0]
    assert len(found["coverage"]) == 2
    # what took a network lies with the figures: nothing is written among one's own pictures
    assert not list((crops / "data").rglob("*.safetensors"))
    assert list((crops / "run").glob("features-efficientnet-training-160-*.safetensors"))


def test_an_unconditional_model(crops, tmp_path):
    model = random_model(num_classes=0)
    model.save_pretrained(
        tmp_path / "plain", training={"dataset": "folder", "data_dir": str(crops / "data")}
    )
    flags = ("--features", "pixels", *SMALL, "--num-steps", 3, "--guidance", 1, 2)
    done = run("sample.py", tmp_path / "plain", "evaluate", *flags)
    assert done.returncode == 0, done.stderr
    found = figures(tmp_path / "plain")
    assert len(found["samples"]) == 2 and [row["points"] for row in found["coverage"]] == ["all"]


def test_features_of_a_network_are_kept_beside_the_data(crops, monkeypatch, capsys):
    images = load_images(crops / "data" / "train" / "china")
    labels, rows, extracted = torch.zeros(len(images)).long(), torch.arange(10, 40), []
    extractor = load_extractor("efficientnet", torch.device("cpu"))
    monkeypatch.setattr(reference, "load_extractor", lambda *_: extractor)
    monkeypatch.setattr(reference, "extract", lambda *args: extracted.append(1) or extract(*args))

    def features(images, folder=crops / "data"):
        data = ImageSet(images, labels, ())
        kept = Reference(data, features="efficientnet", folder=folder)
        return kept.features_of("training", data, rows)

    first = features(images)
    assert first.shape == (30, 1280) and torch.equal(first, extract(extractor, [images[10:40]])[0])
    assert torch.equal(features(images), first) and len(extracted) == 1
    (path,) = (crops / "data").glob("features-efficientnet-training-30-*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(features(images), first) and len(extracted) == 2
    changed = images.clone()
    changed[20] = 0
    assert not torch.equal(features(changed), first) and len(extracted) == 3
    kept = Reference(ImageSet(images, labels, ()), None, "efficientnet", folder=crops / "data")
    kept.features_of("training", kept.data, rows)
    assert "extractor" in vars(kept)  # all ranks meet to load it, and later some draw nothing
    again = features(images, crops / "nowhere")
    assert torch.equal(again, first) and "could not be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num-images", 9), "scores take at least 10 samples"),
        (("--num-reference", 9), "scores take at least 10 training images"),
        (("--judge",), "the digits have a judge"),
        (("--num-images", 0), "scores take at least 10"),
        (("--num-steps", 1, 0), "num_steps must be at least 1, not 0"),
        (("--guidance", 1, -2), "guidance must be 0 or more, not -2"),
        (("--repeats", 0), "one repeat"),
        (("--seed", -1), "2^32 - 1"),
        (("--noise", "pink"), "invalid choice: 'pink'"),
        (("--features", "clip"), "invalid choice: 'clip'"),
        (("--data-dir", "elsewhere"), "the digits come with scikit-learn"),
        (("--dataset", "folder", "--data-dir", "CROPS/data"), "network of 8 px, classes: 10 (0"),
        (("--out", "CROPS/data/train/china/0.png"), "exists already"),
    ],
)
def test_mistakes_are_one_sentence(flags, words, crops):
    flags = [str(flag).replace("CROPS", str(crops)) for flag in flags]
    out = () if "--out" in flags else ("--out", crops / "new")
    done = run("sample.py", DIGITS_MODEL, "evaluate", *flags, *out)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )


def test_a_model_whose_images_are_not_numbers(tmp_path):
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    with torch.no_grad():
        model.decoder.ffn.linear.weight.fill_(3e38)  # its products are infinite
    model.save_pretrained(tmp_path, training={"dataset": "digits"})
    done = run("sample.py", tmp_path, "evaluate")
    assert done.returncode == 2 and "images that are not numbers" in done.stderr


def test_a_model_of_one_class_is_scored(tmp_path, crops):
    """As fine-tuned on a folder with one class in it."""
    data = tmp_path / "cats" / "cat"
    data.parent.mkdir()
    (crops / "data" / "train" / "china").rename(data)
    training = {"dataset": "folder", "data_dir": str(data.parent)}
    model = random_model(num_classes=1, class_names=("cat",))
    model.save_pretrained(tmp_path / "m", training=training)
    flags = ("--features", "pixels", "--num-steps", 1, *SMALL)
    done = run("sample.py", tmp_path / "m", "evaluate", *flags)
    assert done.returncode == 0, done.stderr
    assert figures(tmp_path / "m")["samples"][0]["reference"].startswith("80 training images")


def test_features_of_a_set_without_a_folder_lie_with_the_figures(tmp_path):
    flags = ("--features", "efficientnet", "--num-steps", 1, *SMALL, "--num-reference", 20)
    done = run("sample.py", DIGITS_MODEL, "evaluate", *flags, "--out", tmp_path)
    assert done.returncode == 0 and "warning" not in done.stdout + done.stderr, done.stderr
    assert list(tmp_path.glob("features-efficientnet-training-20-*.safetensors"))


def test_a_model_that_does_not_say_what_it_was_trained_on(tmp_path):
    SphereEncoder.from_pretrained(DIGITS_MODEL).save_pretrained(tmp_path)
    assert "pass --dataset" in run("sample.py", tmp_path, "evaluate").stderr
    assert (
        run(
            "sample.py", tmp_path, "evaluate", "--dataset", "digits", "--num-steps", 1, *SMALL
        ).returncode
        == 0
    )


@pytest.mark.parametrize("damage", ["no network", "damaged file"])
def test_inception_without_its_weights_says_what_to_place_and_what_works(
    damage, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    file = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    if damage == "damaged file":
        file.parent.mkdir(parents=True)
        file.write_bytes(b"cut short")
    done = run("sample.py", DIGITS_MODEL, "evaluate", "--features", "inception", "--out", tmp_path)
    assert done.returncode == 2
    for words in (file.name, str(file.parent), "--features efficientnet, which needs no download"):
        assert words in done.stderr


def test_inception_with_its_weights_in_place(tmp_path, monkeypatch, crops):
    """The real path: weights of the right shapes lie where the download would put them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(
            feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {}
        )
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        random = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    file = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    torch.save(random.state_dict(), file)
    images = load_images(crops / "data" / "test" / "china")[:3]
    found = extract(load_extractor("inception", torch.device("cpu")), [images])
    assert [layer.shape for layer in found] == [(3, 2048), (3, 1008)]
    assert all(torch.equal(a, b) for a, b in zip(found, random(images), strict=True))


def test_a_smaller_reference(tmp_path):
    flags = ("--num-steps", 1, *SMALL, "--num-reference")
    found = []
    for count in (100, 200):
        folder = tmp_path / str(count)
        done = run("sample.py", DIGITS_MODEL, "evaluate", *flags, count, "--out", folder)
        assert done.returncode == 0, done.stderr
        (row,) = figures(folder)["samples"]
        assert row["reference"] == f"{count} training images of digits"
        found.append(row["FD-pixels-80"])
    assert found[0] != found[1]
    done = run("sample.py", DIGITS_MODEL, "evaluate", *flags, 0, "--out", tmp_path / "0")
    assert done.returncode == 2 and "at least 10 training images" in done.stderr
