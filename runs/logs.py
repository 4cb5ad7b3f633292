"""Writes what a run reports: metrics.jsonl, TensorBoard, animated GIFs."""

import contextlib
import io
import json
import math
import os

import numpy as np
from PIL import Image
from tensorboard.plugins.hparams import api as hparams

from common import files, terminal
from common.backend import tf
from data.logdir import Logdir


# Frames of a film at most. An episode may have 27,000, which would take
# gigabytes to hold and to encode.
FILM_FRAMES = 2000

# Values of losses that no model can go below: -log N(x | x, 1) of all numbers
# of an image, and of a reward.
LOG_NORMAL = 0.5 * math.log(2 * math.pi)
IMAGE_CONSTANT = 64 * 64 * 3 * LOG_NORMAL

# Curves of TensorBoard that stand above all others there, since groups are in
# the order of their characters: `{name: (source, minus, description)}`.
OVERVIEW = {
    'test_return': (
        'test/return', 0, 'Mean return of evaluation episodes, without '
        'exploration: `sim/test/return`.'),
    'train_return': (
        'train/return', 0, 'Return of a finished training episode, with '
        'exploration: `sim/train/return`.'),
    'world_image_error': (
        'image_loss', IMAGE_CONSTANT, 'Half the squared error of a '
        'reconstructed image, summed over its numbers: `agent/image_loss` '
        f'minus the constant {IMAGE_CONSTANT:,.1f} of its Gaussian.'),
    'world_model_error': (
        'model_loss', IMAGE_CONSTANT + LOG_NORMAL, '`agent/model_loss` minus '
        f'the constants {IMAGE_CONSTANT:,.1f} of the image and '
        f'{LOG_NORMAL:.3f} of the reward.')}

DESCRIPTIONS = {
    'test/return': 'Mean return of evaluation episodes, without exploration.',
    'test/length': 'Mean length of evaluation episodes in environment steps.',
    'train/return': 'Return of a finished training episode.',
    'train/length': 'Length of a training episode in environment steps.',
    'episodes': 'Number of training episodes in replay.',
    'model_loss': 'Loss of the world model: divergence minus log-likelihoods.',
    'image_loss': 'Minus the log-likelihood of an image, summed over its '
        f'numbers. {IMAGE_CONSTANT:,.1f} of it is constant: see '
        '`Overview/world_image_error`.',
    'reward_loss': 'Minus the log-likelihood of a reward; '
        f'{LOG_NORMAL:.3f} of it is constant.',
    'pcont_loss': 'Minus the log-likelihood of going on, times --pcont_scale.',
    'div': 'Divergence of posterior from prior in nats; below --free_nats it '
        'is not penalised.',
    'div_first': 'Divergence of the first time step of sequences, before which '
        'nothing is known.',
    'div_above_free': 'Share of updates whose divergence is above the free nats '
        'and has a gradient.',
    'imag_reward': 'Mean reward that the model predicts of imagined states.',
    'imag_value': 'Mean value of imagined states.',
    'replay_reward': 'Mean reward of the batch; imagined rewards far above it '
        'are not there.',
    'replay_value': 'Mean value of the states of the batch.',
    'action_abs': 'Mean size of the action at the mean of the actor, 1 is its '
        'bound: a saturated actor has no gradient left.',
    'action_std': 'Mean standard deviation of the actor, before tanh.',
    'return_low': '5 percent point of imagined returns.',
    'return_high': '95 percent point of imagined returns.',
    **{f'reward_error_{level}': 'Mean absolute error of the reward model over '
       f'evaluation episodes, where the reward is in the {place} third of its '
       'range.' for level, place in (
           ('low', 'lowest'), ('middle', 'middle'), ('high', 'highest'))},
    'image_r2': "Share of the variance of the target's images that the "
        'autoencoder of the source draws, before the first update.',
    'image_error': 'Half the squared error of these images, summed over their '
        'numbers.',
    'value_loss': 'Minus the weighted log-likelihood of imagined returns.',
    'actor_loss': 'Minus the weighted mean of imagined λ-returns.',
    'prior_ent': 'Entropy of the state that is predicted without the image.',
    'post_ent': 'Entropy of the state that is inferred with the image.',
    'action_ent': 'Entropy of the actor; its share in exploration.',
    'expl_amount': 'Standard deviation or probability of exploration.',
    'env_failures': 'Environments that failed and were restarted so far.',
    'fps': 'Environment steps a second since the last line, evaluations and '
        'updates included.',
    **{f'{part}_grad_norm': f'Norm of the gradient of the {part}, before '
       'clipping.' for part in ('model', 'value', 'actor')},
    **{f'{part}_skipped': f'Updates of the {part} that were left out because '
       'numbers were not finite.' for part in ('model', 'value', 'actor')}}


