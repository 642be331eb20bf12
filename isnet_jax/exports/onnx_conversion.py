"""A JAX function as an ONNX model, without other libraries than onnx.

The function is traced, and each operation becomes one of ONNX. What depends on no input is computed here, and batch
norms are folded into the convolutions before them.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from isnet_jax.exports.onnx_graph import Graph, Tensor, is_static
from isnet_jax.exports.onnx_operations import LAZY, OPERATIONS

BODY = "jaxpr", "call_jaxpr"  # the parameter that holds the program which an operation calls


def to_onnx(
    function: Callable[[Any], dict[str, Any]], image: jax.ShapeDtypeStruct, metadata: dict[str, str]
) -> onnx.ModelProto:
    """The ONNX model of a function of one array, `image`, whose result is {name: array}.

    The shape may be symbolic (jax.export.symbolic_shape). Raises NotImplementedError for an operation that networks of
    this project do not have, and ValueError if the model is too large for the format.
    """
    closed, results = jax.make_jaxpr(function, return_shape=True)(image)
    graph = Graph()
    if not is_static(image.shape):
        graph.define_sizes("image", image.shape)
    tensors = _convert(graph, closed.jaxpr, closed.consts, [Tensor(image.shape, name="image")])
    for name, tensor, variable in zip(sorted(results), tensors, closed.jaxpr.outvars):
        last = graph.name(graph.full(tensor, variable.aval.shape))
        graph.nodes.append(onnx.helper.make_node("Identity", [last], [name]))
    model = graph.model({"image": image}, {name: results[name] for name in sorted(results)}, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def _convert(graph: Graph, jaxpr: Any, consts: list[Any], arguments: list[Tensor]) -> list[Tensor]:
    """Adds the equations of a program to the graph; returns its results."""
    values: dict[Any, Tensor] = dict(zip(jaxpr.invars, arguments))
    values |= {variable: _constant(value) for variable, value in zip(jaxpr.constvars, consts)}
    uses = collections.Counter(v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, core.Literal))
    uses.update(v for v in jaxpr.outvars if not isinstance(v, core.Literal))

    for variable, argument in zip(jaxpr.invars, arguments):
        if uses[variable] != 1:  # more than one reader needs the result of the convolution itself
            argument.affine = None

    def read(variable):
        return _constant(variable.val) if isinstance(variable, core.Literal) else values[variable]

    for eqn in jaxpr.eqns:
        results = _convert_equation(graph, eqn, [read(variable) for variable in eqn.invars])
        for variable, result in zip(eqn.outvars, results):
            if uses[variable] != 1:
                result.affine = None
            values[variable] = result
    return [read(variable) for variable in jaxpr.outvars]


def _convert_equation(graph: Graph, eqn: Any, operands: list[Tensor]) -> list[Tensor]:
    name = eqn.primitive.name
    if name == "scan":
        return _unroll(graph, eqn, operands)
    if body := next((eqn.params[key] for key in BODY if key in eqn.params), None):
        is_closed = hasattr(body, "consts")
        return _convert(graph, body.jaxpr if is_closed else body, body.consts if is_closed else [], operands)
    known = [x.known for x in operands if x.known is not None]
    static = all(is_static(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
    if name not in LAZY and len(known) == len(operands) and static:
        arguments = [np.broadcast_to(array, v.aval.shape) for array, v in zip(known, eqn.invars)]
        results = eqn.primitive.bind(*arguments, **eqn.params)
        return [_constant(result) for result in (results if eqn.primitive.multiple_results else [results])]
    if name not in OPERATIONS:
        raise NotImplementedError(f"the operation {name}")
    return [OPERATIONS[name](graph, eqn, *operands)]


def _constant(value: Any) -> Tensor:
    array = np.asarray(value)
    return Tensor(array.shape, array)


def _unroll(graph: Graph, eqn: Any, operands: list[Tensor]) -> list[Tensor]:
    """A loop, as over blocks of queries, written out: ONNX's own loops keep runtimes from optimising their bodies."""
    num_consts, num_carry, body = eqn.params["num_consts"], eqn.params["num_carry"], eqn.params["jaxpr"]
    consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
    rows: list[list[Tensor]] = []
    sequences = [graph.full(x, v.aval.shape) for x, v in zip(operands, eqn.invars)][num_consts + num_carry :]
    for i in range(eqn.params["length"]):
        index = graph.constant(i, np.int64)
        slices = [Tensor(x.shape[1:], name=graph.add("Gather", graph.name(x), index, axis=0)) for x in sequences]
        results = _convert(graph, body.jaxpr, body.consts, [*consts, *carry, *slices])
        carry = results[:num_carry]
        rows.append(results[num_carry:])
    axis = graph.constant([0], np.int64)
    outputs = []
    for column, variable in zip(zip(*rows), eqn.outvars[num_carry:]):
        shape = variable.aval.shape
        names = [graph.add("Unsqueeze", graph.name(graph.full(x, shape[1:])), axis) for x in column]
        outputs.append(Tensor(shape, name=graph.add("Concat", *names, axis=0)))
    return [*carry, *outputs]
