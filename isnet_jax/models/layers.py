"""Layers with PyTorch's arithmetic, for NHWC activations that may carry padding.

Shapes: B images, H x W pixels, C channels. Layers compute in the dtype of their activations; parameters and batch
statistics stay float32 (or whatever dtype they were given in).

A `mask` (B, H, W, 1) marks the pixels that are not padding. Every layer that mixes pixels leaves zeros outside the
mask, so that the next convolution sees the zero border that PyTorch pads with: results inside the mask do not depend on
the padding. `mask=None` means no padding. An integer mask gives the number of pixels each entry stands for, which is
its weight in batch norm.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, Shaped

from isnet_jax.models.batch_norm import EPSILON, normalize_batch

Array = jax.Array | np.ndarray  # traced or not
Mask = Shaped[Array, "b _ _ 1"]  # bool, or int: pixels per entry; at the resolution of what it masks
Sizes = Int[Array, "b 2"]  # (height, width) of each image
Length = Any  # of an axis: an int, or a symbolic dimension while a program for any size is traced

MOMENTUM = 0.1  # of batch norm, in PyTorch's sense
FEW_CHANNELS = 4  # of images


def valid_mask(
    size: Sizes, height: int, width: int, offset: Sizes | None = None
) -> Bool[Array, "b {height} {width} 1"]:
    """True inside each image's region of `size` = (h, w), which starts at `offset` = (top, left), by default (0, 0)."""
    row, column = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None]
    top, left = (0, 0) if offset is None else (offset[:, i, None, None] for i in (0, 1))
    h, w = (size[:, i, None, None] for i in (0, 1))
    inside = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
    return inside[..., None]


