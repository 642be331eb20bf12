"""configs/camvid.py with a network of a sixteenth of the parameters, for tests that run commands."""

import runpy
from pathlib import Path

from isnet_jax.models import isnet, resnet

isnet.HEAD_CHANNELS, resnet.PLANES = 128, 16  # as the fixture tiny_network

get_config = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "camvid.py"))["get_config"]
