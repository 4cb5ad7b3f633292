"""Writes what a run reports: metrics.jsonl, TensorBoard, animated GIFs."""

import io
import json
import math

import numpy as np
from PIL import Image

from backend import tf


class Logger:
  """Writes scalars, videos and text of one log directory."""

  def __init__(self, logdir):
    self._path = logdir / 'metrics.jsonl'
    self._writer = tf.summary.create_file_writer(
        str(logdir), max_queue=1000, flush_millis=20000)
    if self._path.exists() and not self._path.read_bytes().endswith(b'\n'):
      # A crash cut the last line; what follows must start on its own.
      if self._path.stat().st_size:
        with self._path.open('a') as file:
          file.write('\n')

  def scalars(self, step, values, group):
    """A line of metrics.jsonl, and curves `group/name` in TensorBoard."""
    line = {'step': int(step)}
    for name, value in values.items():
      value = value if isinstance(value, int) else float(value)
      # JSON knows no NaN; null keeps the line readable everywhere.
      line[name] = value if math.isfinite(value) else None
    with self._path.open('a') as file:
      file.write(json.dumps(line) + '\n')
    with self._writer.as_default(step=int(step)):
      for name, value in values.items():
        tf.summary.scalar(f'{group}/{name}', float(value))

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

  def text(self, tag, text, step=0):
    """Text in TensorBoard's text page; Markdown."""
    with self._writer.as_default(step=int(step)):
      tf.summary.text(tag, text)

  def flush(self):
    self._writer.flush()

  def close(self):
    self._writer.close()


def gif(frames, fps=20):
  """Encodes frames `[T, H, W, 3]` uint8 as an animated GIF, as bytes.

  All frames share one palette, made from a sample of them: a palette for each
  frame takes 25 times as long.
  """
  frames = np.asarray(frames)
  sample = frames[np.linspace(0, len(frames) - 1, 16).astype(int)]
  palette = Image.fromarray(sample.reshape(-1, *sample.shape[2:])).quantize(256)
  images = [
      Image.fromarray(frame).quantize(
          palette=palette, dither=Image.Dither.NONE) for frame in frames]
  buffer = io.BytesIO()
  images[0].save(
      buffer, 'GIF', save_all=True, append_images=images[1:],
      duration=round(1000 / fps), loop=0)
  return buffer.getvalue()
