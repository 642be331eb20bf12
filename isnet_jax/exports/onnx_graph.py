"""An ONNX graph under construction: nodes, constants, sizes, and the tensors between them.

Images are (B, H, W, C) in JAX and (B, C, H, W) in ONNX. A tensor knows under which name it exists in which layout, and
is transposed where the other one is asked for.
"""

import ast
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # of onnxruntime 1.15 and later
MAX_BYTES = 2**31 - 2**20  # of constants: protobuf's limit
JAX, ONNX = "bhwc", "bchw"
TO_ONNX, TO_JAX = (0, 3, 1, 2), (0, 2, 3, 1)

Size = Any  # an int, or a symbolic dimension of JAX
Shape = Sequence[Size]


class Affine:
    """A convolution that takes up the constants which its result is multiplied by or increased by."""

    def __init__(self, kernel: np.ndarray, node: onnx.NodeProto):
        """kernel: (O, I / groups, kh, kw); node: the convolution, still without kernel and bias."""
        self.kernel, self.node = kernel.astype(np.float64), node
        self.bias = np.zeros(len(kernel))

    def apply(self, operation: str, vector: np.ndarray) -> None:
        """Applies add, sub, mul or div by a vector (O,), or by a number."""
        vector = vector.astype(np.float64).ravel()
        if operation in ("add", "sub"):
            self.bias = self.bias + (vector if operation == "add" else -vector)
        else:
            factor = np.broadcast_to(vector if operation == "mul" else 1 / vector, self.bias.shape)
            self.kernel, self.bias = self.kernel * factor[:, None, None, None], self.bias * factor


class Tensor:
    """A value: known already, or computed by the graph. A size of 1 may stand for any: broadcasting is left to ONNX."""

    shape: tuple[Size, ...]

    def __init__(
        self,
        shape: Shape,
        known: np.ndarray | None = None,
        name: str | None = None,
        layout: str = JAX,
        affine: Affine | None = None,
    ):
        """shape: in JAX's layout, of `known` if that is given; affine: what computes it, if nothing else reads it."""
        self.shape, self.known, self.affine = tuple(shape), known, affine
        self.names = {layout: name} if name else {}


class Graph:
    """Nodes, constants and sizes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.affine: list[Affine] = []
        self._constants: dict[Any, tuple[str, np.ndarray]] = {}
        self._sizes: dict[str, str] = {}

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, whose name it returns."""
        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [name], name, **attributes))
        return name

    def convolve(self, x: str, kernel: np.ndarray, **attributes: Any) -> tuple[str, Affine]:
        """Adds a convolution (B, C, H, W) -> (B, O, H', W'), and returns what takes up constants."""
        name = self.add("Conv", x, **attributes)
        self.affine.append(Affine(kernel, self.nodes[-1]))
        return name, self.affine[-1]

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant; equal ones are stored once."""
        array = np.asarray(value, dtype, order="C")
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}", array
        return self._constants[key][0]

    def name(self, tensor: Tensor, layout: str = JAX) -> str:
        """The name of a tensor in a layout."""
        if layout not in tensor.names:
            permutation = TO_ONNX if layout == ONNX else TO_JAX
            if tensor.known is not None:
                array = tensor.known.transpose(permutation) if layout == ONNX else tensor.known
                tensor.names[layout] = self.constant(array)
            else:
                [other] = tensor.names.values()
                tensor.names[layout] = self.add("Transpose", other, perm=permutation)
        return tensor.names[layout]

    def full(self, tensor: Tensor, shape: Shape) -> Tensor:
        """The tensor with all its sizes written out."""
        if same_shape(tensor.shape, shape):
            return tensor
        if tensor.known is not None and is_static(shape):
            return Tensor(shape, np.broadcast_to(tensor.known, shape))
        return Tensor(shape, name=self.add("Expand", self.name(tensor), self.sizes(shape)))

    def define_sizes(self, tensor: str, shape: Shape) -> None:
        """Takes the symbolic dimensions of an input from its shape."""
        found = self.add("Shape", tensor)
        for axis, size in enumerate(shape):
            if not isinstance(size, int):
                self._sizes[str(size)] = self.add("Gather", found, self.constant([axis], np.int64))

    def sizes(self, shape: Shape) -> str:
        """The name of a shape, int64 (rank,)."""
        if is_static(shape):
            return self.constant(np.array(shape, np.int64))
        return self.add("Concat", *(self.size(size) for size in shape), axis=0)

    def size(self, size: Size) -> str:
        """The name of a dimension, int64 (1,), which may be an expression of symbols such as floordiv(h - 1, 2) + 1."""
        text = str(size)
        if text not in self._sizes:
            self._sizes[text] = self._expression(ast.parse(text, mode="eval").body)
        return self._sizes[text]

    def _expression(self, node: ast.expr) -> str:
        binary = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
        functions = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}  # sizes are not negative
        match node:
            case ast.Constant(value=int(value)):
                return self.constant([value], np.int64)
            case ast.Name(id=name):
                return self._sizes[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in binary:
                return self.add(binary[type(op)], self.size(ast.unparse(left)), self.size(ast.unparse(right)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self.size(ast.unparse(operand)))
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in functions:
                return self.add(functions[name], *(self.size(ast.unparse(argument)) for argument in arguments))
        raise NotImplementedError(f"a size of {ast.unparse(node)}")

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any], metadata: dict[str, str]) -> onnx.ModelProto:
        """The model; inputs and outputs are {name: abstract value of JAX}. Raises ValueError if it is too large."""
        for affine in self.affine:
            kernel, bias = (self.constant(x, np.float32) for x in (affine.kernel, affine.bias))
            affine.node.input.extend([kernel, bias])
        if sum(array.nbytes for _, array in self._constants.values()) > MAX_BYTES:
            raise ValueError("its constants take more than 2 GiB, the limit of the format")
        graph = helper.make_graph(
            self.nodes,
            "isnet",
            [_value_info(name, value) for name, value in inputs.items()],
            [_value_info(name, value) for name, value in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self._constants.values()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="isnet_jax"
        )
        helper.set_model_props(model, metadata)
        return model


def _value_info(name: str, value: Any) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in value.shape]
    return helper.make_tensor_value_info(name, element_type(value.dtype), shape)


def element_type(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def is_static(shape: Sequence[Size]) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(size, int) for size in shape)


def same_shape(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether two shapes are written alike; symbolic dimensions that are may compare as unknown."""
    return list(map(str, a)) == list(map(str, b))
