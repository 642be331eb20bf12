"""JAX's operations as ONNX's: those that an ISNet consists of in inference.

Every operation takes the graph, an equation of the traced program and its operands, and returns a Tensor.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from isnet_jax.exports.onnx_graph import JAX, ONNX, Graph, Size, Tensor, element_type, is_static, same_shape

Operation = Callable[..., Tensor]

ELEMENTWISE: dict[str, tuple[str, Callable]] = {  # the operation in ONNX, and in NumPy for what is known
    "add": ("Add", np.add),
    "sub": ("Sub", np.subtract),
    "mul": ("Mul", np.multiply),
    "div": ("Div", np.divide),
    "max": ("Max", np.maximum),
    "min": ("Min", np.minimum),
    "neg": ("Neg", np.negative),
    "abs": ("Abs", np.abs),
    "exp": ("Exp", np.exp),
    "log": ("Log", np.log),
    "sqrt": ("Sqrt", np.sqrt),
    "eq": ("Equal", np.equal),
    "gt": ("Greater", np.greater),
    "ge": ("GreaterOrEqual", np.greater_equal),
    "lt": ("Less", np.less),
    "le": ("LessOrEqual", np.less_equal),
    "and": ("And", np.logical_and),
    "or": ("Or", np.logical_or),
    "not": ("Not", np.logical_not),
}
FOLDABLE = "add", "sub", "mul", "div"  # into a convolution, if the other operand is a known vector of channels
TO_KERNEL = (3, 2, 0, 1)  # (kh, kw, I, O) -> (O, I, kh, kw)


def elementwise(graph: Graph, eqn: Any, *operands: Tensor) -> Tensor:
    """Any of ELEMENTWISE, in the layout that its operands have."""
    name = eqn.primitive.name
    operation, function = ELEMENTWISE[name]
    if all(x.known is not None for x in operands):
        known = np.asarray(function(*(x.known for x in operands)), eqn.outvars[0].aval.dtype)
        return Tensor(known.shape, known)
    if folded := _fold(name, *operands):
        return folded
    if name == "max" and operands[1].known is not None and not operands[1].shape and operands[1].known == 0:
        return _emit(graph, "Relu", operands[0])
    return _emit(graph, operation, *operands)


def _fold(name: str, x: Tensor, y: Tensor | None = None) -> Tensor | None:
    """The result of the convolution that computes x, once it has taken up y."""
    if name not in FOLDABLE or y is None:
        return None
    if name in ("add", "mul") and y.affine:
        x, y = y, x
    if not x.affine or y.known is None or math.prod(y.shape[:-1]) != 1:
        return None
    x.affine.apply(name, y.known)
    return x


def _emit(graph: Graph, operation: str, *operands: Tensor) -> Tensor:
    """A node on operands that broadcast, in the layout ONNX if all images have it."""
    images = [x for x in operands if len(x.shape) == 4 and x.known is None]
    layout = ONNX if images and all(ONNX in x.names for x in images) else JAX
    names = [graph.name(x, layout if len(x.shape) == 4 else JAX) for x in operands]
    return Tensor(_broadcast_shape(*operands), name=graph.add(operation, *names), layout=layout)


def _broadcast_shape(*operands: Tensor) -> tuple[Size, ...]:
    rank = max(len(x.shape) for x in operands)
    shapes = [(1,) * (rank - len(x.shape)) + x.shape for x in operands]
    return tuple(next((n for n in sizes if not (isinstance(n, int) and n == 1)), 1) for sizes in zip(*shapes))


def rsqrt(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """1 / sqrt(x)."""
    if x.known is not None:
        return Tensor(x.shape, 1 / np.sqrt(x.known))
    return _emit(graph, "Reciprocal", _emit(graph, "Sqrt", x))


def not_equal(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    """x != y."""
    return _emit(graph, "Not", _emit(graph, "Equal", x, y))


def select(graph: Graph, eqn: Any, condition: Tensor, if_false: Tensor, if_true: Tensor) -> Tensor:
    """if_true where the condition holds."""
    return _emit(graph, "Where", condition, if_true, if_false)


def same(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """x itself."""
    return x


def cast(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """x in another dtype."""
    dtype = eqn.params["new_dtype"]
    if x.known is not None:
        return Tensor(x.shape, x.known.astype(dtype))
    layout, name = next(iter(x.names.items()))
    return Tensor(x.shape, name=graph.add("Cast", name, to=element_type(dtype)), layout=layout)


def broadcast(graph: Graph, eqn: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    """x with further axes of size 1; whoever reads it broadcasts."""
    kept, rank = eqn.params["broadcast_dimensions"], len(eqn.params["shape"])
    new = [axis for axis in range(rank) if axis not in kept]
    shape = [1] * rank
    for axis, size in zip(kept, x.shape):
        shape[axis] = size
    if x.known is not None:
        return Tensor(shape, x.known.reshape(shape))
    return Tensor(shape, name=graph.add("Unsqueeze", graph.name(x), graph.constant(new, np.int64))) if new else x


def reshape(graph: Graph, eqn: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    """x in another shape."""
    shape = eqn.outvars[0].aval.shape
    if same_shape(x.shape, shape):
        return x
    x = graph.full(x, eqn.invars[0].aval.shape)
    return Tensor(shape, name=graph.add("Reshape", graph.name(x), graph.sizes(shape)))


def transpose(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """x with its axes in another order."""
    order = eqn.params["permutation"]
    return Tensor([x.shape[i] for i in order], name=graph.add("Transpose", graph.name(x), perm=order))


def axis_in(layout: str, axis: int) -> int:
    """The position of one of JAX's axes in a layout; only images have another one."""
    return axis if layout == JAX else ONNX.index(JAX[axis])


