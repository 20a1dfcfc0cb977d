"""The layers that the networks are made of, in flax nnx.

Arrays are images (batch, height, width, features). Layers hold no random state: what they draw
comes from the keys of the call, and what they begin with from `initialization`. Parameters are
float32 whatever type is computed in.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from adabatch_jax.data.mesh import rows_of_all_devices
from adabatch_jax.models.convolution import conv2d
from adabatch_jax.system.errors import UsageError


class Conv(nnx.Module):
    """A convolution with a square kernel and the same padding on all sides.

    Args:
      padding: rows and columns of zeros on each side, by default what keeps the size at stride 1.
      dtype: "bfloat16" rounds images and kernel to it; "float32" is at least float32, so that
        float64 stays float64. The output is of this type.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        use_bias: bool = True,
        dtype: str = "float32",
    ):
        self.dtype = dtype
        padding = kernel_size // 2 if padding is None else padding
        self.strides = (stride, stride)
        self.padding = ((padding, padding), (padding, padding))
        self.kernel = parameter((kernel_size, kernel_size, in_features, out_features))
        self.bias = parameter((out_features,)) if use_bias else None

    def __call__(self, images: jax.Array) -> jax.Array:
        images, kernel = as_computed(self.dtype, images, self.kernel[...])
        features = conv2d(images, kernel, self.strides, self.padding)
        if self.bias is None:
            return features
        return features + row(self.bias[...].astype(features.dtype), 4)


class Linear(nnx.Module):
    """`inputs @ kernel + bias`, computed in `dtype` as in `Conv`."""

    def __init__(
        self, in_features: int, out_features: int, *, use_bias: bool = True, dtype: str = "float32"
    ):
        self.dtype = dtype
        self.kernel = parameter((in_features, out_features))
        self.bias = parameter((out_features,)) if use_bias else None

    def __call__(self, inputs: jax.Array) -> jax.Array:
        inputs, kernel = as_computed(self.dtype, inputs, self.kernel[...])
        if self.bias is None:
            return inputs @ kernel
        return inputs @ kernel + row(self.bias[...].astype(inputs.dtype), inputs.ndim)


