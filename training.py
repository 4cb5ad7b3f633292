"""The training loop that all entry scripts share.

Prefill, collect, train, evaluate, log, save, and stop so that the same command
continues.
"""

import contextlib
import json
import os
import pathlib
import platform
import signal
import time
import uuid

import numpy as np

import terminal
from backend import tf
import checkpoints
import driver
import logs
import replay
import tools
import workers
import wrappers

# Flags that may change when a run is continued; the others define the run.
FREE = {
    'logdir', 'preset', 'steps', 'eval_every', 'eval_episodes', 'log_every',
    'log_scalars', 'log_images', 'save_every', 'gpu_growth', 'threads',
    'precision', 'jit', 'parallel', 'replay_memory', 'allow_changes'}


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
  config = define_config()
  if '--help' in argv or '-h' in argv:
    print(config.help(usage))
    return 0
  config.parse(argv)
  # What follows from one flag for another stands here and nowhere else.
  if config.termination:
    config.pcont = True
  names = tasks(config) if tasks else [config.task] * config.envs
  for name in names:
    wrappers.check_task(name)
  set_up_tensorflow(config)
  with contextlib.ExitStack() as stack:
    return Run(config, agent_class, names, bool(tasks), stack).run()


def set_up_tensorflow(config):
  """Threads, memory and seed, before the first tensor is made."""
  for device in tf.config.list_physical_devices('GPU'):
    tf.config.experimental.set_memory_growth(device, config.gpu_growth)
  if config.threads:
    tf.config.threading.set_intra_op_parallelism_threads(config.threads)
    tf.config.threading.set_inter_op_parallelism_threads(config.threads)
  tf.random.set_seed(config.seed)


