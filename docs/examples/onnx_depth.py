"""Depth of a photo with a network that `mcd export` wrote; it needs onnxruntime, numpy and pillow alone.

python onnx_depth.py NET.onnx PHOTO OUT.npy|OUT.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image


def depth_of(session: onnxruntime.InferenceSession, photo: Image.Image) -> np.ndarray:
    """Depth [H, W] of an RGB photo, in the network's unit."""
    facts = session.get_modelmeta().custom_metadata_map
    if facts["preprocessing"] == "inside":
        return session.run(["depth"], {"image": np.asarray(photo)[None]})[0][0]
    height, width = (int(side) for side in facts["size"].split("x"))
    small = photo.resize((width, height), Image.Resampling.LANCZOS)
    image = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 255
    depth = session.run(["depth"], {"image": image})[0][0, 0]
    # It is the inverse depth that is interpolated.
    return 1 / np.asarray(Image.fromarray(1 / depth).resize(photo.size, Image.Resampling.BILINEAR))


if __name__ == "__main__":
    net, photo, out = sys.argv[1:]
    session = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"])
    depth = depth_of(session, Image.open(photo).convert("RGB"))
    if out.endswith(".npy"):
        np.save(out, depth)
    else:
        near = 1 / depth
        Image.fromarray((255 * (near - near.min()) / np.ptp(near)).astype(np.uint8)).save(out)