_MOMENTUM = 0.1  # the share of a new group in the running statistics
_EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Batch normalization that knows padding, and whose group is stated.

    Means and variances are those of the real examples of a group, weighted by the mask; how many
    they are is the number of rows that weigh anything. With
    PyTorch's conventions: normalization uses the biased variance and the running variance
    collects the unbiased one, `new = 0.9 * running + 0.1 * group`, epsilon 1e-5. Groups enter
    the running statistics one by one in the order of the rows, so that they don't depend on how
    a batch is cut into micro-batches; a group of padding leaves them alone. Statistics are
    float32 (float64 for float64 images), outputs of the images' type.

    Args:
      group_size: rows that are normalized together, counted from the (micro-)batch's first
        row; None for the whole (micro-)batch. The result depends neither on the devices nor,
        as long as it divides the micro-batch, on the micro-batch's size. With a mask, a last
        group that isn't full is completed with padding.
      reference_size: a group of n real examples counts as n / reference_size updates of the
        running statistics, so that their half-life in examples is the same for all group
        sizes; None for one update per group.
    """

    def __init__(
        self, num_features: int, group_size: int | None = None, reference_size: int | None = None
    ):
        self.group_size, self.reference_size = group_size, reference_size
        self.scale = parameter((num_features,), 1)
        self.bias = parameter((num_features,))
        self.mean = nnx.BatchStat(jnp.asarray(np.zeros(num_features, np.float32)))
        self.var = nnx.BatchStat(jnp.asarray(np.ones(num_features, np.float32)))

    def __call__(self, images: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """Returns the normalized images, and in training updates the running statistics.

        `mask` (batch,) is 1 for a real example, or what it weighs, and 0 for padding; None if all
        are real, and then a UsageError is raised where `group_size` doesn't divide the rows.
        """
        if not train:
            return self._normalize(images, self.mean[...][None], self.var[...][None])
        num_rows, height, width, _ = images.shape
        group_size = self.group_size or num_rows
        surplus = -num_rows % group_size
        if surplus and mask is None:
            raise UsageError(
                f"BatchNorm's group_size={group_size} must divide the {num_rows} rows of a "
                "(micro-)batch."
            )
        if surplus:
            # Rows that were added for the devices may begin another group.
            images = jnp.pad(images, ((0, surplus), (0, 0), (0, 0), (0, 0)))
            return self(images, jnp.pad(mask, (0, surplus)), train)[:num_rows]
        precise = jnp.promote_types(images.dtype, jnp.float32)
        weight = jnp.ones(num_rows, precise) if mask is None else mask.astype(precise)
        weight = weight.reshape(-1, group_size, 1, 1, 1)
        groups = images.reshape(-1, group_size, *images.shape[1:]).astype(precise)
        num_real = (weight > 0).astype(precise).sum((1, 2, 3))  # (groups, 1)
        count = num_real * (height * width)
        total = weight.sum((1, 2, 3)) * (height * width)
        divisor = jnp.where(total > 0, total, 1)
        mean = (groups * weight).sum((1, 2, 3)) / divisor
        deviation = groups - mean[:, None, None, None]
        var = (deviation * deviation * weight).sum((1, 2, 3)) / divisor
        # A group of padding has no statistics. Any others would do that keep its values, which
        # nobody reads, from growing layer by layer until they overflow: 0 * inf is a NaN.
        used_mean = jnp.where(count > 0, mean, self.mean[...][None])
        used_var = jnp.where(count > 0, var, self.var[...][None])
        self._update(mean, var * (count / jnp.maximum(count - 1, 1)), num_real)
        return self._normalize(images, used_mean, used_var)

    def _normalize(self, images: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        """Normalizes equal groups of consecutive rows by statistics (groups, features)."""
        groups = images.reshape(len(mean), -1, *images.shape[1:])
        factor = self.scale[...][None] * lax.rsqrt(var + _EPSILON)
        offset = self.bias[...][None] - mean * factor
        normalized = groups * factor[:, None, None, None] + offset[:, None, None, None]
        return normalized.reshape(images.shape).astype(images.dtype)

    def _update(self, mean: jax.Array, var: jax.Array, num_real: jax.Array) -> None:
        """Moves the running statistics by those of each group (groups, features), in order."""
        rows = rows_of_all_devices(jnp.concatenate((mean, var, num_real), axis=1))
        mean, var, num_real = jnp.split(rows, (mean.shape[1], 2 * mean.shape[1]), axis=1)
        if self.reference_size is None:
            updates = (num_real > 0).astype(num_real.dtype)
        else:
            updates = num_real / self.reference_size
        # In closed form: u updates keep (1 - _MOMENTUM)^u of what was there before.
        rate = math.log1p(-_MOMENTUM)
        later = lax.cumsum(updates, axis=0, reverse=True) - updates
        share = -jnp.expm1(rate * updates) * jnp.exp(rate * later)
        kept = jnp.exp(rate * updates.sum())
        for running, groups in ((self.mean, mean), (self.var, var)):
            old = running[...]
            running[...] = (kept * old + (share * groups).sum(0)).astype(old.dtype)


class Dropout(nnx.Module):
    """Sets a share of the features to zero, drawn for each example from its own key.

    Args:
      rate: the probability of a zero; the others are scaled by `1 / (1 - rate)`.
      number: at least 1, another one for each dropout of a network, so that they differ.
    """

    def __init__(self, rate: float, number: int):
        self.rate, self.number = rate, number

    def __call__(self, inputs: jax.Array, keys: jax.Array | None, train: bool) -> jax.Array:
        """Drops features of (batch, ...) in training, unless there are no `keys`."""
        if not train or keys is None:
            return inputs

        def keep(key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(key, self.number)
            return jax.random.bernoulli(key, 1 - self.rate, inputs.shape[1:])

        return jnp.where(jax.vmap(keep)(keys), inputs / (1 - self.rate), 0)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes layers that share what a network's options say, see `create`.

    A network's last layer should be a plain `Linear`, whose logits are float32 always.

    >>> Layers(dtype="bfloat16").conv(3, 16, 3)(jnp.ones((1, 8, 8, 3))).dtype
    dtype(bfloat16)
    """

    dtype: str = "float32"
    group_size: int | None = None
    batchnorm_reference_size: int | None = None

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise UsageError(f"`dtype` is 'float32' or 'bfloat16', got {self.dtype!r}.")
        for name in ("group_size", "batchnorm_reference_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UsageError(f"`{name}` must be at least 1, got {size}.")

    def conv(self, in_features: int, out_features: int, kernel_size: int, **options) -> Conv:
        return Conv(in_features, out_features, kernel_size, dtype=self.dtype, **options)

    def linear(self, in_features: int, out_features: int) -> Linear:
        return Linear(in_features, out_features, dtype=self.dtype)

    def norm(self, num_features: int) -> BatchNorm:
        return BatchNorm(num_features, self.group_size, self.batchnorm_reference_size)


def as_computed(dtype: str, *arrays: jax.Array) -> list[jax.Array]:
    """Casts arrays to the type that a layer computes in."""
    if dtype == "float32":
        return [array.astype(jnp.result_type(jnp.float32, *arrays)) for array in arrays]
    return [array.astype(dtype) for array in arrays]


def parameter(shape: tuple[int, ...], value: float = 0) -> nnx.Param:
    """A float32 parameter that is `value` everywhere, until `initialize` draws it."""
    # From numpy, because every `jnp.zeros` of a new shape would be compiled.
    return nnx.Param(jnp.asarray(np.full(shape, value, np.float32)))


def row(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector of features as an array of so many axes, the last of which is the vector's."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))