class Run:
  """One run in one log directory."""

  def __init__(self, config, agent_class, tasks, named, stack):
    self._config = config
    self._class = agent_class
    self._tasks = tasks
    self._named = named
    self._logdir = config.logdir
    self._checkpoint_file = config.logdir / 'variables.pkl'
    # Nothing is written before all of this has succeeded.
    self._id = self._own_id()
    self._envs = self._make_envs(tasks, stack)
    self._test_envs = self._make_envs(list(dict.fromkeys(tasks)), stack)
    self._action_dim = self._envs[0].action_space.shape[0]
    self._match_actions()
    make_directory(self._logdir)
    stack.enter_context(replay.lock(self._logdir))
    self._signals = stack.enter_context(Signals())
    self._agent, saved = self._make_agent()
    self._save_config()
    self._replay = self._make_replay(stack)
    self._logger = stack.enter_context(
        contextlib.closing(logs.Logger(self._logdir)))
    self._driver = driver.Driver(
        self._envs, [config.seed, 0], self._train_episode, self._env_failed)
    self._clocks = {
        'train': tools.Every(config.train_every),
        'log': tools.Every(config.log_every),
        'eval': tools.Every(config.eval_every)}
    self._means = tools.Means()
    self._updates_due = 0
    self._evaluations = 0
    self._evaluated = None
    self._seconds = 0.0
    self._returns = {}
    self._status = None
    if saved:
      self._restore(saved)
    self._began = self._saved_at = time.monotonic()
    self._logged = (time.monotonic(), self.step)

  @property
  def step(self):
    """Environment steps so far, unfinished episodes included."""
    return self._replay.steps + (
        self._driver.pending * self._config.action_repeat)

  def run(self):
    """Trains to the end or to a signal; returns the exit status."""
    c = self._config
    self._announce()
    try:
      self._prefill()
      self._phase('train', c.steps)
      while self.step < c.steps and not self._signals.stop:
        self._agent.step = self.step
        if self._clocks['eval'](self.step):
          self._evaluate()
        if self._clocks['train'](self.step):
          self._updates_due += (
              c.train_steps if self._agent.updates else c.pretrain)
        self._train()
        if self._signals.stop:
          break
        if self._clocks['log'](self.step):
          self._log()
        self._driver.step(self._agent)
        self._status.update(self.step)
        if time.monotonic() - self._saved_at > c.save_every:
          self._save()
      if not self._signals.stop and self._evaluated != self.step:
        self._evaluate()
    finally:
      self._status and self._status.close()
    self._save()
    if self._signals.stop:
      terminal.say(
          f'stopped at step {self.step:,}; the same command continues.')
    return self._signals.status

  # Phases

  def _prefill(self):
    """Random actions until there are enough steps, and an episode to learn."""
    def short():
      return self.step < self._config.prefill or not all(
          self._replay.records(task)
          for task in (self._tasks if self._named else [None]))

    if short():
      self._phase('prefill', self._config.prefill)
    while short() and not self._signals.stop:
      self._driver.step(self._random_policy)
      self._status.update(self.step)

  def _random_policy(self, obs, reset, state):
    del reset, state
    rng = np.random.default_rng([self._config.seed, 2, self.step])
    shape = len(obs['image']), self._action_dim
    if self._config.action_dist == 'onehot':
      choice = rng.integers(0, shape[1], shape[0])
      return np.eye(shape[1], dtype=np.float32)[choice], None
    return rng.uniform(-1, 1, shape).astype(np.float32), None

  def _train(self):
    """The updates that are due; a signal leaves the rest for later."""
    if not self._updates_due:
      return
    with contextlib.closing(self._replay.batches(
        self._agent.updates, self._updates_due)) as batches:
      for batch in batches:
        self._means.add(self._agent.train(batch))
        self._updates_due -= 1
        self._status.update(self.step, self._note())
        if self._signals.stop:
          return

  def _evaluate(self):
    """Episodes of every task without exploration."""
    c = self._config
    calls = dict(self._agent.calls)
    tasks = list(dict.fromkeys(self._tasks))
    done = [[] for _ in tasks]
    collect = driver.Driver(
        self._test_envs, [c.seed, 1, self._evaluations],
        lambda index, episode: done[index].append(episode), self._env_failed)

    def policy(obs, reset, state):
      return self._agent(obs, reset, state, training=False)

    while any(len(episodes) < c.eval_episodes for episodes in done):
      collect.step(policy)
      if self._signals.stop:
        # Evaluates anew when the run goes on.
        self._agent.calls.update(calls)
        self._clocks['eval'].last -= c.eval_every
        return
    self._evaluations += 1
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
    self._logger.flush()

  # Reports

  def _train_episode(self, index, episode):
    if self._named:
      episode['task'] = np.full(len(episode['reward']), index, np.int32)
    self._replay.add(episode)
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
      values.update({
          f'{task}/{name}': value for name, value in values.items()})
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
    values['fps'] = (self.step - step) / (now - then)
    self._logger.scalars(self.step, values, 'agent')

  def _note(self):
    return ' '.join(
        f'{mode} return {value:.1f}' for mode, value in self._returns.items())

  def _phase(self, name, total):
    if self._status:
      self._status.close()
    self._status = terminal.Status(name, self.step, total)

  def _announce(self):
    c = self._config
    changed = {k: v for k, v in c.changed().items() if k != 'logdir'}
    terminal.say(f'{self._class.script} in {self._logdir}')
    terminal.say(' '.join(f'--{k} {v}' for k, v in changed.items()))
    if self._agent.updates:
      terminal.say(f'continues at step {self.step:,}')

  def _env_failed(self, error):
    terminal.warn(f'an environment failed and was restarted: {error}')
    self._means.add({'env_failures': 1.0})

  # Parts

  def _make_envs(self, tasks, stack):
    c = self._config
    settings = dict(
        action_repeat=c.action_repeat, time_limit=c.time_limit,
        termination=c.termination, render=c.render)
    envs = []
    for task in tasks:
      env = workers.make(c.parallel, task, **settings)
      stack.callback(env.close)
      envs.append(env)
    return envs

  def _match_actions(self):
    pass

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
        self._logdir / 'episodes', batch_size=c.batch_size,
        batch_length=c.batch_length, action_repeat=c.action_repeat,
        seed=c.seed, balance=c.dataset_balance,
        memory=int(c.replay_memory * 2 ** 30) or None,
        tasks=self._tasks if self._named else None)
    stack.callback(episodes.close)
    return episodes

  # Saving

  def _own_id(self):
    """The identity of the run in this log directory, or a new one."""
    path = self._logdir / 'config.json'
    if not path.exists():
      return uuid.uuid4().hex
    saved = read_config(path)
    mine = dict(self._config.plain(), script=self._class.script)
    changes = {
        name: (saved[name], value) for name, value in mine.items()
        if name not in FREE and saved.get(name, value) != value}
    if changes and not self._config.allow_changes:
      words = ', '.join(
          f'{name} was {old}, now {new}' for name, (old, new)
          in changes.items())
      raise terminal.UserError(
          f'{self._logdir} holds a run with another configuration ({words}): '
          'give it the same flags to continue it, --allow_changes True to '
          'continue it with these, or another --logdir to start anew.')
    return saved.get('run') or uuid.uuid4().hex

  def _save_config(self):
    values = dict(
        script=self._class.script, run=self._id, python=platform.python_version(),
        tensorflow=tf.__version__, **self._config.plain())
    temporary = self._logdir / '.config.json.tmp'
    temporary.write_text(json.dumps(values, indent=2) + '\n')
    temporary.replace(self._logdir / 'config.json')

  def _own_checkpoint(self):
    saved = checkpoints.recover(self._checkpoint_file)
    if saved is None or saved.get('run') == self._id:
      return saved
    raise terminal.UserError(
        f'{self._checkpoint_file} was not written by this run: use another '
        '--logdir, or dreamer-FTL.py to start from it.')

  def _save(self):
    """Writes everything that continuing needs."""
    began = time.monotonic()
    self._agent.save(
        self._checkpoint_file, keep=True, run=self._id, progress={
            'episodes': self._replay.episodes,
            'driver': tf.nest.map_structure(plain, self._driver.state()),
            'clocks': {k: v.last for k, v in self._clocks.items()},
            'means': self._means.state(),
            'updates_due': self._updates_due,
            'evaluations': self._evaluations,
            'evaluated': self._evaluated,
            'returns': {k: float(v) for k, v in self._returns.items()},
            'seconds': self._seconds + began - self._began})
    self._logger.flush()
    self._saved_at = time.monotonic()

  def _restore(self, saved):
    progress = saved['progress']
    for name, clock in self._clocks.items():
      clock.last = progress['clocks'][name]
    self._means.restore(progress['means'])
    self._updates_due = progress['updates_due']
    self._evaluations = progress['evaluations']
    self._evaluated = progress['evaluated']
    self._returns = dict(progress['returns'])
    self._seconds = progress['seconds']
    if self._replay.episodes == progress['episodes']:
      self._driver.restore(progress['driver'])
    else:
      # Episodes were finished after the checkpoint was written.
      self._driver.skip_to(self._replay.episodes)


def plain(value):
  return value.numpy() if tf.is_tensor(value) else value


def make_directory(path):
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise terminal.UserError(
        f"--logdir {path} cannot be made: {error.strerror}.") from None


def read_config(path):
  """The configuration that a run saved in its log directory."""
  try:
    return json.loads(pathlib.Path(path).read_text())
  except ValueError:
    raise terminal.UserError(
        f'{path} is damaged: remove it to continue with the flags you give.'
    ) from None


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
