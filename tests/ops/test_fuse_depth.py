"""Depth fusion against a loop over masks and pixels, and its edges."""

import pytest
import torch
from harness import serving

from mcd import Instances, use_backend
from mcd.ops import fuse_depth
from mcd.ops.instance_stats import random_instances


@pytest.fixture(autouse=True, params=serving("fuse_depth", "reference", "native", "triton"))
def backend(request):
    """Each test runs with every backend that is there."""
    with use_backend(request.param):
        yield request.param


def uniform(*shape, seed=0, low=1.0, high=3.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def layers(count):
    """`count` instances of the same pixel."""
    return Instances.from_masks([torch.ones(count, 1, 1, dtype=torch.bool)])


def loop(background, object_depth, instances):
    fused, winner = background.clone(), torch.full(background[:, 0].shape, -1, dtype=torch.int32)
    width = background.shape[-1]
    for n in range(len(instances)):
        for entry in range(instances.offset[n], instances.offset[n + 1]):
            y, x = divmod(int(instances.pixel[entry]), width)
            b, depth = int(instances.frame[n]), object_depth[entry]
            is_depth = depth > 0 and depth.isfinite()
            if is_depth and (winner[b, y, x] < 0 or depth < fused[b, 0, y, x]):
                fused[b, 0, y, x], winner[b, y, x] = depth, n
    return fused, winner


@pytest.mark.parametrize("decimals", [0, 6])
def test_agrees_with_a_loop_over_pixels(decimals):
    # No decimals: only depths 1, 2 and 3, and so many ties.
    instances = random_instances((3, 4, 5), ([12, 20, 9], [], [5, 6]), torch.Generator().manual_seed(0))
    background, object_depth = uniform(3, 1, 4, 5), uniform(len(instances.pixel), seed=1).round(decimals=decimals)
    object_depth[::7], object_depth[3::7], object_depth[5::7] = -1, torch.nan, torch.inf
    fused, winner = fuse_depth(background, object_depth, instances)
    expected_fused, expected_winner = loop(background, object_depth, instances)
    assert fused.equal(expected_fused)
    assert winner.dtype == torch.int32
    assert winner.equal(expected_winner)


def test_an_object_replaces_a_nearer_background():
    fused, winner = fuse_depth(torch.ones(1, 1, 1, 1), torch.tensor([5.0, 3.0, 4.0]), layers(3))
    assert fused.item() == 3
    assert winner.item() == 1


def test_ties_go_to_the_smaller_instance():
    fused, winner = fuse_depth(torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 3.0]), layers(3))
    assert fused.item() == 3
    assert winner.item() == 1


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, torch.nan, torch.inf, -torch.inf])
def test_what_is_no_depth_is_ignored(bad):
    fused, winner = fuse_depth(torch.full((1, 1, 1, 1), 7.0), torch.tensor([bad, 9.0]), layers(2))
    assert fused.item() == 9
    assert winner.item() == 1
    fused, winner = fuse_depth(torch.full((1, 1, 1, 1), 7.0), torch.tensor([bad]), layers(1))
    assert fused.item() == 7
    assert winner.item() == -1


def test_a_nan_in_the_background_passes():
    background = torch.full((1, 1, 1, 2), torch.nan)
    instances = Instances.from_masks([torch.tensor([[[True, False]]])])
    fused, winner = fuse_depth(background, torch.tensor([2.0]), instances)
    assert fused[0, 0, 0, 0] == 2
    assert fused[0, 0, 0, 1].isnan()
    assert winner.flatten().tolist() == [0, -1]


@pytest.mark.parametrize("size", [(0, 3, 3), (2, 3, 3)])
def test_without_instances_the_background_stays(size):
    background = torch.rand(size[0], 1, 3, 3, requires_grad=True)
    instances = random_instances(size, [[]] * size[0], torch.Generator())
    fused, winner = fuse_depth(background, torch.zeros(0), instances)
    assert fused.equal(background)
    assert (winner == -1).all()
    (gradient,) = torch.autograd.grad(fused.sum(), background)
    assert (gradient == 1).all()


def test_gradients_reach_what_is_seen():
    instances = random_instances((2, 3, 4), ([7, 8], [12]), torch.Generator().manual_seed(0))
    background, object_depth = uniform(2, 1, 3, 4).requires_grad_(), uniform(27, seed=1).requires_grad_()
    with torch.no_grad():
        object_depth[::5] = torch.nan
    upstream = uniform(2, 1, 3, 4, seed=2)
    fused, winner = fuse_depth(background, object_depth, instances)
    of_background, of_objects = torch.autograd.grad(fused, (background, object_depth), upstream)
    assert of_background.equal(torch.where(winner[:, None] < 0, upstream, 0.0))
    seen = winner.flatten()[instances.address] == instances.instance
    assert of_objects.equal(torch.where(seen, instances.gather(upstream), 0.0))
    assert seen.any()
    assert not seen.all()


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"background": torch.ones(2, 1, 1, 1)}, ValueError, "background has shape"),
        ({"object_depth": torch.ones(2)}, ValueError, "object_depth has shape"),
        ({"object_depth": torch.ones(3).double()}, TypeError, "object_depth is torch.float64"),
        ({"instances": [torch.ones(3, 1, 1).bool()]}, TypeError, "instances should be mcd.Instances, not list"),
    ],
)
def test_bad_arguments_are_named(arguments, exception, message):
    right = {"background": torch.ones(1, 1, 1, 1), "object_depth": torch.ones(3), "instances": layers(3)}
    with pytest.raises(exception, match=f"fuse_depth: {message}"):
        fuse_depth(**(right | arguments))
