"""Evaluation at every image's original size, on the device up to the counts of pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from isnet_jax import distributed, sharding
from isnet_jax.boundary import boundary_band, reach_in
from isnet_jax.inference import predict_classes, score_maps
from isnet_jax.losses import IGNORED
from isnet_jax.metrics import confusion_matrices, pixel_counts, scores
from isnet_jax.photometry import normalize

ON_DEVICE = "image", "label", "image_size", "label_size"  # of a batch


def eval_step(variables, batch, padded, *, model, settings, boundary, mesh=None):
    """Predictions and counts of a batch as `input_pipeline.eval_batches` makes it.

    `padded` says whether images are smaller than their canvas (False saves the masks); settings: keyword arguments of
    `inference.score_maps`. Returns "predictions" uint8 (B, Hl, Wl) at the original size; "confusion" int32 (K, K), of
    the batch; "counts" int32 (B, 3, K), of each image and class the pixels hit, predicted and true; with `boundary`,
    "boundary" (B, 3, K), the same within the bands along outlines. Pixels labelled 255 count nowhere.
    """
    size, labels = batch["image_size"] if padded else None, batch["label"]
    images = batch["image"] if mesh is None else sharding.split_images(batch["image"], mesh)
    maps = score_maps(model, variables, normalize(images), valid_size=size, **settings)
    predictions = predict_classes(maps, labels.shape[1:], batch["label_size"])
    confusion = confusion_matrices(predictions, labels, model.num_classes)  # (B, K, K)
    hits = jnp.diagonal(confusion, axis1=1, axis2=2)
    total, predicted, true = (confusion.sum(axis, dtype=jnp.int32) for axis in range(3))
    result = {"predictions": predictions, "confusion": total, "counts": jnp.stack([hits, predicted, true], axis=1)}
    if boundary:
        reach = reach_in(labels.shape[1:])
        near_predicted, near_true = (boundary_band(x, batch["label_size"], reach) for x in (predictions, labels))
        labelled = labels != IGNORED
        masks = (
            (labelled & near_predicted & near_true & (predictions == labels), labels),
            (labelled & near_predicted, predictions),
            (labelled & near_true, labels),
        )
        result["boundary"] = jnp.stack(
            [pixel_counts(jnp.where(mask, classes, IGNORED), model.num_classes) for mask, classes in masks], axis=1
        )
    return result


def make_eval_step(model, mesh, settings, boundary=False):
    """Jitted `eval_step(variables, batch, padded)` over the mesh: predictions stay split, counts are everywhere."""
    split, everywhere = sharding.split_batch(mesh), sharding.replicated(mesh)
    counts = {name: everywhere for name in ("confusion", "counts", *(("boundary",) if boundary else ()))}
    return jax.jit(
        partial(eval_step, model=model, settings=settings, boundary=boundary, mesh=mesh),
        static_argnums=2,
        in_shardings=(everywhere, split),
        out_shardings={"predictions": split, **counts},
    )


def evaluate(step, variables, batches, plan, mesh, on_batch=None):
    """`metrics.scores` over all batches, plus "confusion" int64 (K, K).

    plan: a sequence of `input_pipeline.EvalBatch`, and batches its batches, in its order. `on_batch(entry, batch,
    result)`, if given, sees the plan's entry, the NumPy batch and what `eval_step` returned, still on the device.
    Raises KeyboardInterrupt between batches if `distributed.stop_asked`.
    """
    total, pending = 0, None

    def finish(entry, batch, result):
        if on_batch:
            on_batch(entry, batch, result)
        return total + np.asarray(result["confusion"], np.int64)

    with tqdm.tqdm(
        total=sum(entry.num_images for entry in plan),
        desc="evaluating",
        leave=False,
        unit=" images",
        disable=None if distributed.is_first() else True,
    ) as bar:
        for entry, batch in zip(plan, batches, strict=True):
            if distributed.stop_asked():
                raise KeyboardInterrupt
            arrays = sharding.to_devices({name: batch[name] for name in ON_DEVICE}, mesh)
            result = step(variables, arrays, entry.padded)
            if pending:  # fetched a batch late, so that the device never waits
                total = finish(*pending)
                bar.update(pending[0].num_images)
            pending = entry, batch, result
        total = finish(*pending)
    return {**scores(total), "confusion": total}