def concatenate(graph: Graph, eqn: Any, *operands: Tensor) -> Tensor:
    """Operands side by side, in the layout ONNX if all have it."""
    axis, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    parts = [graph.full(x, v.aval.shape) for x, v in zip(operands, eqn.invars)]
    layout = ONNX if all(ONNX in x.names for x in parts) else JAX
    axis = axis_in(layout, axis)
    name = graph.add("Concat", *(graph.name(x, layout) for x in parts), axis=axis)
    return Tensor(shape, name=name, layout=layout)


def slice_(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """Every stride-th entry from start to limit, on each axis."""
    x = graph.full(x, eqn.invars[0].aval.shape)
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)
    axes = [
        axis for axis, n in enumerate(x.shape) if start[axis] != 0 or strides[axis] != 1 or str(limit[axis]) != str(n)
    ]
    if not axes:
        return x
    layout, name = next(iter(x.names.items())) if x.names else (JAX, graph.name(x))
    at = graph.constant([axis_in(layout, axis) for axis in axes], np.int64)
    steps = graph.constant([strides[axis] for axis in axes], np.int64)
    starts, limits = (graph.sizes([bounds[axis] for axis in axes]) for bounds in (start, limit))
    name = graph.add("Slice", name, starts, limits, at, steps)
    return Tensor(eqn.outvars[0].aval.shape, name=name, layout=layout)


def pad(graph: Graph, eqn: Any, x: Tensor, value: Tensor) -> Tensor:
    """x with a border of a known value."""
    config = eqn.params["padding_config"]
    if any(
        interior or not isinstance(low + high, int | np.integer) or min(low, high) < 0 for low, high, interior in config
    ):
        raise NotImplementedError(f"padding {config}")
    x = graph.full(x, eqn.invars[0].aval.shape)
    if not any(low or high for low, high, _ in config):
        return x
    widths = [low for low, _, _ in config] + [high for _, high, _ in config]
    name = graph.add("Pad", graph.name(x), graph.constant(widths, np.int64), graph.name(value))
    return Tensor(eqn.outvars[0].aval.shape, name=name)


