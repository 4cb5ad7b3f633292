"""Pictures of environments as the agent takes them."""

import numpy as np

SIZE = 64  # Height and width of the images that an agent sees.


def resize(pixels, height, width):
  """Image uint8 [height, width, 3] from one of any size, by box filter."""
  if pixels.shape[:2] == (height, width):
    return pixels.copy()
  from PIL import Image
  image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
  return np.array(image)
