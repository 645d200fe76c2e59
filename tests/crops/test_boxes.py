"""Boxes against sets of pixels, and pieces against the pixels of squares and chunks."""

from __future__ import annotations

import numpy as np
import pytest

from st_predict.crops._boxes import Boxes
from st_predict.crops._pieces import ChunkLayout, Pieces

LAYOUT = ChunkLayout(np.array([0, 64, 128, 150]), np.array([0, 100, 110, 250]))


def random_boxes(seed: int, n: int = 200) -> Boxes:
    """Boxes in 30 x 30 pixels; some are empty or have their sides crossed."""
    rng = np.random.default_rng(seed)
    (top, left), (height, width) = rng.integers(0, 15, (2, n)), rng.integers(-1, 16, (2, n))
    return Boxes(top, left, top + height, left + width)


def pixels(boxes: Boxes) -> list[set[tuple[int, int]]]:
    """Row and column of every pixel of each box."""
    sides = np.stack([boxes.top, boxes.left, boxes.bottom, boxes.right], axis=1).tolist()
    return [{(y, x) for y in range(t, b) for x in range(left, r)} for t, left, b, r in sides]


def test_an_overlap_holds_the_pixels_of_both():
    one, other = random_boxes(0), random_boxes(1)
    expected = [a & b for a, b in zip(pixels(one), pixels(other), strict=True)]
    overlap = one.intersect(other)
    assert pixels(overlap) == expected
    assert overlap.empty.tolist() == [not both for both in expected]
    assert 20 < overlap.empty.sum() < 180


def test_boxes_are_cropped_by_a_single_box():
    boxes, image = random_boxes(0), Boxes(*np.array([[4], [3], [20], [25]]))
    (inside,) = pixels(image)
    assert pixels(boxes.intersect(image)) == [box & inside for box in pixels(boxes)]


def test_a_box_is_within_another_if_it_adds_no_pixel():
    boxes, image = random_boxes(0), Boxes(*np.array([[4], [3], [25], [28]]))
    boxes = boxes[np.flatnonzero(~boxes.empty)]
    (inside,) = pixels(image)
    expected = [box <= inside for box in pixels(boxes)]
    assert boxes.within(image).tolist() == expected
    assert any(expected) and not all(expected)


def test_boxes_select_their_pixels():
    boxes = random_boxes(2)
    boxes = boxes[np.flatnonzero(~boxes.empty)]
    image = np.arange(900).reshape(1, 30, 30)
    for index, box in zip(boxes.selections(), pixels(boxes), strict=True):
        assert set(image[index].ravel().tolist()) == {y * 30 + x for y, x in box}


def test_squares_are_placed_by_x_and_y():
    squares = Boxes.squares(np.array([[3, 40], [-5, 7]]), 10)
    assert (squares.left.tolist(), squares.top.tolist()) == ([3, -5], [40, 7])
    assert (squares.right.tolist(), squares.bottom.tolist()) == ([13, 5], [50, 17])


def test_relative_boxes_begin_at_the_corner_of_the_other():
    squares = Boxes.squares(np.array([[3, 40], [-5, 7]]), 10)
    inner = squares.relative_to(Boxes.squares(np.array([[1, 30], [-5, 7]]), 20))
    assert (inner.left.tolist(), inner.top.tolist()) == ([2, 0], [10, 0])
    assert (inner.right.tolist(), inner.bottom.tolist()) == ([12, 10], [20, 10])


def test_chunks_are_numbered_row_by_row():
    boxes = LAYOUT.boxes(np.arange(9))
    assert boxes.top.tolist() == [0, 0, 0, 64, 64, 64, 128, 128, 128]
    assert boxes.left.tolist() == [0, 100, 110] * 3
    assert boxes.bottom.tolist() == [64, 64, 64, 128, 128, 128, 150, 150, 150]
    assert boxes.right.tolist() == [100, 110, 250] * 3


def test_pieces_of_known_squares():
    squares = Boxes.squares(np.array([[95, 60], [-500, 0], [240, -20], [0, 0]]), 30)
    assert list(LAYOUT.cut(squares)) == [
        (0, 0, (..., slice(0, 4), slice(0, 5)), (..., slice(60, 64), slice(95, 100))),
        (0, 1, (..., slice(0, 4), slice(5, 15)), (..., slice(60, 64), slice(0, 10))),
        (0, 2, (..., slice(0, 4), slice(15, 30)), (..., slice(60, 64), slice(0, 15))),
        (0, 3, (..., slice(4, 30), slice(0, 5)), (..., slice(0, 26), slice(95, 100))),
        (0, 4, (..., slice(4, 30), slice(5, 15)), (..., slice(0, 26), slice(0, 10))),
        (0, 5, (..., slice(4, 30), slice(15, 30)), (..., slice(0, 26), slice(0, 15))),
        (2, 2, (..., slice(20, 30), slice(0, 10)), (..., slice(0, 10), slice(130, 140))),
        (3, 0, (..., slice(0, 30), slice(0, 30)), (..., slice(0, 30), slice(0, 30))),
    ]


@pytest.mark.parametrize("size", [1, 30, 400])
def test_pieces_cover_each_pixel_inside_the_image_once(size):
    image = np.arange(150 * 250).reshape(150, 250)
    origins = np.random.default_rng(4).integers(-60, 260, (100, 2))
    chunks = [image[index] for index in LAYOUT.boxes(np.arange(9)).selections()]
    seen, times = np.full((100, size, size), -1), np.zeros((100, size, size), int)
    for spot, chunk, in_square, in_chunk in LAYOUT.cut(Boxes.squares(origins, size)):
        seen[spot][in_square] = chunks[chunk][in_chunk]
        times[spot][in_square] += 1
    y, x = (origins[:, axis, None] + np.arange(size) for axis in (1, 0))
    y, x = np.broadcast_arrays(y[:, :, None], x[:, None])
    inside = (y >= 0) & (y < 150) & (x >= 0) & (x < 250)
    assert (times == inside).all()
    assert (seen == np.where(inside, y * 250 + x, -1)).all()


def test_pieces_are_small_and_sorted():
    pieces = LAYOUT.cut(Boxes.squares(np.random.default_rng(4).integers(-60, 260, (100, 2)), 50))
    order = pieces.spot.astype(int) * 9 + pieces.chunk
    assert (np.diff(order) > 0).all()
    sides = [getattr(box, side) for box in (pieces.in_square, pieces.in_chunk) for side in Boxes.__slots__]
    assert {array.dtype for array in (pieces.spot, pieces.chunk, *sides)} == {np.dtype(np.int32)}
    halves = Pieces.cat([pieces[:70], pieces[70:]])
    assert list(halves) == list(pieces)


def test_no_squares_give_no_pieces():
    assert list(LAYOUT.cut(Boxes.squares(np.empty((0, 2), np.int64), 30))) == []


def test_corner_and_size_of_a_chunk_are_those_of_its_box():
    n_chunks = (len(LAYOUT.y) - 1) * (len(LAYOUT.x) - 1)
    found = [LAYOUT.corner_and_size(chunk) for chunk in range(n_chunks)]
    covered = [{(y, x) for y in range(t, t + h) for x in range(left, left + w)} for left, t, w, h in found]
    boxes = LAYOUT.boxes(np.arange(n_chunks))
    assert covered == pixels(boxes)
    assert all(type(side) is int for chunk in found for side in chunk)
