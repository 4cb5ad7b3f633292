"""Agents to look at: loading them, and playing episodes with them."""

import contextlib
import functools
import pathlib

import numpy as np

from common import terminal
from data import checkpoints
from data.logdir import Logdir
import dreamer
from runs import devices, driver, logs, settings, workers
import transfer
import wrappers


def load(path):
  """The agent of a log directory or checkpoint, and the tasks it learned.

  Old checkpoints name no tasks. Damaged files stay where they are.
  """
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
  if not file.exists() and not checkpoints.previous(file).exists():
    raise terminal.UserError(f'{path} holds no checkpoint ({file.name}).')
  data, file = checkpoints.newest(file)
  return file, data['script']


def play(agent, task, seed, size=None):
  """Plays episodes without exploration, one after another without end.

  Episodes do not depend on those that the agent played before.

  Args:
    agent: from `load`.
    task: name of a task whose actions the agent gives.
    seed: number that fixes episodes and actions.
    size: Height and width of the pictures that are taken of the first episode,
      or None for no pictures.

  Yields:
    A pair of an episode, `image` [T, 64, 64, 3], `action` [T, A] (all of the
    agent's, as in training), `reward` [T], `discount` [T], and its pictures
    [T, size, size, 3], `logs.FILM_FRAMES` at most, which are none after the first.

  Raises:
    UserError: The agent gives other actions than the task takes.
  """
  agent.config.update({'seed': seed, 'eval_noise': 0.0})
  agent.random.calls[False] = 0
  finished = []

  def policy(obs, reset, state):
    action, state = agent(obs, reset, state, training=False)
    return action.numpy(), state

  with contextlib.closing(make_env(agent, task)) as env:
    camera = Camera(env, size)
    steps = driver.Driver(
        [camera], [seed, 3], lambda _, episode: finished.append(episode),
        lambda error: terminal.warn(
            f'an episode failed and is played anew: {error}'))
    while True:
      steps.step(policy)
      if finished:
        # Before the episode is used, so that no other is filmed.
        pictures, camera.size = np.array(camera.frames), None
        camera.frames = []
        yield finished.pop(), pictures


def make_env(agent, task):
  """An environment that takes all actions of the agent, as in training.

  Of those that are more than the task's it passes on the first ones.
  """
  make = functools.partial(
      workers.make, 'none', task, **settings.environment(agent.config))
  with contextlib.ExitStack() as stack:
    env = make()
    stack.callback(env.close)
    if check_actions(agent, task, env.action_space) == agent.action_dim:
      stack.pop_all()  # Stays open.
      return env
  return make(action_dim=agent.action_dim)


class Camera:
  """An environment whose episodes are filmed, while `size` is not None.

  Of each it has the first `logs.FILM_FRAMES` pictures.
  """

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
      if self.size and len(self.frames) < logs.FILM_FRAMES:
        self.frames.append(self._env.render(self.size, self.size)())
      return result
    return keep


def check_actions(agent, task, space):
  """Number of the agent's actions that the task takes."""
  kinds = {True: 'discrete', False: 'continuous'}
  ours = agent.config.action_dist == 'onehot'
  if isinstance(space, wrappers.OneHot) != ours:
    raise terminal.UserError(
        f'{task} takes {kinds[not ours]} actions and the agent gives '
        f'{kinds[ours]} ones: name another --task.')
  needs, has = space.shape[0], agent.action_dim
  if needs > has:
    raise terminal.UserError(
        f'{task} takes {needs} actions and the agent gives {has}: name '
        'another --task.')
  return needs
