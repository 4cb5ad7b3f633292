"""Pictures of environments as the agent takes them."""

import numpy as np

SIZE = 64  # Height and width of the images that an agent sees.


def rgb(pixels):
  """Image uint8 [height, width, 3] from other forms of the same picture.

  Taken are shapes [height, width], [height, width, 1] (gray) and
  [height, width, 4] (the opacity is left out), whole numbers from 0 to 255 and
  floats from 0 to 1.

  Raises:
    ValueError: for everything else; says what was given.
  """
  if not isinstance(pixels, np.ndarray):
    raise ValueError(type(pixels).__name__)
  if pixels.ndim == 2:
    pixels = pixels[:, :, None]
  if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
    raise ValueError(f'an array {list(pixels.shape)}')
  if pixels.dtype != np.uint8:
    pixels = _bytes(pixels)
  if pixels.shape[2] == 1:
    return np.repeat(pixels, 3, 2)
  return pixels[:, :, :3]


def _bytes(pixels):
  low, high = pixels.min(), pixels.max()
  given = f'{pixels.dtype} numbers from {low} to {high}'
  most = {'f': 1, 'i': 255, 'u': 255}.get(pixels.dtype.kind, -1)
  if not 0 <= low <= high <= most:
    raise ValueError(given)
  if most == 1:
    pixels = np.rint(255 * pixels)
  return pixels.astype(np.uint8)


def resize(pixels, height, width):
  """Image uint8 [height, width, 3] from one of any size, by box filter."""
  if pixels.shape[:2] == (height, width):
    return pixels.copy()
  from PIL import Image
  image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
  return np.array(image)
