"""Steps environments with a policy and collects their episodes."""

import numpy as np

from common import terminal
from runs import workers


class Driver:
  """Steps environments side by side, one decision of each at a time.

  Every episode starts from a seed of its own, and an environment repeats under
  a seed and actions. So a stopped run need not save the state of simulators:
  it saves the actions since the last reset and takes them again.
  """

  def __init__(
      self, envs, seed, on_episode, on_failure=None, limit=None, short=0):
    """Args:
      envs: from `workers.make`.
      seed: list of numbers that the seeds of episodes are derived from.
      on_episode: called as `on_episode(index, episode)`, index of the
        environment and a dict of arrays `[records, ...]`.
      on_failure: called as `on_failure(error)` when an environment failed and
        its unfinished episode was dropped.
      limit: decisions after which short episodes are truncated; None has none.
      short: episodes of each environment that are short, the first ones; 0 for
        all.
    """
    self._envs = envs
    self._limit, self._short = limit, short
    self.seed = list(seed)
    self._on_episode = on_episode
    self._on_failure = on_failure
    self._begun = [0] * len(envs)
    self._open = [None] * len(envs)
    self._state = None

  @property
  def pending(self):
    """Decisions taken in episodes that are not finished."""
    return sum(len(records) - 1 for records in self._open if records)

  def step(self, policy):
    """One decision of every environment.

    `policy(obs, reset, state) -> actions, state` gets a dict of arrays
    `[N, ...]` and the bool `[N]` of environments that were just reset; its
    state is a tuple of arrays, or None to begin with.
    """
    reset = self._reset()
    records = [records[-1] for records in self._open]
    obs = {
        'image': np.stack([record['image'] for record in records]),
        'reward': np.array([record['reward'] for record in records])}
    actions, self._state = policy(obs, reset, self._state)
    actions = np.asarray(actions, np.float32)
    promises = [env.step(action) for env, action in zip(self._envs, actions)]
    for index, promise in enumerate(promises):
      try:
        record, ended = _record(actions[index], promise())
      except workers.EnvFailure as error:
        self._failed(index, error)
        continue
      self._open[index].append(record)
      if ended or self._too_long(index):
        self._finish(index)

  def state(self):
    """State that a restart needs to go on at the same decision."""
    return {
        'begun': list(self._begun),
        'open': [records and {
            'action': np.stack([r['action'] for r in records]),
            'reward': np.stack([r['reward'] for r in records]),
        } for records in self._open],
        'policy': self._state and tuple(map(np.asarray, self._state))}

  def restore(self, state, finished=()):
    """Takes the saved actions again; an episode that differs is dropped.

    `finished` has the actions of the episodes that were finished after the
    state was saved, none of damaged ones: those are not begun again.
    """
    if len(state['begun']) != len(self._envs):
      self._begun = [max(state['begun']) + len(finished)] * len(self._envs)
      return
    self._begun = list(state['begun'])
    self._state = state['policy']
    for index, saved in enumerate(state['open']):
      if saved is None or any(
          begins_with(actions, saved['action']) for actions in finished):
        # Every seed that a finished episode may have had is passed over; that
        # of an episode that was open had been counted.
        self._begun[index] += len(finished) - bool(saved)
        continue
      self._begun[index] -= 1
      try:
        self._open[index] = self._repeat(index, saved)
      except (workers.EnvFailure, TypeError) as error:
        terminal.warn(
            f'environment {index} did not repeat its unfinished episode '
            f'({error}): the episode is dropped.')

  def _repeat(self, index, saved):
    """Records of an unfinished episode, made again from its actions."""
    records = [self._first_record(index, self._begin(index)())]
    for action in saved['action'][1:]:
      record, ended = _record(action, self._envs[index].step(action)())
      records.append(record)
      if ended:
        raise workers.EnvFailure(
            f'it ended after {len(records) - 1} of '
            f'{len(saved["action"]) - 1} decisions')
    rewards = [record['reward'] for record in records]
    if not np.array_equal(rewards, saved['reward']):
      raise workers.EnvFailure('the rewards differ')
    return records

  def skip(self, count):
    """Passes over the seeds of `count` episodes of every environment."""
    self._begun = [begun + count for begun in self._begun]

  def _reset(self):
    """Begins an episode wherever none is open; says where."""
    reset = np.array([records is None for records in self._open])
    while any(records is None for records in self._open):
      promises = {
          index: self._begin(index)
          for index, records in enumerate(self._open) if records is None}
      for index, promise in promises.items():
        try:
          self._open[index] = [self._first_record(index, promise())]
        except workers.EnvFailure as error:
          self._failed(index, error)
    return reset

  def _begin(self, index):
    seed = np.random.default_rng([*self.seed, index, self._begun[index]])
    self._begun[index] += 1
    return self._envs[index].reset(int(seed.integers(2 ** 31 - 1)))

  def _too_long(self, index):
    """Whether the open episode of an environment is at the end of its limit.

    It follows from the number of the episode, so that a restart repeats it.
    """
    if self._limit is None or 0 < self._short < self._begun[index]:
      return False
    return len(self._open[index]) - 1 >= self._limit

  def _first_record(self, index, result):
    obs, _ = result
    size = self._envs[index].action_space.shape
    return {
        'image': obs['image'], 'action': np.zeros(size, np.float32),
        'reward': np.float32(0), 'discount': np.float32(1)}

  def _finish(self, index):
    records, self._open[index] = self._open[index], None
    self._on_episode(index, {
        key: np.stack([record[key] for record in records])
        for key in records[0]})

  def _failed(self, index, error):
    self._open[index] = None
    if self._on_failure:
      self._on_failure(error)


def _record(action, result):
  """A time step of an episode, and whether it is the last one."""
  obs, reward, terminated, truncated, info = result
  record = {
      'image': obs['image'], 'action': action, 'reward': np.float32(reward),
      'discount': np.float32(info.get('discount', 1 - float(terminated)))}
  return record, terminated or truncated


def begins_with(actions, beginning):
  """Whether an episode's actions [records, A] begin with those given."""
  return np.array_equal(actions[:len(beginning)], beginning)
