"""The figure of encoded images on their sphere."""

import torch

from sphere_mini.evaluation.plots import sphere_figure
from sphere_mini.sphere import random_point


def test_the_sphere_picture_shows_where_points_gather():
    v = random_point((200, 4, 4), torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 2
    spread = sphere_figure(v, labels)
    gathered = sphere_figure(v[:1].expand_as(v) + 0.01 * v, labels)
    assert spread.size == gathered.size == (1200, 450)
    assert spread.tobytes() != gathered.tobytes()
