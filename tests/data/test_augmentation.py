"""Augmentation depends on the example alone, and does what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch_jax.data.augmentation import (
    crop_offsets,
    example_keys,
    normalize,
    random_crop,
    random_flip,
)


def make_batch(index, epoch=0):
    index = np.asarray(index, np.int32)
    return {"index": index, "epoch": np.broadcast_to(np.int32(epoch), index.shape)}


def make_images(index, shape=(9, 7, 3)):
    """Example i's image, the same whenever it is asked for."""
    index = np.asarray(index)
    images = [np.random.default_rng(i).integers(1, 256, shape) for i in index.ravel()]
    return np.stack(images).reshape(index.shape + shape).astype(np.uint8)


@jax.jit
def augment(batch, images):
    keys = example_keys(7, batch)
    return random_flip(keys, random_crop(keys, images, padding=2))


@pytest.mark.parametrize(
    "index",
    [[3], [3, 9, 1, 0], [0, 5, 2, 8, 1, 3, 7], [[4, 5, 0], [1, 3, 2]], [[[3]]]],
    ids=lambda index: str(np.shape(index)),
)
def test_an_example_is_augmented_the_same_wherever_it_is(index):
    expected = augment(make_batch(np.arange(10)), make_images(np.arange(10)))
    np.testing.assert_array_equal(
        augment(make_batch(index), make_images(index)), expected[np.asarray(index)]
    )


def test_seed_epoch_and_index_all_matter():
    keys = [
        example_keys(seed, make_batch(np.arange(50), epoch)) for seed in (0, 1) for epoch in (0, 1)
    ]
    data = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == 200


def test_epochs_may_differ_within_a_batch():
    batch = {"index": np.array([4, 4], np.int32), "epoch": np.array([2, 3], np.int32)}
    keys = example_keys(0, batch)
    for row, epoch in enumerate([2, 3]):
        assert keys[row] == example_keys(0, make_batch([4], epoch))[0]


def test_keys_ignore_the_configured_generator():
    expected = jax.random.key_data(example_keys(0, make_batch([1, 2])))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(
            jax.random.key_data(example_keys(0, make_batch([1, 2]))), expected
        )


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_offsets_and_flips_are_uniform_and_independent(padding):
    keys = example_keys(0, make_batch(np.arange(60_000)))
    rows, columns = map(np.asarray, crop_offsets(keys, padding))
    flips = np.asarray(random_flip(keys, np.tile(np.arange(2), (60_000, 1))[:, None, :, None]))
    num_offsets = 2 * padding + 1
    counts = np.zeros((num_offsets, num_offsets, 2))
    np.add.at(counts, (rows, columns, flips[:, 0, 0, 0]), 1)
    expected = 60_000 / counts.size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # The statistic has mean n and standard deviation sqrt(2n).
    assert abs(chi_squared - counts.size) < 5 * np.sqrt(2 * counts.size)


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3), (3, 3, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_against_numpy(shape, dtype):
    index, padding = np.arange(40), 4
    images = make_images(index, shape).astype(dtype)
    keys = example_keys(0, make_batch(index))
    cropped = random_crop(keys, images, padding)
    assert cropped.dtype == dtype
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = zip(*map(np.asarray, crop_offsets(keys, padding)), strict=True)
    for i, (row, column) in enumerate(offsets):
        window = padded[i, row : row + shape[0], column : column + shape[1]]
        np.testing.assert_array_equal(cropped[i], window)


def test_flip_mirrors_columns():
    images = make_images(np.arange(20))
    flipped = np.asarray(random_flip(example_keys(0, make_batch(np.arange(20))), images))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 0 < mirrored.sum() < 20


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))])
def test_normalize(mean, std, dtype):
    images = make_images(np.arange(3))
    expected = (images / 255 - np.array(mean)) / np.array(std)
    normalized = jax.jit(lambda x: normalize(x, mean, std, dtype))(images)
    assert normalized.dtype == dtype
    np.testing.assert_allclose(normalized.astype(np.float32), expected, rtol=4e-3, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("x64", [False, True])
def test_a_traced_seed_gives_the_same_keys(seed, x64):
    batch = {"index": np.arange(3), "epoch": np.array([0, 0, 7])}
    with jax.enable_x64(x64):
        expected = jax.random.key_data(example_keys(seed, batch))
        traced = jax.jit(lambda seed: jax.random.key_data(example_keys(seed, batch)))
        np.testing.assert_array_equal(traced(np.uint32(seed)), expected)
