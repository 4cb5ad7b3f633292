"""The training loop that all entry scripts share.

Prefill, collect, train, evaluate, log, save, and stop so that the same command
continues.
"""

import contextlib
import time

from common import options, terminal
from data import replay
from runs import (
    clocks, collector, devices, diagnosis, evaluation, logs, prediction,
    reports, resume, settings, signals, workers)
import tools
import wrappers


def main(argv, usage, define_config, agent_class, tasks=None):
  """Runs an entry script.

  Args:
    argv: the flags.
    usage: text that `--help` begins with.
    define_config: returns the script's `flags.Config`.
    agent_class: `dreamer.Dreamer` or a subclass.
    tasks: `config -> list of task names`, for scripts that name one
      environment each; their metrics are kept by task too.

  Returns:
    The exit status.
  """
  config = define_config().command(argv, usage)
  names = tasks(config) if tasks else [config.task] * config.envs
  for name in names:
    wrappers.check_task(name)
  options.place(config, agent_class.script, names)
  notes = settings.settle(config, names)
  settings.check_strides(config)
  with contextlib.ExitStack() as stack:
    devices.configure(config)
    team = devices.Team(config.batch_size)
    team.check_jit(config.jit)
    stack.enter_context(team.together())
    if team.chief:
      for note in notes:
        terminal.say(note)
    return Run(config, agent_class, names, bool(tasks), team, stack).run()


