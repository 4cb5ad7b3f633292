"""Plays episodes with a trained agent, without noise, and films the first.

python3 evaluate.py --from ./logdir/swingup/dreamer/0 --video ./swingup.gif

Prints the return of every episode, and their mean ± standard deviation. Nothing
but the film is written.
"""

import contextlib
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

from common import flags, terminal
from data import checkpoints
from data.logdir import Logdir
import dreamer
from runs import devices, driver, logs, settings, workers
import transfer
import wrappers

FPS = 20


def define_config():
  config = flags.Config()
  define = config.define
  define('from', '', 'Log directory, or checkpoint in either format.')
  define('episodes', 10, 'Episodes of each task.', low=1)
  define('task', '', 'Task to play in place of those that the agent was '
         'trained on.')
  define('video', '', 'File for a film of the first episode: a .gif, or an '
         '.mp4 where there is ffmpeg. Of several tasks, each gets a file with '
         'its name in it.')
  define('size', 256, 'Height and width of the film in pixels.', low=16,
         high=1024)
  define('seed', 0, 'Fixes the episodes and the actions.', low=0,
         high=2 ** 31 - 1)
  return config


def main(argv):
  config = define_config().command(argv, __doc__)
  if config.task:
    wrappers.check_task(config.task)
  check_video(config.video)
  agent, tasks = load(getattr(config, 'from'))
  agent.config.update({'seed': config.seed, 'eval_noise': 0.0})
  tasks = [config.task] if config.task else tasks
  if not tasks:
    raise terminal.UserError(
        f'{getattr(config, "from")} does not say what the agent was trained '
        'on: name a task with --task.')
  for task in tasks:
    film = play(agent, task, config)
    if config.video:
      save_video(video_file(config.video, task, len(tasks) > 1), film)


def load(path):
  """The agent of a log directory or checkpoint, and the tasks it learned.

  Old checkpoints name no tasks. Unlike a run that goes on, this leaves damaged
  files where they are.
  """
  if not path:
    raise terminal.UserError('--from is missing; see --help.')
  file, script = find_checkpoint(pathlib.Path(path))
  devices.configure(dreamer.define_config())
  agent = dreamer.load_agent(file)
  if script is None:
    return agent, []
  if 'task1' in agent.config:
    return agent, transfer.numbered(agent.config, 'task')
  return agent, [agent.config.task]


def find_checkpoint(path):
  """The newest complete checkpoint at a path, and the script it is of."""
  if not path.is_dir():
    return path, checkpoints.load(path)['script']
  file = Logdir(path).checkpoint
  files = [x for x in (file, checkpoints.previous(file)) if x.exists()]
  if not files:
    raise terminal.UserError(f'{path} holds no checkpoint ({file.name}).')
  try:
    return files[0], checkpoints.load(files[0])['script']
  except checkpoints.Damaged as error:
    if len(files) == 1:
      raise
    terminal.warn(f'{error.problem}; {files[1]} is taken in its place.')
  return files[1], checkpoints.load(files[1])['script']


def play(agent, task, config):
  """Plays and reports episodes; returns pictures `[T, size, size, 3]`.

  The pictures are those of the first episode, or none without `video`.
  """
  c = agent.config
  agent.random.calls[False] = 0  # What a task gives does not depend on others.
  returns, film = [], []

  def finished(_, episode):
    returns.append(np.sum(episode['reward'], dtype=np.float64))
    length = (len(episode['reward']) - 1) * c.action_repeat
    terminal.say(
        f'episode {len(returns):>3} · return {returns[-1]:9.2f} · '
        f'length {length}')
    if len(returns) == 1:
      film.extend(camera.frames)
      camera.size = None

  def policy(obs, reset, state):
    action, state = agent(obs, reset, state, training=False)
    return action.numpy()[:, :width], state

  with contextlib.closing(workers.make(
      'none', task, **settings.environment(c))) as env:
    width = check_actions(agent, task, env.action_space)
    terminal.say(task)
    camera = Camera(env, config.size if config.video else None)
    steps = driver.Driver([camera], [config.seed, 3], finished, failed)
    while len(returns) < config.episodes:
      steps.step(policy)
  terminal.say(
      f'return {np.mean(returns):.2f} ± {np.std(returns):.2f} (mean ± standard '
      f'deviation, episodes: {len(returns)})')
  return np.array(film)


class Camera:
  """An environment whose episodes are filmed, while `size` is not None."""

  def __init__(self, env, size):
    self.size = size
    self.frames = []
    self.action_space = env.action_space
    self._env = env

  def reset(self, seed):
    self.frames = []
    return self._filmed(self._env.reset(seed))

  def step(self, action):
    return self._filmed(self._env.step(action))

  def _filmed(self, promise):
    def keep():
      result = promise()
      if self.size:
        self.frames.append(self._env.render(self.size, self.size)())
      return result
    return keep


def check_actions(agent, task, space):
  """How many of the agent's actions the task takes."""
  needs, has = space.shape[0], agent.action_dim
  if needs > has:
    raise terminal.UserError(
        f'{task} takes {needs} actions and the agent gives {has}: name '
        'another --task.')
  kinds = {True: 'discrete', False: 'continuous'}
  ours = agent.config.action_dist == 'onehot'
  if isinstance(space, wrappers.OneHot) != ours:
    raise terminal.UserError(
        f'{task} takes {kinds[not ours]} actions and the agent gives '
        f'{kinds[ours]} ones: name another --task.')
  return needs


def failed(error):
  terminal.warn(f'an episode failed and is played anew: {error}')


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
  # The tasks of users may have the names of functions, module:function.
  task = task.replace(':', '.')
  return path.with_stem(f'{path.stem}-{task}') if several else path


def save_video(path, frames):
  """Writes frames `[T, H, W, 3]` as the kind of file that the name says."""
  encode = {'.gif': logs.gif, '.mp4': mp4}[path.suffix]
  try:
    path.write_bytes(encode(frames, FPS))
  except OSError as error:
    raise terminal.UserError(
        f'{path} cannot be written: {error.strerror}.') from None
  terminal.say(f'{path} shows the first episode, {len(frames)} pictures.')


def mp4(frames, fps):
  """Frames `[T, H, W, 3]` uint8 as the bytes of a film, by ffmpeg."""
  height, width = frames.shape[1:3]
  # A film is finished by going back to its beginning, so it must be a file.
  with tempfile.NamedTemporaryFile(suffix='.mp4') as file:
    done = subprocess.run([
        'ffmpeg', '-y', '-loglevel', 'error', '-f', 'rawvideo',
        '-pix_fmt', 'rgb24', '-s', f'{width}x{height}', '-r', str(fps),
        '-i', '-', '-pix_fmt', 'yuv420p',
        # What players know needs even sides.
        '-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2', file.name],
        input=frames.tobytes(), capture_output=True)
    if done.returncode:
      reason = ' '.join(done.stderr.decode(errors='replace').split())
      raise terminal.UserError(f'ffmpeg cannot make the film: {reason}')
    return pathlib.Path(file.name).read_bytes()


if __name__ == '__main__':
  terminal.run(main)
