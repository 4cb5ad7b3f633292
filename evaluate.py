"""Plays episodes with a trained agent, without noise, and films the first.

python3 evaluate.py --from ./logdir/swingup/dreamer/0 --video ./swingup.gif

Prints the return of every episode, and their mean ± standard deviation (the
root of the mean squared distance to the mean, ddof 0). Nothing but the film is
written.
"""

import pathlib

from common import flags


def define_config():
  config = flags.Config()
  define = config.define
  define('from', None, 'Log directory of the agent, or a checkpoint in either '
         'format.', type=pathlib.Path, metavar='PATH', required=True)
  define('episodes', 10, 'Episodes of each task.', low=1)
  define('task', '', 'Task to play in place of those that the agent was '
         'trained on.')
  define('video', None, 'File for a video of the first episode: a .gif, or an '
         '.mp4 where ffmpeg is installed. With several tasks, each gets a file '
         'with its name in it.', type=pathlib.Path, metavar='FILE')
  define('size', 256, 'Height and width of the video in pixels.', low=16,
         high=1024)
  define('seed', 0, 'Seed of the episodes and the actions.', low=0,
         high=2 ** 31 - 1)
  return config


if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(define_config, __doc__)

import itertools
import re
import shutil
import subprocess
import tempfile

import numpy as np

from analysis import agents
from common import terminal
from runs import devices, logs
import wrappers

FPS = 20


def main(argv):
  config = define_config().command(argv, __doc__)
  if config.task:
    wrappers.check_task(config.task)
  check_video(config.video)
  agent, tasks = agents.load(getattr(config, 'from'))
  tasks = [config.task] if config.task else tasks
  if not tasks:
    raise terminal.UserError(
        f'{getattr(config, "from")} does not say what the agent was trained '
        'on: name a task with --task.')
  terminal.say(devices.describe(agent))
  devices.check_gpu()
  for task in tasks:
    pictures = evaluate(agent, task, config)
    if config.video:
      save_video(video_file(config.video, task, len(tasks) > 1), pictures)


def evaluate(agent, task, config):
  """Plays and reports episodes; returns pictures `[T, size, size, 3]`.

  The pictures are the first ones of the first episode, or none without `video`.
  """
  returns, film = [], None
  played = agents.play(
      agent, task, config.seed, config.size if config.video else None)
  for episode, pictures in itertools.islice(played, config.episodes):
    if not returns:
      terminal.say(task)
      film = pictures
    returns.append(np.sum(episode['reward'], dtype=np.float64))
    length = (len(episode['reward']) - 1) * agent.config.action_repeat
    terminal.say(
        f'episode {len(returns):>3} · return {returns[-1]:9.2f} · '
        f'length {length}')
  terminal.say(
      f'return {np.mean(returns):.2f} ± {np.std(returns):.2f} (mean ± standard '
      f'deviation with ddof 0, episodes: {len(returns)})')
  return film


# Films.

def check_video(name):
  """Complains before anything is played."""
  if not name:
    return
  suffix = pathlib.Path(name).suffix
  if suffix not in ('.gif', '.mp4'):
    raise terminal.UserError(f'--video {name} must end in .gif or .mp4.')
  if suffix == '.mp4' and not shutil.which('ffmpeg'):
    raise terminal.UserError(
        f'--video {name} needs ffmpeg, which is not installed: install it, or '
        f'write {pathlib.Path(name).with_suffix(".gif")}.')
  folder = pathlib.Path(name).parent
  if not folder.is_dir():
    raise terminal.UserError(
        f'--video {name}: there is no directory {folder}; make it first.')


def video_file(name, task, several):
  path = pathlib.Path(name)
  # Tasks may be names of functions, module:function, or have a slash, as in
  # ALE/Pong-v5.
  task = re.sub('[/:]', '.', task)
  return path.with_name(
      f'{path.stem}-{task}{path.suffix}') if several else path


def save_video(path, frames):
  """Writes frames `[T, H, W, 3]` as the kind of file that the name says."""
  encode = {'.gif': logs.gif, '.mp4': mp4}[path.suffix]
  try:
    path.write_bytes(encode(frames, FPS))
  except OSError as error:
    raise terminal.UserError(
        f'{path} cannot be written: {error.strerror}.') from None
  part = f'the first {len(frames)}' if len(frames) == logs.FILM_FRAMES else len(frames)
  terminal.say(f'{path} shows the first episode, {part} pictures.')


def mp4(frames, fps):
  """Frames `[T, H, W, 3]` uint8 as the bytes of a film, by ffmpeg."""
  height, width = frames.shape[1:3]
  # A film is finished by going back to its beginning, so it must be a file.
  with tempfile.NamedTemporaryFile(suffix='.mp4') as file:
    done = subprocess.run([
        'ffmpeg', '-y', '-loglevel', 'error', '-f', 'rawvideo',
        '-pix_fmt', 'rgb24', '-s', f'{width}x{height}', '-r', str(fps),
        '-i', '-', '-pix_fmt', 'yuv420p',
        # Players need even sides.
        '-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2', file.name],
        input=frames.tobytes(), capture_output=True)
    if done.returncode:
      reason = ' '.join(done.stderr.decode(errors='replace').split())
      raise terminal.UserError(f'ffmpeg cannot make the film: {reason}')
    return pathlib.Path(file.name).read_bytes()


if __name__ == '__main__':
  terminal.run(main)