class Run:
  """One run in one log directory."""

  def __init__(self, config, agent_class, tasks, named, team, stack):
    """Makes all parts of the run; writes nothing before they are there.

    Args:
      config: flags of the run.
      agent_class: `dreamer.Dreamer` or a subclass.
      tasks: names of the tasks, one for each environment.
      named: whether metrics and episodes are kept by task.
      team: `devices.Team` of the machines that train together.
      stack: `contextlib.ExitStack` that closes what the run opens.
    """
    self._config = config
    self._team = team
    self._signals = stack.enter_context(signals.Signals())
    self._history = resume.History(config, agent_class, team, stack)

    kinds = list(dict.fromkeys(tasks))
    envs = make_envs(config, tasks, stack)
    test_envs = make_envs(config, kinds, stack)
    settings.match_actions(config, {
        task: env.action_space for task, env in zip(tasks, envs)})
    saved = self._history.read()
    self._agent = make_agent(
        agent_class, config, envs[0].action_space.shape[0], saved)
    self._agent.random.worker = team.index
    self._history.check_precision(self._agent)

    self._tasks = tasks
    self._named = tasks if named else None
    self._history.open()
    self._replay = make_replay(config, self._named, team, stack)
    self._collector = collector.Collector(
        envs, self._replay, config, self._named, team.index,
        self._finished, self._env_failed)
    self._evaluation = evaluation.Evaluation(
        self._agent, test_envs, kinds, config, self._signals,
        self._env_failed)
    self._reward_errors = prediction.RewardErrors(self._agent)
    self._terminal_warning = settings.TerminalWarning(config)
    self._clocks = clocks.Clocks(
        train=config.train_every, log=config.log_every, eval=config.eval_every)
    self._means = tools.Means()
    self._updates_due = clocks.Count()
    self._env_failures = clocks.Count()
    self._batch = None
    if saved:
      self._restore_collector(saved)
    elif not self._history.new:
      # The episodes that are there, without a checkpoint, do not come again.
      self._agent.random.calls[True] += self._collector.skip(team.size)

    self._logger = stack.enter_context(contextlib.closing(
        logs.Logger(config.logdir) if team.chief else logs.NoLogger()))
    self._reports = reports.Reports(
        self._logger, config, self._named, quiet=not team.chief)
    self._stopwatch = clocks.Stopwatch()
    # Everything that a checkpoint holds but the agent and the collector.
    self._shared = {
        'clocks': self._clocks, 'means': self._means,
        'updates_due': self._updates_due, 'evaluated': self._evaluation}
    self._chiefs = {
        'metrics': self._logger, 'env_failures': self._env_failures,
        'returns': self._reports, 'seconds': self._stopwatch}
    if saved:
      self._restore(saved)
    self._new = not saved
    self._saved_at = time.monotonic()
    self._agree()

  def run(self):
    """Trains to the end or to a signal; returns the exit status."""
    steps = self._config.steps
    self._begin()
    with contextlib.closing(self._reports):
      self._prefill()
      if not self._stop:
        self._reports.phase('train', self.step, steps)
      while self.step < steps and not self._stop:
        self._agent.step = self.step
        self._evaluate_when_due()
        self._train_when_due()
        if not self._stop:
          self._log_when_due()
          self._collect(self._agent)
      if not self._stop and self._evaluation.last != self.step:
        self._evaluate()
    self._save()
    self._reports.farewell(self.step, self._stop or self._signals.stop)
    return self._signals.status

  def _begin(self):
    self._history.begin(self._agent, self._new)
    self._reports.announce(
        self._agent, self._team.strategy, self.step, self._team.size)
    if self._new:
      # Before anything is learned: what was transferred is not read again.
      self._save()

  # Phases

  def _prefill(self):
    """Random actions until there are enough steps, and an episode to learn."""
    prefill = self._config.prefill

    def short():
      lacking = self.step < prefill or not self._collector.can_learn
      return self._team.sum(lacking)[0]

    if short():
      self._reports.phase('prefill', self.step, prefill)
    while short() and not self._stop:
      self._collect(self._random_policy)

  def _random_policy(self, obs, reset, state):
    del reset, state
    return self._agent.random_actions(len(obs['image'])), None

  def _collect(self, policy):
    """Decisions up to the next agreement."""
    for _ in range(self._team.stride):
      self._collector.decide(policy)
      self._reports.progress(self.step)
    self._agree()
    self._save_when_due()

  def _evaluate_when_due(self):
    if self._clocks.eval(self.step) and self._evaluation.last != self.step:
      self._evaluate()
      self._agree()
      if self._stop:
        self._clocks.eval.last -= self._config.eval_every  # It begins anew.

  def _evaluate(self):
    """Episodes without exploration; the chief plays, the others wait."""
    c = self._config
    if not self._team.chief:
      self._evaluation.last = self.step
      return
    played = self._evaluation(self.step)
    if played is None:  # A signal came.
      return
    for task, episodes in played.items():
      self._report('test', task, episodes, self._reward_errors(episodes))
      if c.log_images:
        self._logger.video(
            self.step, f'sim/test/{task}', episodes[0]['image'])
    if c.log_images:
      batch = self._replay.sample(self._agent.updates)
      self._logger.video(
          self.step, 'agent/openl', self._agent.open_loop(batch), fps=10)
    if c.log_histograms:
      self._logger.histograms(self.step, self._agent.variables)
    self._logger.flush()

  def _train_when_due(self):
    if self._stop:
      return
    first = self._clocks.train.last is None
    if first:
      self._report_coverage()
    periods = self._clocks.train(self.step)
    c = self._config
    self._updates_due.value += c.pretrain if first else periods * c.train_steps
    if first:
      # Updates that a kill misses are counted from a checkpoint on.
      self._save()
    self._train()

  def _train(self):
    """The updates that are due; a signal leaves the rest for later."""
    if not self._updates_due.value:
      return
    with contextlib.closing(self._replay.batches(
        self._agent.updates, self._updates_due.value)) as batches:
      for self._batch in batches:
        with self._reports.update(self.step):
          self._means.add(self._agent.train(self._batch))
        self._updates_due.value -= 1
        self._reports.progress(self.step)
        self._agree()
        if self._stop:
          break
        self._save_when_due()
    self._check_numbers()

  def _check_numbers(self):
    """Ends the run when bad numbers keep it from learning."""
    names = diagnosis.bad_variables(self._agent)
    if self._agent.stuck and not names:
      names = diagnosis.bad_numbers(self._agent, self._batch)
    if names:
      raise terminal.UserError(
          f'nothing is learned any more at step {self.step:,}, because numbers '
          f'are not finite. The first are: {", ".join(names[:5])}. Rewards may '
          'be too large (--clip_rewards tanh) or learning rates too high; '
          f'{self._history.logdir.checkpoint} is from before.')

  # Reports

  def _report_coverage(self):
    """Before the first update: how frozen parts fit what was collected."""
    if not self._team.chief:
      return
    try:
      found = self._agent.coverage(self._history.logdir.episodes)
    except terminal.UserError as error:
      terminal.warn(f'how well frozen parts fit is not known: {error}')
      return
    if found:
      self._reports.coverage(self.step, *found)

  def _log_when_due(self):
    if not self._clocks.log(self.step):
      return
    self._reports.metrics(self.step, lambda: {
        **self._means.read(),
        'expl_amount': self._agent.expl_amount(),
        'env_failures': self._env_failures.value,
        **{f'{name}_skipped': count
           for name, count in self._agent.skipped.items()}})

  def _finished(self, index, episode):
    if self._team.chief:
      self._terminal_warning.check(self._tasks[index], episode)
    self._report('train', self._tasks[index], [episode])

  def _report(self, mode, task, episodes, more=None):
    stored = len(self._replay.lengths(task)) if self._named else None
    self._reports.episodes(
        mode, self.step, task, episodes, self._replay.episodes, stored, more)

  def _env_failed(self, error):
    terminal.warn(f'an environment failed and was restarted: {error}')
    self._env_failures.value += 1

  # Steps, and keeping in step

  @property
  def step(self):
    """Environment steps so far, unfinished episodes included.

    Those of all workers, the others' as of the last agreement.
    """
    return self._collector.step + self._others_step

  def _agree(self):
    """Makes all workers see the same step, and stop and save together."""
    own = self._collector.step
    due = self._team.chief and (
        time.monotonic() - self._saved_at > self._config.save_every)
    total, stop, self._save_due = self._team.sum(own, self._signals.stop, due)
    self._others_step = int(total) - own
    self._stop = bool(stop)

  # Saving

  def _save_when_due(self):
    if self._save_due:
      self._save()

  def _save(self):
    """Writes everything that continuing needs."""
    self._check_numbers()
    progress = self._collector.state()
    if self._team.chief:
      for name, part in {**self._shared, **self._chiefs}.items():
        progress[name] = part.state()
      self._history.save(self._agent, progress)
    else:
      self._history.save_worker(self._agent, progress)
    self._logger.flush()
    self._saved_at = time.monotonic()

  def _restore(self, saved):
    parts = {**self._shared, **(self._chiefs if self._team.chief else {})}
    for name, part in parts.items():
      part.restore(saved['progress'][name])

  def _restore_collector(self, saved):
    own = saved if self._team.chief else self._history.read_worker(saved)
    if own is None:
      # A worker without a state begins with episodes that no worker had.
      passed = self._collector.skip(self._team.size)
    else:
      if not self._team.chief:
        self._agent.random.restore(own['calls'])
      # Older versions did not save the steps of the episodes.
      passed = self._collector.restore(
          {'steps': saved['step'], **own['progress']})
    # Noise of episodes that are stored must not come again.
    self._agent.random.calls[True] += passed


