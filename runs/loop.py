"""The training loop that all entry scripts share.

Prefill, collect, train, evaluate, log, save, and stop so that the same command
continues.
"""

import contextlib
import os
import platform
import signal
import time
import uuid

import numpy as np

from common import files, options, terminal
from common.backend import tf
from data import checkpoints, episodes, replay
from data.logdir import Logdir
from runs import devices, diagnosis, driver, logs, settings, workers
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
  """
  config = define_config().command(argv, usage)
  names = tasks(config) if tasks else [config.task] * config.envs
  for name in names:
    wrappers.check_task(name)
  options.place(config, agent_class.script, names)
  notes = settings.settle(config, names)
  devices.configure(config)
  team = devices.Team(config.batch_size)
  if team.chief:
    for note in notes:
      terminal.say(note)
  with team.together(), contextlib.ExitStack() as stack:
    return Run(config, agent_class, names, bool(tasks), team, stack).run()


class Run:
  """One run in one log directory."""

  def __init__(self, config, agent_class, tasks, named, team, stack):
    self._config = config
    self._class = agent_class
    self._tasks = tasks
    self._named = named
    self._team = team
    self._logdir = Logdir(config.logdir)
    self._signals = stack.enter_context(Signals())
    # A new run writes nothing before all of its parts are there.
    self._new = self._chief_says(not any(
        path.exists() for path in (self._logdir.config, self._logdir.episodes)))
    if not self._new:
      self._take_directory(stack)
    self._envs = self._make_envs(tasks, stack)
    self._test_envs = self._make_envs(list(dict.fromkeys(tasks)), stack)
    self._action_dim = self._envs[0].action_space.shape[0]
    settings.match_actions(config, {
        task: env.action_space for task, env in zip(tasks, self._envs)})
    self._id = self._own_id()
    self._agent, saved = self._make_agent()
    self._agent.random.worker = team.index
    team.wait()  # Until all have read what a new run starts from.
    if self._new:
      self._take_directory(stack)
    if not saved and team.chief:
      self._agent.begin(self._logdir.path)
    self._save_config()
    self._replay = self._make_replay(stack)
    self._logger = stack.enter_context(contextlib.closing(
        logs.Logger(self._logdir.path) if team.chief else logs.NoLogger()))
    self._driver = driver.Driver(
        self._envs, [config.seed, 2 * team.index], self._train_episode,
        self._env_failed)
    self._clocks = {
        'train': tools.Every(config.train_every),
        'log': tools.Every(config.log_every),
        'eval': tools.Every(config.eval_every)}
    self._means = tools.Means()
    self._terminal_warning = settings.TerminalWarning(config)
    self._updates_due = 0
    self._batch = None
    self._evaluated = None
    self._env_failures = 0
    self._seconds = 0.0
    self._returns = {}
    self._status = None
    if saved:
      self._restore(saved)
    self._began = self._saved_at = time.monotonic()
    self._agree()
    self._logged = (time.monotonic(), self.step)

  @property
  def step(self):
    """Environment steps so far, unfinished episodes included.

    Those of all workers, the others' as of the last agreement.
    """
    return self._own_step + self._others_step

  @property
  def _own_step(self):
    return self._replay.steps + (
        self._driver.pending * self._config.action_repeat)

  def _agree(self):
    """Makes all workers see the same step, and stop and save together."""
    own = self._own_step
    due = self._team.chief and (
        time.monotonic() - self._saved_at > self._config.save_every)
    total, stop, self._save_due = self._team.sum(
        own, self._signals.stop, due)
    self._others_step = int(total) - own
    self._stop = bool(stop)

  def _chief_says(self, answer):
    return bool(self._team.sum(self._team.chief and answer)[0])

  def run(self):
    """Trains to the end or to a signal; returns the exit status."""
    c = self._config
    self._announce()
    if self._chief_says(not self._logdir.checkpoint.exists()):
      # Before anything is learned: what was transferred is not read again.
      self._save()
    try:
      self._prefill()
      if not self._stop:
        self._phase('train', c.steps)
      while self.step < c.steps and not self._stop:
        self._agent.step = self.step
        if self._clocks['eval'](self.step) and self._evaluated != self.step:
          self._evaluate()
          self._agree()
          if self._stop:
            self._clocks['eval'].last -= c.eval_every  # It begins anew.
            break
        first = self._clocks['train'].last is None
        periods = self._clocks['train'](self.step)
        self._updates_due += c.pretrain if first else periods * c.train_steps
        self._train()
        if self._stop:
          break
        if self._clocks['log'](self.step):
          self._log()
        self._collect(self._agent)
      if not self._stop and self._evaluated != self.step:
        self._evaluate()
    finally:
      self._status and self._status.close()
    self._save()
    if self._stop or self._signals.stop:
      terminal.say(
          f'stopped at step {self.step:,}; the same command continues.')
    return self._signals.status

  # Phases

  def _collect(self, policy):
    """Decisions up to the next agreement."""
    for _ in range(self._team.stride):
      self._driver.step(policy)
      self._status.update(self.step)
    self._agree()
    self._save_on_time()

  def _prefill(self):
    """Random actions until there are enough steps, and an episode to learn."""
    def short():
      lacking = self.step < self._config.prefill or not all(
          self._replay.lengths(task)
          for task in (self._tasks if self._named else [None]))
      return self._team.sum(lacking)[0]

    if short():
      self._phase('prefill', self._config.prefill)
    while short() and not self._stop:
      self._collect(self._random_policy)

  def _random_policy(self, obs, reset, state):
    del reset, state
    return self._agent.random_actions(len(obs['image'])), None

  def _train(self):
    """The updates that are due; a signal leaves the rest for later."""
    if not self._updates_due:
      return
    with contextlib.closing(self._replay.batches(
        self._agent.updates, self._updates_due)) as batches:
      for self._batch in batches:
        self._means.add(self._agent.train(self._batch))
        self._updates_due -= 1
        self._status.update(self.step, self._note())
        self._agree()
        if self._stop:
          break
        self._save_on_time()
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
          f'{self._logdir.checkpoint} is from before.')

  def _evaluate(self):
    """Episodes of every task without exploration.

    They depend on the weights and the step alone, so that an evaluation that a
    signal cuts off can begin anew. The chief plays them, the others wait.
    """
    if not self._team.chief:
      self._evaluated = self.step
      return
    c = self._config
    self._agent.random.calls[False] = self.step
    tasks = list(dict.fromkeys(self._tasks))
    done = [[] for _ in tasks]
    collect = driver.Driver(
        self._test_envs, [c.seed, 1, self.step],
        lambda index, episode: done[index].append(episode), self._env_failed)

    def policy(obs, reset, state):
      return self._agent(obs, reset, state, training=False)

    while any(len(episodes) < c.eval_episodes for episodes in done):
      collect.step(policy)
      if self._signals.stop:
        return
    self._evaluated = self.step
    for task, episodes in zip(tasks, done):
      episodes = episodes[:c.eval_episodes]
      self._report('test', task, episodes)
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

  # Reports

  def _train_episode(self, index, episode):
    if self._named:
      episode['task'] = np.full(len(episode['reward']), index, np.int32)
    self._replay.add(episode)
    if self._team.chief:
      self._terminal_warning.check(self._tasks[index], episode)
    self._report('train', self._tasks[index], [episode])

  def _report(self, mode, task, episodes):
    """A line for finished episodes: their mean return and length."""
    score = np.mean([episode['reward'].sum() for episode in episodes])
    length = np.mean([len(episode['reward']) - 1 for episode in episodes])
    values = {
        f'{mode}/return': score,
        f'{mode}/length': length * self._config.action_repeat,
        'episodes': self._replay.episodes}
    if self._named:
      own = dict(values, episodes=len(self._replay.lengths(task)))
      values.update({f'{task}/{name}': value for name, value in own.items()})
    self._logger.scalars(self.step, values, 'sim')
    self._returns[mode] = score
    self._status.update(self.step, self._note())

  def _log(self):
    now = time.monotonic()
    then, step = self._logged
    self._logged = now, self.step
    if not self._config.log_scalars:
      return
    values = self._means.read()
    values['expl_amount'] = self._agent.expl_amount()
    values['env_failures'] = self._env_failures
    for name, count in self._agent.skipped.items():
      values[f'{name}_skipped'] = count
    values['fps'] = (self.step - step) / (now - then)
    self._logger.scalars(self.step, values, 'agent')

  def _note(self):
    return ' '.join(
        f'{mode} return {value:.1f}' for mode, value in self._returns.items())

  def _phase(self, name, total):
    if self._status:
      self._status.close()
    self._status = terminal.Status(
        name, self.step, total, quiet=not self._team.chief)

  def _announce(self):
    if not self._team.chief:
      return
    c = self._config
    changed = {k: v for k, v in c.changed().items() if k != 'logdir'}
    terminal.say(f'{self._class.script} in {self._logdir}' + (
        f', chief of {self._team.size} workers' * (self._team.size > 1)))
    terminal.say(' '.join(f'--{k} {v}' for k, v in changed.items()))
    self._logger.text(self.step, 'config', logs.table(c.plain()))
    if self.step:
      terminal.say(f'continues at step {self.step:,}')
    if self._agent.report:
      terminal.say(self._agent.report)
      files.write_text(self._logdir.transfer, self._agent.report + '\n')
      self._logger.text(
          self.step, 'transfer', logs.verbatim(self._agent.report))

  def _env_failed(self, error):
    terminal.warn(f'an environment failed and was restarted: {error}')
    self._env_failures += 1

  # Parts

  def _take_directory(self, stack):
    if self._team.chief:
      stack.enter_context(self._logdir.lock())

  def _make_envs(self, tasks, stack):
    """Environments with actions as wide as those of the widest task."""
    c = self._config

    def make(task, width=None):
      env = workers.make(
          c.parallel, task, action_dim=width, **settings.environment(c))
      stack.callback(env.close)
      return env

    envs = [make(task) for task in tasks]
    widest = max(env.action_space.shape[0] for env in envs)
    for index, task in enumerate(tasks):
      if envs[index].action_space.shape[0] < widest:
        envs[index].close()
        envs[index] = make(task, widest)
    return envs

  def _make_agent(self):
    """The agent of this run, and its checkpoint if there is one."""
    saved = self._own_checkpoint()
    if saved:
      agent = self._class.from_checkpoint(
          self._config, self._action_dim, saved)
    else:
      agent = self._class.start(self._config, self._action_dim)
    return agent, saved

  def _make_replay(self, stack):
    c = self._config
    episodes = replay.Replay(
        self._logdir.episodes, batch_size=c.batch_size // self._team.size,
        batch_length=c.batch_length, action_repeat=c.action_repeat,
        seed=c.seed, balance=c.dataset_balance,
        memory=int(c.replay_memory * 2 ** 30) or None,
        tasks=self._tasks if self._named else None,
        shard=(self._team.index, self._team.size))
    stack.callback(episodes.close)
    return episodes

  # Saving

  def _own_id(self):
    """The identity of the run in this log directory, or a new one."""
    if not self._team.chief:
      return None
    saved = self._logdir.read_config() or self._config_of_checkpoint()
    if not saved:
      return uuid.uuid4().hex
    mine = {
        name: value for name, value in self._config.plain().items()
        if self._config.fixed(name)}
    changes = {
        name: (saved[name], value)
        for name, value in dict(mine, script=self._class.script).items()
        if saved.get(name, value) != value}
    if changes and not self._config.allow_changes:
      words = ', '.join(
          f'{name} was {old}, now {new}' for name, (old, new)
          in changes.items())
      raise terminal.UserError(
          f'{self._logdir} holds a run with another configuration ({words}): '
          'give it the same flags to continue it, --allow_changes True to '
          'continue it with these, or another --logdir to start anew.')
    return saved.get('run') or uuid.uuid4().hex

  def _config_of_checkpoint(self):
    """The content of a config.json that was lost, as far as it is known."""
    if self._new:
      return {}
    saved = checkpoints.recover(self._logdir.checkpoint)
    if not saved or 'run' not in saved:
      return {}
    terminal.warn(
        f'{self._logdir.config} is lost or damaged: it is made again from '
        f'{self._logdir.checkpoint}.')
    return dict(saved['config'], script=saved['script'], run=saved['run'])

  def _save_config(self):
    if not self._team.chief:
      return
    self._logdir.write_config(dict(
        script=self._class.script, run=self._id,
        python=platform.python_version(), tensorflow=tf.__version__,
        **self._config.plain()))

  def _own_checkpoint(self):
    """What this run saved last, or None; never what another run saved."""
    if self._new and self._class.takes_source:
      return None
    # Only the chief may put a damaged file aside; the others read after it.
    saved = self._checked_checkpoint() if self._team.chief else None
    if self._chief_says(bool(saved)) and not self._team.chief:
      saved = checkpoints.load(self._logdir.checkpoint)
    return saved

  def _checked_checkpoint(self):
    saved = checkpoints.recover(self._logdir.checkpoint)
    if saved is None or saved.get('run') == self._id:
      return saved
    message = f'{self._logdir.checkpoint} was not written by this run. '
    own = checkpoints.previous(self._logdir.checkpoint)
    if own.exists():
      message += (
          f'To continue the run, put its own last one, {own.name}, back in '
          'place of it. ')
    raise terminal.UserError(
        message + 'To start from it, give dreamer-FTL.py a new --logdir.')

  def _save_on_time(self):
    if self._save_due:
      self._save()

  def _save(self):
    """Writes everything that continuing needs."""
    self._check_numbers()
    own = {
        'episodes': self._replay.episodes,
        'driver': self._driver.state()}
    if self._team.chief:
      self._agent.save(self._logdir.checkpoint, keep=True, run=self._id, progress={
          **own,
          'clocks': {k: v.last for k, v in self._clocks.items()},
          'means': self._means.state(),
          'metrics': size_of(self._logdir.metrics),
          'updates_due': self._updates_due,
          'evaluated': self._evaluated,
          'env_failures': self._env_failures,
          'returns': {k: float(v) for k, v in self._returns.items()},
          'seconds': self._seconds + time.monotonic() - self._began})
    else:
      state = dict(self._agent.state(), variables={}, optimizers={})
      checkpoints.save(self._logdir.worker(self._team.index), {
          'format': checkpoints.CHECKPOINT, **state, 'run': self._id,
          'progress': own})
    self._logger.flush()
    self._saved_at = time.monotonic()

  def _restore(self, saved):
    progress = saved['progress']
    for name, clock in self._clocks.items():
      clock.last = progress['clocks'][name]
    self._means.restore(progress['means'])
    self._updates_due = progress['updates_due']
    self._evaluated = progress['evaluated']
    if self._team.chief:
      self._env_failures = progress['env_failures']
      self._returns = dict(progress['returns'])
      self._seconds = progress['seconds']
      keep_lines(self._logdir.metrics, progress['metrics'], '"train/return"')
    else:
      progress = self._own_progress(saved)
    if progress:
      self._driver.restore(
          progress['driver'], self._actions_since(progress['episodes']))

  def _own_progress(self, saved):
    """What this worker saved when the chief saved the checkpoint, or None.

    It is not there after a kill between the two, and when a worker is new: then
    the worker goes on with episodes of its own that nothing has begun.
    """
    mine = {}
    if self._logdir.worker(self._team.index).exists():
      mine = checkpoints.load(self._logdir.worker(self._team.index))
    if [mine.get('run'), mine.get('updates')] != [
        saved['run'], saved['updates']]:
      self._driver.skip(self._replay.episodes + self._team.size)
      return None
    self._agent.random.restore(mine['calls'])
    return mine['progress']

  def _actions_since(self, count):
    """Actions of each episode that was finished after the first `count`."""
    actions = []
    for path in self._replay.files()[count:]:
      with contextlib.suppress(terminal.UserError):  # Damaged.
        actions.append(episodes.load(path)['action'])
    return actions


def size_of(path):
  """Bytes of a file, 0 where there is none."""
  return path.stat().st_size if path.exists() else 0


def keep_lines(path, start, word):
  """Drops lines without `word` from byte `start` of a file on.

  A run that was killed repeats its work since the checkpoint, and reports it
  again. The episodes of that time are on disk and stay, and so do their lines.
  """
  if size_of(path) <= start:
    return
  content = path.read_bytes()
  kept = [
      line for line in content[start:].splitlines(keepends=True)
      if word.encode() in line]
  with files.replacing(path) as file:
    file.write(content[:start] + b''.join(kept))


class Signals:
  """Turns signals into a wish to stop; a second signal stops at once."""

  statuses = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}

  def __init__(self):
    self.stop = False
    self.status = 0

  def __enter__(self):
    self._previous = {
        number: signal.signal(number, self._handle)
        for number in self.statuses}
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, _):
    if self.stop:
      os._exit(self.statuses[number] or 1)
    self.stop = True
    self.status = self.statuses[number]
