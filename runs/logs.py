"""Writes what a run reports: metrics.jsonl, TensorBoard, animated GIFs."""

import io
import json
import math
import os

import numpy as np
from PIL import Image

from common import files
from common.backend import tf
from data.logdir import Logdir


class Logger:
  """Writes what one run reports into its log directory.

  Everything but the lines of metrics.jsonl goes to TensorBoard, where the part
  of a tag before the first slash makes the group.
  """

  def __init__(self, logdir):
    self._path = Logdir(logdir).metrics
    repair(self._path)
    self._writer = tf.summary.create_file_writer(
        str(logdir), max_queue=1000, flush_millis=20000)

  def scalars(self, step, values, group):
    """A line of metrics.jsonl, and curves `group/name` in TensorBoard."""
    values = {name: np.asarray(value).item() for name, value in values.items()}
    # JSON knows no NaN; null keeps the line readable everywhere.
    line = {
        name: value if math.isfinite(value) else None
        for name, value in values.items()}
    self._append(json.dumps({'step': int(step), **line}) + '\n')
    with self._writer.as_default(step=int(step)):
      for name, value in values.items():
        tf.summary.scalar(f'{group}/{name}', value)

  def video(self, step, tag, frames, fps=20):
    """An animated image; frames `[T, H, W, 3]` uint8."""
    summary = tf.compat.v1.Summary()
    image = summary.value.add(tag=tag).image
    image.height, image.width = frames.shape[1:3]
    image.colorspace = 3
    image.encoded_image_string = gif(frames, fps)
    with self._writer.as_default(step=int(step)):
      tf.summary.experimental.write_raw_pb(
          tf.compat.v1.Summary.SerializeToString(summary), int(step))

  def histograms(self, step, arrays):
    """Histograms of `{tag: array}`."""
    with self._writer.as_default(step=int(step)):
      for tag, array in arrays.items():
        tf.summary.histogram(tag, array)

  def text(self, step, tag, text):
    """A page of Markdown; see `table` and `verbatim`."""
    with self._writer.as_default(step=int(step)):
      tf.summary.text(tag, text)

  def flush(self):
    self._writer.flush()

  def close(self):
    self._writer.close()

  def _append(self, line):
    with files.writing(self._path), self._path.open('a') as file:
      file.write(line)


class NoLogger:
  """Writes nothing, in place of a `Logger`: only one worker of a run logs."""

  def __getattr__(self, name):
    return lambda *args, **kwargs: None


def repair(path):
  """Drops a last line of JSON that a crash cut off, so that others may follow.

  A whole line that only lacks its end gets it.
  """
  if not path.exists():
    return
  data = path.read_bytes()
  whole, newline, last = data.rpartition(b'\n')
  if not last:
    return
  try:
    json.loads(last)
    with path.open('ab') as file:
      file.write(b'\n')
  except ValueError:
    os.truncate(path, len(whole + newline))


def table(values):
  """A Markdown table of names and values."""
  # As code, since patterns are full of signs that Markdown would take.
  rows = [
      f'| {name} | ' + f'`{value}`' * (value != '') + ' |'
      for name, value in values.items()]
  return '\n'.join(['| name | value |', '| --- | --- |', *rows])


def verbatim(text):
  """Markdown that shows the text as it is."""
  return '\n'.join(f'    {line}' for line in text.splitlines())


def gif(frames, fps=20):
  """Encodes frames `[T, H, W, 3]` uint8 as an animated GIF, as bytes.

  A frame that equals the one before it only lengthens that one's time.
  """
  frames = np.ascontiguousarray(frames)
  # One palette for all frames, made from some of their pixels: a palette for
  # each frame takes 25 times as long, and longer where pictures are noisy.
  pixels = frames.reshape(1, -1, 3)
  sample = np.ascontiguousarray(pixels[:, ::1 + pixels.shape[1] // 2 ** 17])
  palette = Image.fromarray(sample).quantize(256)
  tall = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
  indices = tall.quantize(palette=palette, dither=Image.Dither.NONE)
  images = []
  for index in np.asarray(indices).reshape(frames.shape[:3]):
    images.append(Image.fromarray(index))
    images[-1].putpalette(palette.getpalette())
  buffer = io.BytesIO()
  # To optimize would give each frame a palette after all.
  images[0].save(
      buffer, 'GIF', save_all=True, append_images=images[1:], optimize=False,
      duration=round(1000 / fps), loop=0)
  return buffer.getvalue()