# Parts of a run


def make_envs(config, tasks, stack):
  """Environments with actions as wide as those of the widest task."""
  def make(task, width=None):
    env = workers.make(
        config.parallel, task, action_dim=width,
        **settings.environment(config))
    stack.callback(env.close)
    return env

  envs = [make(task) for task in tasks]
  widest = max(env.action_space.shape[0] for env in envs)
  for index, task in enumerate(tasks):
    if envs[index].action_space.shape[0] < widest:
      envs[index].close()
      envs[index] = make(task, widest)
  return envs


def make_agent(agent_class, config, action_dim, saved):
  """The agent of a checkpoint, or that of a new run."""
  if saved:
    return agent_class.from_checkpoint(config, action_dim, saved)
  return agent_class.start(config, action_dim)


def make_replay(config, tasks, team, stack):
  """This worker's share of the episodes in the log directory."""
  episodes = replay.Replay(
      resume.Logdir(config.logdir).episodes,
      batch_size=config.batch_size // team.size,
      batch_length=config.batch_length, action_repeat=config.action_repeat,
      seed=config.seed, balance=config.dataset_balance,
      memory=int(config.replay_memory * 2 ** 30) or None, tasks=tasks,
      shard=(team.index, team.size))
  stack.callback(episodes.close)
  return episodes
