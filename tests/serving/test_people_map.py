"""The map of people and anchors: distances that matter can be seen on it."""

from __future__ import annotations

import torch

from mta.serving.people_map import draw_map, on_a_plane


def test_what_is_near_is_drawn_near() -> None:
    one, other = torch.eye(8)[:2]
    vectors = torch.stack([one, one + 0.05 * other, other, 7 * other])
    places = on_a_plane(vectors)
    assert places.shape == (4, 2)
    assert torch.linalg.norm(places[0] - places[1]) < 0.1 < torch.linalg.norm(places[0] - places[2])
    assert torch.allclose(places[2], places[3])  # only directions count
    assert torch.allclose(places.mean(0), torch.zeros(2).double(), atol=1e-9)


def test_axes_do_not_flip_with_the_order_of_vectors() -> None:
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    turned = on_a_plane(vectors.flip(0)).flip(0)
    assert torch.allclose(on_a_plane(vectors), turned, atol=1e-9)


def test_a_single_vector_is_in_the_middle() -> None:
    assert on_a_plane(torch.ones(1, 3)).tolist() == [[0.0, 0.0]]


def test_lines_lead_from_the_chosen_person_to_her_anchors() -> None:
    places = torch.arange(10.0).reshape(5, 2)
    figure = draw_map(places[:3], places[3:], chosen=1, nearest=(0, 2))
    drawn = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert drawn == [[[8.0, 9.0], [0.0, 1.0]], [[8.0, 9.0], [4.0, 5.0]]]
    assert not draw_map(places[:3], places[3:], chosen=None, nearest=()).axes[0].lines
