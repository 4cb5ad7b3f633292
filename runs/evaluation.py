"""Episodes without exploration, by which the progress of a run is judged."""

from runs import driver


class Evaluation:
  """Plays episodes of every task.

  They depend on the weights and the step alone, so that an evaluation that a
  signal cuts off can begin anew.
  """

  def __init__(self, agent, envs, tasks, config, signals, on_failure):
    self._agent = agent
    self._envs = envs
    self._tasks = tasks
    self._config = config
    self._signals = signals
    self._on_failure = on_failure
    # Environment step of the last evaluation that was finished.
    self.last = None

  def __call__(self, step):
    """`{task: episodes}`, or None if a signal came before the end."""
    done = {task: [] for task in self._tasks}
    names = list(done)
    self._agent.random.calls[False] = step
    collect = driver.Driver(
        self._envs, [self._config.seed, 1, step],
        lambda index, episode: done[names[index]].append(episode),
        self._on_failure)

    def policy(obs, reset, state):
      return self._agent(obs, reset, state, training=False)

    count = self._config.eval_episodes
    while any(len(episodes) < count for episodes in done.values()):
      collect.step(policy)
      if self._signals.stop:
        return None
    self.last = step
    return {task: episodes[:count] for task, episodes in done.items()}

  def state(self):
    return self.last

  def restore(self, state):
    self.last = state
