"""Where an object touches the ground: a second opinion on its scale that needs no network.

The ground's depth at an object's foot is that of the object. At the networks' size a few rows of road are metres, so
the ground below the object is carried on to the foot: on a plane the inverse depth is linear in the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 0.08
"""So much ground below the foot is looked at, as a share of the image's height."""
_FEWEST = 3
_MIDDLE = 0.2
"""Of an object's width is left out at either side."""


def foot_depth(depth: NDArray[Any], ground: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float | None:
    """Depth of the ground at the lower end of an object.

    Args:
        depth: [H,W] of the scene, > 0; ground: [H,W]; mask: [H,W] of the object.

    Returns:
        It, or None where too little ground is seen below the object, as at the border of the image.
    """
    if not mask.any():
        return None
    bottom = int(np.flatnonzero(mask.any(1))[-1]) + 1
    columns = np.flatnonzero(mask.any(0))
    aside = round(_MIDDLE * (columns[-1] + 1 - columns[0]))
    middle = slice(columns[0] + aside, max(columns[-1] + 1 - aside, columns[0] + aside + 1))
    rows, inverse = [], []
    for row in range(bottom, min(bottom + max(round(_ROWS * len(depth)), _FEWEST + 1), len(depth))):
        seen = (ground & ~mask)[row, middle]
        if 2 * seen.sum() >= seen.size:
            rows.append(row)
            inverse.append(float(np.median(1 / depth[row, middle][seen])))
    if len(rows) < _FEWEST:
        return None
    slope, start = np.polyfit(np.array(rows) - (bottom - 0.5), inverse, 1)
    # Ground that comes nearer upwards is none.
    return float(1 / start) if start > 0 and slope > 0 else None


def contact_ratio(
    object_depth: NDArray[Any], depth: NDArray[Any], ground: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> float | None:
    """Median depth of the lower third of an object over that of the ground at its foot; None as above.

    Args:
        object_depth: [H,W] in the unit of ``depth``, where ``mask`` is.
    """
    foot = foot_depth(depth, ground, mask)
    if foot is None:
        return None
    rows = np.flatnonzero(mask.any(1))
    third = slice(rows[-1] + 1 - max((rows[-1] + 1 - rows[0]) // 3, 1), rows[-1] + 1)
    return float(np.median(object_depth[third][mask[third]])) / foot