def squeeze(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """x without axes of size 1."""
    axes = [axis % len(x.shape) for axis in eqn.params["dimensions"]]
    shape = [n for axis, n in enumerate(x.shape) if axis not in axes]
    return Tensor(shape, name=graph.add("Squeeze", graph.name(x), graph.constant(axes, np.int64)))


def reduction(operation: str) -> Operation:
    """A reduction over axes that are then left out."""

    def reduce(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
        x = graph.full(x, eqn.invars[0].aval.shape)
        axes = graph.constant(eqn.params["axes"], np.int64)
        return Tensor(eqn.outvars[0].aval.shape, name=graph.add(operation, graph.name(x), axes, keepdims=0))

    return reduce


def argmax(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """The index of the largest entry, the first of equal ones."""
    x = graph.full(x, eqn.invars[0].aval.shape)
    [axis] = eqn.params["axes"]
    name = graph.add("ArgMax", graph.name(x), axis=axis, keepdims=0)
    return Tensor(eqn.outvars[0].aval.shape, name=graph.add("Cast", name, to=element_type(eqn.params["index_dtype"])))


def pool(operation: str) -> Operation:
    """A window that slides over the two axes of an image: its maximum or its sum."""

    def slide(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
        p = eqn.params
        window, (_, rows, columns, _) = p["window_dimensions"], p["padding"]
        if any(n != 1 for n in (window[0], window[3], *p["base_dilation"], *p["window_dilation"])):
            raise NotImplementedError(f"windows {p}")
        x = graph.full(x, eqn.invars[0].aval.shape)
        pads = [int(n) for n in (rows[0], columns[0], rows[1], columns[1])]
        more = {"count_include_pad": 1} if operation == "AveragePool" else {}
        shape, strides = window[1:3], p["window_strides"][1:3]
        name = graph.add(operation, graph.name(x, ONNX), kernel_shape=shape, strides=strides, pads=pads, **more)
        if operation == "AveragePool":
            name = graph.add("Mul", name, graph.constant(np.float32(math.prod(shape))))
        return Tensor(eqn.outvars[0].aval.shape, name=name, layout=ONNX)

    return slide


def convolution(graph: Graph, eqn: Any, x: Tensor, kernel: Tensor) -> Tensor:
    """A convolution of images with a known kernel."""
    p = eqn.params
    layouts = tuple(map(tuple, (p["dimension_numbers"].lhs_spec, p["dimension_numbers"].out_spec)))
    if kernel.known is None or layouts != ((0, 3, 1, 2),) * 2 or set(p["lhs_dilation"]) != {1}:
        raise NotImplementedError(f"convolution {p}")
    rows, columns = p["padding"]
    name, affine = graph.convolve(
        graph.name(graph.full(x, eqn.invars[0].aval.shape), ONNX),
        kernel.known.transpose(p["dimension_numbers"].rhs_spec),
        pads=[int(n) for n in (rows[0], columns[0], rows[1], columns[1])],
        strides=p["window_strides"],
        dilations=p["rhs_dilation"],
        group=p["feature_group_count"],
    )
    return Tensor(eqn.outvars[0].aval.shape, name=name, layout=ONNX, affine=affine)


def product(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    """A product over any axes: of images with a known matrix, a 1x1 convolution, and otherwise of matrices."""
    (x_sum, y_sum), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    shapes = [v.aval.shape for v in eqn.invars]
    out = eqn.outvars[0].aval.shape
    x, y = (graph.full(t, shape) for t, shape in zip((x, y), shapes))
    if len(x.shape) == 4 and tuple(x_sum) == (3,) and tuple(y_sum) == (0,) and y.known is not None:
        name, affine = graph.convolve(graph.name(x, ONNX), y.known.T[:, :, None, None])
        return Tensor(out, name=name, layout=ONNX, affine=affine)
    x_free, y_free = (
        [i for i in range(len(shape)) if i not in (*sums, *batch)]
        for shape, sums, batch in ((shapes[0], x_sum, x_batch), (shapes[1], y_sum, y_batch))
    )
    batch = [shapes[0][i] for i in x_batch]
    left = _as_matrix(graph, x, batch, [*x_batch], x_free, [*x_sum])
    right = _as_matrix(graph, y, batch, [*y_batch], [*y_sum], y_free)
    name = graph.add("MatMul", left, right)
    if len(x_free) != 1 or len(y_free) != 1:
        name = graph.add("Reshape", name, graph.sizes(out))
    return Tensor(out, name=name)


def _as_matrix(
    graph: Graph, x: Tensor, batch: list[Size], batch_axes: list[int], row_axes: list[int], column_axes: list[int]
) -> str:
    """x with its axes joined to (*batch, rows, columns)."""
    order = [*batch_axes, *row_axes, *column_axes]
    shape = [*batch, *(math.prod([x.shape[i] for i in axes]) for axes in (row_axes, column_axes))]
    if x.known is not None and is_static(shape):
        return graph.constant(x.known.transpose(order).reshape(shape))
    name = graph.name(x)
    if order != sorted(order):
        name = graph.add("Transpose", name, perm=order)
    return name if len(row_axes) == len(column_axes) == 1 else graph.add("Reshape", name, graph.sizes(shape))


def iota(graph: Graph, eqn: Any, *sizes: Tensor) -> Tensor:
    """0, 1, 2, ... along one axis."""
    shape, axis, dtype = eqn.params["shape"], eqn.params["dimension"], eqn.params["dtype"]
    lazy = [n if i == axis else 1 for i, n in enumerate(shape)]
    if isinstance(shape[axis], int):
        return Tensor(lazy, np.arange(shape[axis], dtype=dtype).reshape(lazy))
    end = graph.add("Squeeze", graph.size(shape[axis]))
    name = graph.add("Range", graph.constant(np.int64(0)), end, graph.constant(np.int64(1)))
    name = graph.add("Cast", name, to=element_type(dtype))
    return Tensor(lazy, name=name if len(lazy) == 1 else graph.add("Reshape", name, graph.sizes(lazy)))


def gather(graph: Graph, eqn: Any, x: Tensor, index: Tensor) -> Tensor:
    """The entry at one known index of one axis, which is left out."""
    dims, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    axes = tuple(dims.collapsed_slice_dims)
    sizes = [1 if axis in axes else n for axis, n in enumerate(shape)]
    if len(axes) != 1 or dims.start_index_map != axes or index.known is None or index.known.size != 1:
        raise NotImplementedError(f"gathering {eqn.params}")
    if not same_shape(eqn.params["slice_sizes"], sizes):
        raise NotImplementedError(f"gathering {eqn.params}")
    at = graph.constant(index.known.reshape(()), np.int64)
    name = graph.add("Gather", graph.name(graph.full(x, shape)), at, axis=axes[0])
    return Tensor(eqn.outvars[0].aval.shape, name=name)


def dimension(graph: Graph, eqn: Any) -> Tensor:
    """A symbolic dimension as a number."""
    name = graph.add("Squeeze", graph.size(eqn.params["dim"]))
    return Tensor((), name=graph.add("Cast", name, to=element_type(eqn.outvars[0].aval.dtype)))


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "rsqrt": rsqrt,
    "ne": not_equal,
    "select_n": select,
    "stop_gradient": same,
    "copy": same,
    "convert_element_type": cast,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "transpose": transpose,
    "concatenate": concatenate,
    "slice": slice_,
    "pad": pad,
    "squeeze": squeeze,
    "reduce_sum": reduction("ReduceSum"),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "argmax": argmax,
    "reduce_window_max": pool("MaxPool"),
    "reduce_window_sum": pool("AveragePool"),
    "conv_general_dilated": convolution,
    "dot_general": product,
    "iota": iota,
    "gather": gather,
    "dim_as_value": dimension,
}
LAZY = {*ELEMENTWISE, "rsqrt", "broadcast_in_dim", "iota", "dim_as_value", "convert_element_type", "stop_gradient"}