def masks_by_stride(
    size: Sizes | None, height: Length, width: Length, strides: Sequence[int] = (1, 2, 4, 8)
) -> tuple[Mapping[int, Sizes | None], Mapping[int, Mask | None]]:
    """Sizes and masks of padded images (B, height, width) at each stride; None throughout if `size` is None.

    Every layer of stride 2 rounds up.
    """
    if size is None:
        return dict.fromkeys(strides), dict.fromkeys(strides)
    sizes = {stride: -(-size // stride) for stride in strides}
    masks = {stride: valid_mask(sizes[stride], -(-height // stride), -(-width // stride)) for stride in strides}
    return sizes, masks


def apply_mask(x: Shaped[Array, "b h w c"], mask: Mask | None) -> Shaped[Array, "b h w c"]:
    """x with zeros outside the mask."""
    return x if mask is None else jnp.where(mask != 0, x, jnp.zeros((), x.dtype))


def has_symbolic_size(x: Array) -> bool:
    """Whether an array has dimensions that are unknown while a program is traced, as in an export for any size."""
    return any(not isinstance(n, int) for n in x.shape)


def masked_mean(x: Float[Array, "b h w c"], mask: Mask | None) -> Float[Array, "b 1 1 c"]:
    """Mean over the pixels of the mask, accumulated in float32 or wider."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if mask is None:
        return x.mean((1, 2), keepdims=True, dtype=dtype).astype(x.dtype)
    total = apply_mask(x, mask).sum((1, 2), keepdims=True, dtype=dtype)
    return (total / mask.sum((1, 2), keepdims=True)).astype(x.dtype)


def precision(dtype: jnp.dtype) -> lax.Precision:
    """float32 means float32 on every device; by default JAX multiplies in bfloat16 or TF32 on accelerators."""
    return lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST


@jax.custom_vjp
def matmul(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """x @ kernel in x's dtype; for reverse-mode differentiation only."""
    return jnp.matmul(x, kernel.astype(x.dtype), precision=precision(x.dtype))


def _matmul_backward(residuals, dy):
    """Autodiff's gradient of x. The kernel's is summed in float32 or wider, and is a product of two matrices on a CPU,
    where XLA would transpose an operand.
    """
    x, kernel = residuals
    x_grad = jnp.matmul(dy, kernel.astype(x.dtype).T, precision=precision(x.dtype))
    kernel_grad = lax.platform_dependent(x, dy, cpu=_product_of_matrices, default=_product_over_pixels)
    return x_grad, kernel_grad.astype(kernel.dtype)


def _product_over_pixels(x: Array, y: Array) -> Array:
    """The sum over all axes but the last, in float32 or wider: (..., i), (..., o) -> (i, o)."""
    pixels, dtype = tuple(range(x.ndim - 1)), jnp.promote_types(x.dtype, jnp.float32)
    contraction = (pixels, pixels), ((), ())
    return lax.dot_general(x, y, contraction, precision=precision(x.dtype), preferred_element_type=dtype)


def _product_of_matrices(x: Array, y: Array) -> Array:
    """The same; its reshape would move images that are split over devices."""
    return _product_over_pixels(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))


matmul.defvjp(lambda x, kernel: (matmul(x, kernel), (x, kernel)), _matmul_backward)


class _Window(NamedTuple):
    """How a convolution slides its kernel."""

    stride: int
    padding: tuple[tuple[int, int], tuple[int, int]]  # (low, high) for rows and columns
    dilation: int
    groups: int


def _convolution(x: jax.Array, kernel: Array, window: _Window) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        window_strides=(window.stride,) * 2,
        padding=window.padding,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
        precision=precision(x.dtype),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[jax.Array, "b h w i"], kernel: Float[Array, "kh kw ig o"], window: _Window
) -> Float[jax.Array, "b h2 w2 o"]:
    """The convolution (B, H', W', O) in x's dtype; for reverse-mode differentiation only."""
    return _convolution(x, kernel, window)


def _convolve_backward(window, residuals, dy):
    """Autodiff's gradients, but for the kernel's on a TPU: float32, so that devices add theirs in float32.

    A GPU has no convolution of bfloat16 to float32; XLA would convert its operands.
    """
    x, kernel = residuals
    transpose = jax.linear_transpose(lambda x: _convolution(x, kernel, window), x)
    kernel_gradient = partial(_kernel_gradient, kernel_size=kernel.shape[:2], window=window)
    gradient = lax.platform_dependent(
        x,
        dy,
        tpu=lambda x, dy: kernel_gradient(x, dy, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(kernel.dtype),
        default=lambda x, dy: kernel_gradient(x, dy).astype(kernel.dtype),
    )
    return *transpose(dy), gradient


def _kernel_gradient(
    x: Array, dy: Array, kernel_size: Sequence[int], window: _Window, dtype: DTypeLike | None = None
) -> jax.Array:
    """The gradient (kh, kw, I / groups, O) of the kernel in `dtype`, by default x's; dy: that of the output."""
    padding = [  # high: what the kernel reads in the last window beyond x
        (low, (num_windows - 1) * window.stride + (size - 1) * window.dilation + 1 - length - low)
        for length, size, num_windows, (low, _) in zip(x.shape[1:], kernel_size, dy.shape[1:], window.padding)
    ]
    return lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(dy),
        window_strides=(window.dilation,) * 2,
        padding=padding,
        rhs_dilation=(window.stride,) * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=window.groups,
        precision=precision(x.dtype),
        preferred_element_type=dtype,
    )


convolve.defvjp(lambda x, kernel, window: (convolve(x, kernel, window), (x, kernel)), _convolve_backward)


def _as_2x2(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> tuple[Float[jax.Array, "b h2 w2 4*i"], Float[jax.Array, "2 2 4*i o"]]:
    """x and kernel of a 3x3/2 convolution as those of a 2x2 one, over cells of 2x2 pixels, their channels side by side.

    A TPU spends as much on 3 channels as on 12, and strides cost.
    """
    channels = x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    cells = jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, channels, -1).swapaxes(1, 2)
    return cells, kernel.reshape(2, 2, 4 * channels, -1)


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default for convolution kernels and biases: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution with symmetric padding; kernels are (kh, kw, I / groups, O)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w i"], image_vector: Float[Array, "b 1 1 g"] | None = None
    ) -> Float[Array, "b h2 w2 o"]:
        """x -> (B, ceil(H / stride), ceil(W / stride), features).

        With `image_vector`, the 1x1 convolution of concat(image_vector broadcast, x), without building it: the
        vector's part of the product is one row per image.
        """
        k, extra = self.kernel_size, 0 if image_vector is None else image_vector.shape[-1]
        in_features = x.shape[-1] // self.groups + extra
        init = uniform_fan_in(k * k * in_features)
        kernel = self.param("kernel", init, (k, k, in_features, self.features))
        symbolic = has_symbolic_size(x)  # then only convolutions agree on how they round
        if k == 1 and not (symbolic and self.stride > 1):  # a product of matrices is faster, on every backend
            y = matmul(x[:, :: self.stride, :: self.stride], kernel[0, 0, extra:])
            if image_vector is not None:
                y = y + matmul(image_vector, kernel[0, 0, :extra])
        else:
            stride, padding = self.stride, ((self.dilation * (k // 2),) * 2,) * 2
            few = x.shape[-1] <= FEW_CHANNELS and not symbolic
            if (k, stride, self.dilation, self.groups) == (3, 2, 1, 1) and few:
                x, kernel = _as_2x2(x, kernel)
                stride, padding = 1, ((1, 0), (1, 0))
            y = convolve(jnp.asarray(x), kernel, _Window(stride, padding, self.dilation, self.groups))
        return y + self.param("bias", init, (self.features,)).astype(y.dtype) if self.use_bias else y


class BatchNorm(nn.Module):
    """Batch normalisation as in PyTorch: epsilon 1e-5, momentum 0.1, unbiased running variance.

    Under `jit` over a mesh the statistics cover the global batch (synchronised batch norm).
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n c"], train: bool, weight: Shaped[Array, "*n 1"] | None = None
    ) -> Float[Array, "*n c"]:
        """x normalised, in its own dtype; `weight` gives the number of pixels each entry stands for."""
        shape, dtype = (x.shape[-1],), jnp.promote_types(x.dtype, jnp.float32)
        scale = jnp.asarray(self.param("scale", nn.initializers.ones, shape), dtype)
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, shape), dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        num_batches = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        if not train:
            mean, var = running_mean.value.astype(dtype), running_var.value.astype(dtype)
            y = (x.astype(dtype) - mean) * (lax.rsqrt(var + EPSILON) * scale) + bias
            return y.astype(x.dtype)
        y, (mean, var, count) = normalize_batch(jnp.asarray(x), scale, bias, weight)
        if not self.is_initializing():
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                updated = (1 - MOMENTUM) * running.value + MOMENTUM * new
                running.value = updated.astype(running.value.dtype)
            num_batches.value = num_batches.value + 1
        return y


class ConvBNAct(nn.Module):
    """Convolution, batch norm, activation (None: linear), and zeros outside the mask."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    act: Callable | None = nn.relu

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w i"],
        train: bool,
        mask: Mask | None = None,
        image_vector: Float[Array, "b 1 1 g"] | None = None,
    ) -> Float[Array, "b h2 w2 o"]:
        """x -> (B, H', W', features); the mask is at the output's resolution, `image_vector` as in Conv."""
        conv = Conv(
            self.features, self.kernel_size, self.stride, self.dilation, self.groups, self.use_bias, name="conv"
        )
        y = BatchNorm(name="bn")(conv(x, image_vector), train, mask)
        return apply_mask(y if self.act is None else self.act(y), mask)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """3x3/2 maximum; x must not be negative, so that zeros of the border and of the padding never win."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _window_sum(x: Array, window: int, padding: Sequence[tuple[int, int]], stride: int = 2) -> Array:
    return lax.reduce_window(
        x, np.zeros((), x.dtype), lax.add, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *padding, (0, 0))
    )


def avg_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """3x3/2 mean that counts the zero border as pixels (ResNeSt, inside strided blocks)."""
    return _window_sum(x, 3, ((1, 1), (1, 1))) / 9


def avg_pool_2x2(x: Float[Array, "b h w c"], mask: Mask | None) -> Float[Array, "b h2 w2 c"]:
    """2x2/2 mean in ceil mode that counts no padding (ResNeSt and ResNet-D, on the shortcut)."""
    # One row too many is no window; a size that is unknown while the program is traced has no parity.
    padding = [(0, n % 2 if isinstance(n, int) else 1) for n in x.shape[1:3]]
    valid = jnp.ones((1, *x.shape[1:3], 1), x.dtype) if mask is None else mask.astype(x.dtype)
    return _window_sum(x, 2, padding) / jnp.maximum(_window_sum(valid, 2, padding), 1)


def avg_pool_2x2_dense(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mean of each pixel, the next ones to the right and below, and a border of zeros (timm, in dilated shortcuts)."""
    return _window_sum(x, 2, ((0, 1), (0, 1)), stride=1) / 4


def interpolation_matrix(
    out_length: Length,
    in_length: Length,
    out_size: int | Int[Array, "..."],
    in_size: int | Int[Array, "..."],
    dtype: DTypeLike = jnp.float32,
    scale: float | None = None,
    out_start: Int[Array, "..."] | None = None,
    in_start: Int[Array, "..."] | None = None,
) -> Float[Array, "... _ _"]:
    """Weights (..., out_length, in_length) of bilinear resizing, align_corners=False, along one axis.

    The first `in_size` of `in_length` samples become the first `out_size` of `out_length`; the sizes may be traced, and
    broadcast.
    Positions follow the ratio of the sizes, or `scale` if given. As in PyTorch, they are clamped to the samples, and
    downsampling is not antialiased. With `out_start` and `in_start`, the weights are those of a region: samples from
    `in_start` on become samples from `out_start` on, at positions that follow the sizes of the whole.
    """
    in_size, out_size = jnp.asarray(in_size)[..., None], jnp.asarray(out_size)[..., None]
    step = in_size.astype(dtype) / out_size.astype(dtype) if scale is None else 1 / scale
    index = jnp.arange(out_length, dtype=dtype)
    index = index if out_start is None else index + jnp.asarray(out_start)[..., None].astype(dtype)
    position = (index + 0.5) * step - 0.5
    position = jnp.clip(position, 0, in_size.astype(dtype) - 1)
    position = position if in_start is None else position - jnp.asarray(in_start)[..., None].astype(dtype)
    return jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(in_length, dtype=dtype)))


def resize(
    x: Float[Array, "b h w c"],
    shape: Sequence[Length],
    in_size: Sizes | None = None,
    out_size: Sizes | None = None,
    scale: float | None = None,
) -> Float[Array, "b h2 w2 c"]:
    """Bilinear resize (align_corners=False, no antialiasing) to (B, *shape, C).

    With `in_size` and `out_size`, each image's valid region is resized to the valid region of its output; values
    outside are unspecified. `scale` as in `interpolation_matrix`.
    """
    if x.shape[1:3] == tuple(shape) and in_size is None and scale is None:
        return x
    in_size = jnp.asarray(x.shape[1:3]) if in_size is None else in_size
    out_size = jnp.asarray(shape) if out_size is None else out_size
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (
        interpolation_matrix(shape[i], x.shape[1 + i], out_size[..., i], in_size[..., i], dtype, scale) for i in (0, 1)
    )
    y = jnp.einsum("...oh,...hwc->...owc", rows.astype(x.dtype), x, precision=precision(x.dtype))
    return jnp.einsum("...ow,...hwc->...hoc", columns.astype(x.dtype), y, precision=precision(x.dtype))
