"""Environments that act for a run, and the replay that keeps their episodes."""

import contextlib

import numpy as np

from common import terminal
from data import episodes
from data.logdir import Logdir
from runs import driver


class Collector:
  """Takes decisions, stores finished episodes and counts environment steps.

  The seeds of a run's episodes come from `[seed, 2, worker]`, with the number
  of the environment and of the episode behind. Other random numbers of a run
  come from sequences that begin otherwise or have four numbers: those of the
  agent from `[seed, training, worker, call]`, of a batch from
  `[seed, batch, worker]`, of evaluation episodes from `[seed, 1, step]` and
  the two that follow. Runs of layout 1 have seeds from `[seed, 2 * worker]`,
  which evaluation used too, and keep them.
  """

  layout = 2

  def __init__(self, envs, stored, config, tasks, worker, on_episode,
               on_failure):
    """Args:
      envs: from `workers.make`.
      stored: the `replay.Replay` to fill.
      config: flags of the run.
      tasks: names of the tasks, one for each environment; None where all have
        the same.
      worker: index of this process among those that train together.
      on_episode: called as `on_episode(index, episode)` when one is stored.
      on_failure: called as `on_failure(error)` when an environment failed.
    """
    self._replay = stored
    self._config = config
    self._tasks = tasks
    self._worker = worker
    self._on_episode = on_episode
    self._gone = 0
    self._driver = driver.Driver(
        envs, self._seed(self.layout), self._finished, on_failure,
        limit=_limit(config), short=config.collect_short)

  @property
  def step(self):
    """Environment steps so far, unfinished episodes included."""
    pending = self._driver.pending * self._config.action_repeat
    return self._gone + self._replay.steps + pending

  @property
  def can_learn(self):
    """Whether there is an episode of every task."""
    return all(self._replay.lengths(task) for task in self._tasks or [None])

  def decide(self, policy):
    """One decision of every environment."""
    self._driver.step(policy)

  def state(self):
    """State that a restart needs to go on at the same decision."""
    return {
        'episodes': self._replay.episodes, 'newest': self._replay.newest,
        'steps': self._replay.steps, 'gone': self._gone,
        'layout': self.layout, 'driver': self._driver.state()}

  def restore(self, state):
    """Goes on at a decision; `state` may be of an older version.

    Returns:
      Decisions taken since then in episodes that were finished; where there are
      several environments, those of all together.

    Raises:
      UserError: Episodes that the run had are missing, and --allow_changes is
        not given.
    """
    self.layout = state.get('layout', 1)
    self._driver.seed = self._seed(self.layout)
    self._miss(state)
    since = self._since(state)
    self._driver.restore(state['driver'], [_actions(path) for path in since])
    return _decisions(since, state['driver']['open'])

  def skip(self, count):
    """Passes over the seeds of `count` episodes and of those that are there.

    For a state that is lost; returns the decisions of those that are there.
    """
    self._driver.skip(self._replay.episodes + count)
    return self._replay.steps // self._config.action_repeat

  def _seed(self, layout):
    if layout == 1:
      return [self._config.seed, 2 * self._worker]
    return [self._config.seed, 2, self._worker]

  def _since(self, state):
    """Episodes that were finished after a state was saved."""
    if state.get('newest'):
      return self._replay.files(after=state['newest'])
    return self._replay.files()[state['episodes']:]

  def _miss(self, state):
    """Keeps the step of a run whose episodes were removed."""
    self._gone = state.get('gone', 0)
    since = self._since(state)
    missing = state['episodes'] - (self._replay.episodes - len(since))
    if missing <= 0:
      return
    message = (
        f'{Logdir(self._config.logdir).episodes} lacks {missing} of the '
        f'{state["episodes"]} episodes that the run had')
    if not self._config.allow_changes:
      raise terminal.UserError(
          f'{message}: put them back, or go on without them with '
          '--allow_changes True, which keeps the step.')
    repeat = self._config.action_repeat
    here = self._replay.steps - sum(
        (records_in(path) - 1) * repeat for path in since)
    self._gone += max(0, state['steps'] - here)
    terminal.warn(f'{message}: it goes on without them.')

  def _finished(self, index, episode):
    if self._tasks:
      episode['task'] = np.full(len(episode['reward']), index, np.int32)
    self._replay.add(episode)
    self._on_episode(index, episode)


def records_in(path):
  """Time steps of an episode, which its name says."""
  return int(episodes.NAME.fullmatch(path.name)['records'])


def _limit(config):
  """Decisions of a short episode, or None where none are."""
  if not config.collect_limit:
    return None
  return max(1, config.collect_limit // config.action_repeat)


def _decisions(since, begun):
  """Decisions that episodes have which were finished after a state was saved.

  A single environment had taken those of the episode `begun` then before.
  """
  taken = sum(records_in(path) - 1 for path in since)
  if since and len(begun) == 1 and begun[0]:
    taken -= len(begun[0]['action']) - 1
  return max(0, taken)


def _actions(path):
  """Actions of an episode; none where it is damaged."""
  with contextlib.suppress(terminal.UserError):
    return episodes.load(path)['action']
  return []
