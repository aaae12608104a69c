"""Folders of images of one grey each, which tests write and recognise again."""

import torch
from PIL import Image
from short_runs import TINY_NETWORK

from sphere_mini.data.sets import load_data
from sphere_mini.recipe import make_recipe

CPU = torch.device("cpu")
TRAIN = ("train.py", "--dataset", "folder", "--image-size", 16, *TINY_NETWORK.split())
TRAIN += ("--batch-size", 4, "--perceptual", "none", "--log-every", 1)


def write_images(folder, count, first=0):
    """Images of one colour each, k.jpg of the grey 10·k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(first, first + count):
        Image.new("RGB", (20, 20), (10 * k,) * 3).save(folder / f"{k}.jpg")


def read_folder(root, **fields):
    return load_data(make_recipe("folder", data_dir=str(root), image_size=16, **fields), CPU)


def greys(data):
    """The grey of each image, in tens."""
    return (data.images[:, 0, 8, 8].float() / 10).round().int().tolist()
