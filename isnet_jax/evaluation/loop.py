"""Evaluation at every image's original size; only counts of pixels leave the devices."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import Array, Integer, Shaped

from isnet_jax.evaluation.boundary import boundary_counts
from isnet_jax.evaluation.inference import predict_classes, predict_classes_and_loss, score_maps
from isnet_jax.evaluation.metrics import confusion_matrices, ratio, scores
from isnet_jax.input.photometry import normalize
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import compiler, distributed, sharding
from isnet_jax.runtime.interrupts import StopRequested

if TYPE_CHECKING:  # they import TensorFlow
    from isnet_jax.input.data import Data
    from isnet_jax.input.pipeline import EvalBatch

ON_DEVICE = "image", "label", "image_size", "label_size"  # of a batch
TOTALS = {"confusion": np.int64, "loss": np.float64}  # of a step's results: summed over the batches
OnBatch = Callable[["EvalBatch", Mapping[str, np.ndarray], Mapping[str, Array]], None]


def eval_step(
    variables: Mapping[str, Any],
    batch: Mapping[str, Integer[Array | np.ndarray, "b ..."]],
    padded: bool,
    *,
    model: ISNet,
    settings: Mapping[str, Any],
    boundary: bool = False,
    loss: bool = False,
    mesh: Mesh | None = None,
) -> dict[str, Shaped[Array, "..."]]:
    """Predictions and counts of a batch as `pipeline.eval_batches` makes it.

    padded: whether images are smaller than their padded shape (False saves the masks); settings: keyword arguments of
    `inference.score_maps`. Returns "predictions" uint8 (B, Hl, Wl) at the original size; "confusion" int32 (K, K) of
    the batch; "counts" int32 (B, 3, K), the hit, predicted and ground-truth pixels of each image and class; with
    `boundary`, "boundary" (B, 3, K), the same within the bands along outlines; with `loss`, for settings that average
    logits, "loss" (), their cross entropy at the original size, summed. Pixels labelled 255 are not counted.
    """
    size, labels = batch["image_size"] if padded else None, batch["label"]
    images = batch["image"] if mesh is None else sharding.shard_images(batch["image"], mesh)
    maps = score_maps(model, variables, normalize(images), valid_size=size, **settings)
    if loss:
        predictions, total_loss = predict_classes_and_loss(maps, labels, batch["label_size"])
    else:
        predictions = predict_classes(maps, labels.shape[1:], batch["label_size"])
    confusion = confusion_matrices(predictions, labels, model.num_classes)  # (B, K, K)
    hits = jnp.diagonal(confusion, axis1=1, axis2=2)
    total, predicted, true = (confusion.sum(axis, dtype=jnp.int32) for axis in range(3))
    result = {"predictions": predictions, "confusion": total, "counts": jnp.stack([hits, predicted, true], axis=1)}
    if boundary:
        result["boundary"] = boundary_counts(predictions, labels, batch["label_size"], model.num_classes)
    if loss:
        result["loss"] = total_loss
    return result


def make_eval_step(
    model: ISNet, mesh: Mesh, settings: Mapping[str, Any], boundary: bool = False, loss: bool = False
) -> Callable[..., dict[str, Array]]:
    """`eval_step(variables, batch, padded)`, jitted over the mesh: predictions stay sharded, the rest is replicated."""
    sharded, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    counts = {"confusion": replicated, "counts": replicated}
    counts |= {name: replicated for name, wanted in {"boundary": boundary, "loss": loss}.items() if wanted}
    return jax.jit(
        partial(eval_step, model=model, settings=settings, boundary=boundary, loss=loss, mesh=mesh),
        static_argnums=2,
        in_shardings=(replicated, sharded),
        out_shardings={"predictions": sharded, **counts},
        compiler_options=compiler.options(mesh),
    )


def evaluate(
    step: Callable[..., Mapping[str, Array]],
    variables: Mapping[str, Any],
    batches: Iterable[Mapping[str, np.ndarray]],
    plan: Sequence["EvalBatch"],
    mesh: Mesh,
    on_batch: OnBatch | None = None,
) -> dict[str, Any]:
    """`metrics.scores` over all batches, "confusion" int64 (K, K) and, if the step sums it, the mean "loss".

    plan: what `pipeline.eval_plan` returned, and batches its batches, in its order. `on_batch(entry, batch, result)`
    gets the plan's entry, the NumPy batch, and what `eval_step` returned, still on the device. Raises StopRequested
    between batches after a signal. The loss is the mean over all labelled pixels of all images, NaN if there are none.
    """
    totals: dict[str, Any] = {}
    pending: Any = None

    def process(entry, batch, result):
        if on_batch:
            on_batch(entry, batch, result)
        for name, dtype in TOTALS.items():
            if name in result:
                totals[name] = totals.get(name, 0) + np.asarray(result[name], dtype)

    with tqdm.tqdm(
        total=sum(entry.num_images for entry in plan),
        desc="evaluating",
        leave=False,
        position=0,  # on the line of a run's bar: notebooks cannot move up to it again
        unit=" images",
        disable=None if distributed.is_first() else True,
    ) as bar:
        for entry, batch in zip(plan, batches, strict=True):
            if distributed.stop_requested():
                raise StopRequested
            arrays = sharding.to_devices({name: batch[name] for name in ON_DEVICE}, mesh)
            result = step(variables, arrays, entry.padded)
            if pending:  # fetched a batch late, so that the device never waits
                process(*pending)
                bar.update(pending[0].num_images)
            pending = entry, batch, result
        process(*pending)
    results = {**scores(totals["confusion"]), "confusion": totals["confusion"]}
    if "loss" in totals:
        results["loss"] = float(ratio(totals["loss"], totals["confusion"].sum()))
    return results


class Evaluator:
    """Evaluates variables on the evaluation split of `data`; compiles once per padded shape."""

    def __init__(self, model: ISNet, mesh: Mesh, data: "Data", settings: Mapping[str, Any], **more: bool):
        """settings: keyword arguments of `inference.score_maps`; more: `boundary` and `loss` of `make_eval_step`."""
        self._mesh, self._data = mesh, data
        self._step: Any = make_eval_step(model, mesh, settings, **more)
        self._rows = sharding.local_rows(mesh, data.eval_batch_size)

    def __call__(
        self, variables: Mapping[str, Any], on_batch: OnBatch | None = None, plan: Sequence["EvalBatch"] | None = None
    ) -> dict[str, Any]:
        """What `evaluate` returns, for a plan of `data.eval_plan`, by default of all examples."""
        from isnet_jax.input import pipeline  # needs TensorFlow, which the network does not

        plan = self._data.eval_plan()[0] if plan is None else plan
        replicated = jax.device_put(variables, sharding.replicated(self._mesh))
        with pipeline.eval_batches(self._data.evaluation, self._data.config, plan, self._rows) as batches:
            return evaluate(self._step, replicated, batches, plan, self._mesh, on_batch)

    @property
    def num_compilations(self) -> int:
        """Programs compiled so far."""
        return self._step._cache_size()