class Logger:
  """Writes what one run reports into its log directory.

  Everything but the lines of metrics.jsonl goes to TensorBoard, where the part
  of a tag before the first slash makes the group.
  """

  def __init__(self, logdir):
    self._logdir = logdir
    self._path = Logdir(logdir).metrics
    with files.writing(self._path):
      repair(self._path)
    with self._writing():
      self._writer = tf.summary.create_file_writer(
          str(logdir), max_queue=1000, flush_millis=20000)

  def scalars(self, step, values, group, curves=None):
    """A line of metrics.jsonl, and curves `group/name` in TensorBoard.

    `curves` has the values for TensorBoard where they are not all.
    """
    values = {name: np.asarray(value).item() for name, value in values.items()}
    # JSON knows no NaN; null keeps the line readable everywhere.
    line = {
        name: value if math.isfinite(value) else None
        for name, value in values.items()}
    self._append(json.dumps({'step': int(step), **line}) + '\n')
    curves = values if curves is None else {k: values[k] for k in curves}
    with self._writing(), self._writer.as_default(step=int(step)):
      for name, value in curves.items():
        tf.summary.scalar(
            f'{group}/{name}', value, description=_description(name))
        for tag, shown, description in _overview(name, value):
          tf.summary.scalar(tag, shown, description=description)

  def video(self, step, tag, frames, fps=20):
    """An animated image of the first `FILM_FRAMES` frames `[T, H, W, 3]` uint8."""
    frames = frames[:FILM_FRAMES]
    summary = tf.compat.v1.Summary()
    image = summary.value.add(tag=tag).image
    image.height, image.width = frames.shape[1:3]
    image.colorspace = 3
    image.encoded_image_string = gif(frames, fps)
    with self._writing(), self._writer.as_default(step=int(step)):
      tf.summary.experimental.write_raw_pb(
          tf.compat.v1.Summary.SerializeToString(summary), int(step))

  def histograms(self, step, arrays):
    """Histograms of `{tag: array}`."""
    with self._writing(), self._writer.as_default(step=int(step)):
      for tag, array in arrays.items():
        tf.summary.histogram(tag, array)

  def text(self, step, tag, text):
    """A page of Markdown; see `table` and `verbatim`."""
    with self._writing(), self._writer.as_default(step=int(step)):
      tf.summary.text(tag, text)

  def hyperparameters(self, values):
    """The row of this run in TensorBoard's table of hyperparameters."""
    plain = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in values.items()}
    with self._writing(), self._writer.as_default(step=0):
      hparams.hparams(plain, trial_id=str(self._logdir))

  def flush(self):
    with self._writing():
      self._writer.flush()

  def close(self):
    # A run that ends for a full disk has said so.
    with contextlib.suppress(tf.errors.OpError):
      self._writer.close()

  def state(self):
    """Bytes of metrics.jsonl."""
    return size_of(self._path)

  def restore(self, state):
    """Drops what a run that was killed reported after it had saved `state`.

    It repeats its work since, and reports it again. The episodes of that time
    are on disk and stay, and so do their lines.
    """
    keep_lines(self._path, state, '"train/return"')

  def _append(self, line):
    with files.writing(self._path), self._path.open('a') as file:
      file.write(line)

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except tf.errors.OpError as error:
      reason = error.message.strip().splitlines()[-1]
      raise terminal.UserError(
          f'The events for TensorBoard in {self._logdir} cannot be written: '
          f'{reason}. The checkpoint is as it was saved last; make room, and '
          'the same command continues.') from error


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


def size_of(path):
  """Bytes of a file, 0 where there is none."""
  return path.stat().st_size if path.exists() else 0


def keep_lines(path, start, word):
  """Drops lines without `word` from byte `start` of a file on."""
  if size_of(path) <= start:
    return
  content = path.read_bytes()
  kept = [
      line for line in content[start:].splitlines(keepends=True)
      if word.encode() in line]
  with files.replacing(path) as file:
    file.write(content[:start] + b''.join(kept))


def _description(name):
  """The description of a metric, whichever task it is of."""
  return next((
      text for key, text in DESCRIPTIONS.items()
      if name == key or name.endswith(f'/{key}')), None)


def _overview(name, value):
  """Tags, values and descriptions of a metric in the overview."""
  for short, (source, minus, description) in OVERVIEW.items():
    if name == source:
      yield f'Overview/{short}', value - minus, description
    elif name.endswith(f'/{source}'):
      task = name.removesuffix(f'/{source}')
      yield f'Overview/{short}/{task}', value - minus, description


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
