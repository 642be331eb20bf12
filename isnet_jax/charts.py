"""Charts as inline SVG and HTML: curves, a histogram, bars of classes, confusion matrices."""

import math

import numpy as np
from PIL import Image

from isnet_jax.page import color, data_uri, delta, escape, percent, swatch, table

WRITTEN_OUT = 24  # classes of a matrix with numbers, at most; of more there is a picture
MOST_CONFUSED = 20  # classes of them that get their numbers
CURVE_POINTS = 400  # longer curves are averaged to so many
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420, 270, 48, 44, 12, 12
DASHES = "none", "7 3", "2 3", "9 3 2 3", "4 4", "1 2"
BORDERS = "solid", "dashed", "dotted", "dashed", "dashed", "dotted"


def ticks(low, high, count=5):
    """Round numbers that span low..high, about `count` of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (m * step) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _numbers(values):
    """Labels of ticks, in thousands where they are large."""
    large = max(map(abs, values)) >= 10000
    return [f"{value / 1000:g}k" if large and value else f"{value:g}" for value in values]


def _axes(low, high, ys, x_label, y_label, height=HEIGHT):
    """SVG of both axes, x from low to high, y over the ticks ys; and the functions that place x and y."""
    xs = [x for x in ticks(low, high) if low <= x <= high]

    def place_x(x):
        return LEFT + (x - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def place_y(y):
        return height - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (height - BOTTOM - TOP)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place_y(y):.1f}" y2="{place_y(y):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{place_y(y) + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in zip(ys, _numbers(ys))
    ]
    parts += [
        f'<text x="{place_x(x):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{text}</text>'
        for x, text in zip(xs, _numbers(xs or [0]))
    ]
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height - BOTTOM}" y2="{height - BOTTOM}"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}'
        "</text>"
        f'<text transform="translate(12 {(height - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts), place_x, place_y


def curves(title, series, x_label, y_label):
    """A figure of lines, both axes from 0; series: {name: [(x, y), ...]} of finite numbers, six at most."""
    thinned = {name: _thin(points) for name, points in series.items()}
    x = [x for points in thinned.values() for x, _ in points]
    y = [y for points in thinned.values() for _, y in points]
    axes, place_x, place_y = _axes(min(0, min(x)), max(x), ticks(min(0, min(y)), max(y)), x_label, y_label)
    lines, legend = [], []
    for i, (name, points) in enumerate(thinned.items()):
        path = "L".join(f"{place_x(x):.1f} {place_y(y):.1f}" for x, y in points)
        lines.append(f'<path class="curve" style="stroke:var(--s{i})" stroke-dasharray="{DASHES[i]}" d="M{path}"/>')
        if len(points) <= 30:
            lines += [
                f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3.2" style="fill:var(--s{i})"/>'
                for x, y in points
            ]
        legend.append(
            f'<li><span class="key" style="--c:var(--s{i});--d:{BORDERS[i]}"></span>{escape(name)}: '
            f"{points[-1][1]:.4g} at the end</li>"
        )
    thin = any(len(thinned[name]) < len(series[name]) for name in series)
    return (
        f'<figure><h3>{escape(title)}</h3><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}: {escape(", ".join(series))}, by {escape(x_label)}">{axes}{"".join(lines)}'
        f'</svg><ul class="legend">{"".join(legend)}</ul>'
        + ("<figcaption>Each point is the mean of several.</figcaption>" if thin else "")
        + "</figure>"
    )


def _thin(points):
    if len(points) <= CURVE_POINTS:
        return points
    return [tuple(part.mean(0).tolist()) for part in np.array_split(np.array(points, float), CURVE_POINTS)]


def histogram(title, values, x_label, y_label):
    """A figure of how many shares `values` (N,) fall in each twentieth, in percent."""
    counts, edges = np.histogram(100 * values, 20, (0, 100))
    height = 190
    axes, place_x, place_y = _axes(0, 100, ticks(0, int(counts.max()), 3), x_label, y_label, height)
    bars = "".join(
        f'<rect class="fill" x="{place_x(low) + 1:.1f}" width="{place_x(high) - place_x(low) - 2:.1f}" '
        f'y="{place_y(n):.1f}" height="{place_y(0) - place_y(n):.1f}"/>'
        for n, low, high in zip(counts, edges, edges[1:])
        if n
    )
    return (
        f'<figure><svg class="chart small" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{axes}{bars}</svg><figcaption>{escape(title)}</figcaption></figure>"
    )


def class_bars(names, palette, columns, share, other=None):
    """Tables of classes sorted by IoU, in two halves if there are many.

    columns: {head: (K,), NaN where undefined}, of which the first is IoU and gets the bar; share (K,) of the pixels;
    other: IoU (K,) of another evaluation, or None.
    """
    iou = next(iter(columns.values()))
    order = np.argsort(-iou, kind="stable")  # NaN last
    heads = [("class", ""), ('<span class="hidden">IoU as a bar</span>', "bar")]
    heads += [(escape(head), "n" if i == 0 else "n wide") for i, head in enumerate(columns)]
    heads[3:3] = [] if other is None else [("change", "n")]
    heads += [("share", "n")]
    rows = []
    for k in order:
        known = other is not None and np.isfinite(other[k])
        bar = (
            f'<span><i style="--v:{100 * np.nan_to_num(iou[k]):.2f}%;--c:{color(palette[k])}"></i>'
            + (f'<b style="--o:{100 * other[k]:.2f}%"></b>' if known else "")
            + "</span>"
        )
        cells = [percent(values[k]) for values in columns.values()]
        cells[1:1] = [] if other is None else [delta(iou[k], other[k])]
        number = f" <small>{k}</small>" if len(names) > WRITTEN_OUT else ""
        rows.append([swatch(palette[k]) + escape(names[k]) + number, bar, *cells, percent(share[k])])
    middle = -(-len(rows) // 2) if len(rows) > 30 else len(rows)
    return (
        '<div class="halves">'
        + "".join(table(heads, part, kind="classes") for part in (rows[:middle], rows[middle:]) if part)
        + "</div>"
    )


def confusions(confusion, count):
    """The most frequent confusions [(truth, prediction, pixels)], at most `count`, of (K, K) integers, rows truth."""
    wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [(int(t), int(p), int(wrong[t, p])) for t, p in zip(*np.unravel_index(order, wrong.shape)) if wrong[t, p]]


def most_confused(confusion, count):
    """The `count` classes that the most frequent confusions are between, in ascending order."""
    found = []
    for truth, prediction, _ in confusions(confusion, confusion.size):
        found += [k for k in (truth, prediction) if k not in found]
        if len(found) >= count:
            break
    return sorted(found[:count])


def matrix(confusion, names, classes):
    """The rows and columns `classes` of (K, K) integers as a table, in percent of all pixels of the row's class."""
    head = "".join(f'<th scope="col"><span title="{escape(names[k])}">{escape(names[k])}</span></th>' for k in classes)
    rows = []
    for t in classes:
        total = confusion[t].sum()
        cells = []
        for p in classes:
            share = 100 * confusion[t, p] / total if total else 0
            if share < 0.05:
                cells.append("<td></td>")
                continue
            strength = share if t == p else 10 * share**0.5  # errors are rarer: the root shows them sooner
            kind = ("hit" if t == p else "miss") + (" high" if strength >= 85 else " middle" if strength >= 60 else "")
            cells.append(
                f'<td class="{kind}" style="--v:{strength:.0f}" title="{escape(names[t])} read as '
                f'{escape(names[p])}: {share:.2f} %">{share:.0f}</td>'
            )
        rows.append(f'<tr><th scope="row"><span>{escape(names[t])}</span></th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def matrix_picture(confusion):
    """The whole of (K, K) integers as a picture with numbered axes: blue what is right, orange what is confused.

    Colours are as opaque as the share of the row's class is large, so that the page's ground shows through.
    """
    size = len(confusion)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    diagonal = np.eye(size, dtype=bool)
    levels = np.where(diagonal, share, np.sqrt(share))
    picture = Image.fromarray((np.round(levels * 127) + 128 * ~diagonal).astype(np.uint8)).convert("L")
    picture.putpalette([64, 132, 208] * 128 + [218, 98, 46] * 128)  # "L" becomes "P", the values stay
    picture.info["transparency"] = bytes(2 * i for i in range(128)) * 2
    scale, edge = 700 / size, 46
    labels = "".join(
        f'<text x="{edge + (i + 0.5) * scale:.1f}" y="{edge - 6}" text-anchor="middle">{i}</text>'
        f'<text x="{edge - 6}" y="{edge + (i + 0.5) * scale + 4:.1f}" text-anchor="end">{i}</text>'
        for i in range(0, size, 10 if size < 100 else 20)
    )
    return (
        f'<svg class="map chart" viewBox="0 0 {702 + edge} {702 + edge}" role="img" aria-label="Confusion matrix '
        f'of all {size} classes: rows truth, columns prediction">{labels}<rect class="axis" fill="none" x="{edge}" '
        f'y="{edge}" width="700" height="700"/><image x="{edge}" y="{edge}" width="700" height="700" '
        f'preserveAspectRatio="none" href="{data_uri(picture, "png")}"/></svg>'
    )
