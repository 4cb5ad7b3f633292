"""Which run a log directory holds, and how it goes on."""

import platform
import uuid
import zlib

from common import files, terminal
from common.backend import tf
from data import checkpoints
from data.logdir import Logdir


class History:
  """A log directory as a run finds it: new, or with a run to go on with.

  The directory of a new run is not touched before `open`, that of a run that
  is continued is not changed before `begin`. The chief of a team reads and
  decides; the others follow.
  """

  def __init__(self, config, agent_class, team, stack):
    self.logdir = Logdir(config.logdir)
    self._config = config
    self._class = agent_class
    self._team = team
    self._stack = stack
    self._id = None
    self._records = {}
    self.new = team.chief_says(not begun(self.logdir))
    if not self.new:
      self._lock()

  def read(self):
    """The checkpoint to go on from, or None.

    Raises:
      UserError: The directory holds a run with other flags, or a checkpoint
        that this run has not written, or one of other machines; or machines
        were started with different flags.
    """
    self._compare_flags()
    saved = None
    if self._team.chief:
      values = {} if self.new else saved_config(self.logdir)
      self._check_run(values)
      if values and 'run' not in self.logdir.read_config():
        terminal.warn(
            f'{self.logdir.config} is lost or damaged: it is made again from '
            f'{self.logdir.checkpoint}.')
      self._check_flags(values)
      self._id = values.get('run') or uuid.uuid4().hex
      # Only the chief may put a damaged file aside; the others read after it.
      saved = self._checkpoint()
      if saved is not None:
        self._records = former_steps(
            values, self._config, learned=saved.get('updates', 0) > 0)
    self._share_id()
    if self._team.chief_says(saved is not None) and not self._team.chief:
      saved, _ = checkpoints.newest(self.logdir.checkpoint)
    if saved is not None:
      self._check_machines(saved)
    return saved

  def open(self):
    """Takes the directory of a new run."""
    self._team.wait()  # Until all have read what a new run starts from.
    if self.new:
      self._lock()
      if self._team.chief and begun(self.logdir):
        raise terminal.UserError(
            f'another run began in {self.logdir} at the same time: start this '
            'one again to continue it, or give it another --logdir.')

  def begin(self, agent, fresh):
    """Writes down what runs here, when all parts of the run are there.

    `fresh` says that there is no checkpoint yet.
    """
    if not self._team.chief:
      return
    if fresh:
      agent.begin(self.logdir.path)
    self.logdir.write_config(dict(
        script=self._class.script, run=self._id,
        python=platform.python_version(), tensorflow=tf.__version__,
        precision_used=agent.precision,  # What --precision auto came to.
        **agent.records,
        **self._records,
        **self._config.plain()))

  def save(self, agent, progress):
    """Writes the checkpoint; the one before stays beside it."""
    agent.save(
        self.logdir.checkpoint, keep=True, run=self._id,
        machines=self._team.size, progress=progress, **self._records)

  def save_worker(self, agent, progress):
    """Writes the part that a worker has for itself."""
    state = dict(agent.state(), variables={}, optimizers={})
    checkpoints.save(self.logdir.worker(self._team.index), {
        'format': checkpoints.CHECKPOINT, **state, 'run': self._id,
        'progress': progress})

  def read_worker(self, saved):
    """State that this worker saved with the chief's checkpoint, or None.

    It is not there after a kill between the two, and when a worker is new.
    One that is damaged is as one that is not there.
    """
    file = self.logdir.worker(self._team.index)
    mine = {}
    try:
      if file.exists():
        mine = checkpoints.load(file)
    except checkpoints.Damaged as error:
      terminal.warn(f'{error.problem}; this worker begins new episodes')
    same = all(mine.get(key) == saved[key] for key in ('run', 'updates'))
    return mine if same else None

  def _compare_flags(self):
    """Ends all workers if one has other flags than the chief."""
    # The two that are named say when workers wait for each other.
    flags = sorted(
        (name, value) for name, value in self._config.plain().items()
        if self._config.fixed(name) or name in ('steps', 'eval_every'))
    others = self._differing(f'{self._class.script} {flags}')
    if others:
      raise terminal.UserError(
          f'{others} of {self._team.size} machines have other flags than the '
          'first: start the same command on all of them.')

  def check_precision(self, agent):
    """Ends all workers if one computes in another precision than the chief.

    Their gradients are averaged. What `--precision auto` comes to depends on
    the machine.
    """
    others = self._differing(agent.precision)
    if others:
      raise terminal.UserError(
          f'{others} of {self._team.size} machines compute in another precision '
          f'than the first (here: {agent.precision}): give all of them the same, '
          'such as --precision 32.')

  def _differing(self, words):
    """Number of workers whose words are not those of the chief."""
    own = zlib.crc32(words.encode())
    chiefs, = self._team.sum(own if self._team.chief else 0)
    others, = self._team.sum(own != chiefs)
    return int(others)

  def _share_id(self):
    """Tells the chief's identity of the run to the other workers."""
    if self._team.size > 1:
      value = int(self._id, 16) if self._team.chief else 0
      # In parts that the sum of real numbers keeps exactly.
      parts = self._team.sum(*(
          value >> i & 0xffffffff for i in range(0, 128, 32)))
      self._id = f'{sum(int(x) << 32 * i for i, x in enumerate(parts)):032x}'

  def _lock(self):
    if self._team.chief:
      self._stack.enter_context(self.logdir.lock())

  def _check_run(self, saved):
    """Refuses a directory that only looks as if its run could go on.

    A run writes a checkpoint before its first episode, so one with episodes
    alone has lost it.
    """
    file = self.logdir.checkpoint
    if self.new or file.exists() or checkpoints.previous(file).exists():
      return
    if 'run' not in saved:
      if saved and 'script' not in saved:
        raise terminal.UserError(
            f'{self.logdir.config} is not of this program: move it away, or '
            'choose another --logdir.')
      return
    if not has_episodes(self.logdir):
      return
    if not self._config.allow_changes:
      raise terminal.UserError(
          f'{self.logdir} holds the episodes of a run, but no checkpoint '
          f'({file.name}): put it back, give --allow_changes True to learn '
          'anew from these episodes, or another --logdir.')
    terminal.warn(
        f'{file} is lost: an agent that has learned nothing goes on with the '
        'episodes.')

  def _check_flags(self, saved):
    if not saved or self._config.allow_changes:
      return
    changes = _changes(saved, self._config)
    if saved.get('script', self._class.script) != self._class.script:
      changes['script'] = saved['script'], self._class.script
    if not changes:
      return
    words = ', '.join(
        f'{name} was {old}, now {new}'
        for name, (old, new) in changes.items())
    presets = [
        f'--preset {name}' for name, config
        in self._config.other_presets().items() if not _changes(saved, config)]
    raise terminal.UserError(
        f'{self.logdir} holds a run with another configuration ({words}): '
        f'give it {" or ".join(presets) or "the same flags"} to continue it, '
        '--allow_changes True to continue it with these, or another --logdir '
        'to start anew.')

  def _check_machines(self, saved):
    """Refuses another number of machines: episodes belong to one of so many.

    Older versions did not save it.
    """
    size = self._team.size
    machines = saved.get('machines', size)
    if machines != size:
      raise terminal.UserError(
          f'{self.logdir} holds a run of {machines} '
          f'machine{"s" * (machines > 1)}, not {size}: start it on {machines}, '
          'with the same command, or give another --logdir to start anew.')

  def _checkpoint(self):
    """The checkpoint that this run saved last, or None; never another run's."""
    if self.new and self._class.takes_source:
      return None
    file = self.logdir.checkpoint
    saved = checkpoints.recover(file)
    if saved is None or saved.get('run') == self._id:
      return saved
    message = f'{file} was not written by this run. '
    own = checkpoints.previous(file)
    if own.exists() and checkpoints.load(own).get('run') == self._id:
      message += (
          f'To continue the run, put its own last one, {own.name}, back in '
          'place of it. ')
    raise terminal.UserError(
        message + 'To start from it, give dreamer-FTL.py a new --logdir.')


def _changes(saved, config):
  """Flags that a run must keep and would not: `{name: (saved, new)}`.

  A flag that is younger than the run had its default then.
  """
  return {
      name: (saved.get(name, config.default(name)), value)
      for name, value in config.plain().items()
      if config.fixed(name) and saved.get(name, config.default(name)) != value}


def former_steps(saved, config, learned):
  """A record of the `--steps` over which learning rates fell before.

  Empty for a run that has had the same steps all along since it first
  `learned`, or whose rates do not fall. Else another schedule has made the
  agent than its flags say.
  """
  former = str(saved.get('former_steps', '')).split()
  steps = saved.get('steps', config.steps)
  if learned and config.lr_end < 1 and steps != config.steps:
    former.append(f'{steps:g}')
  return dict(former_steps=' '.join(former)) if former else {}


def begun(logdir):
  """Whether a log directory holds a run, however little of it."""
  with files.writing(logdir):
    return logdir.config.exists() or has_episodes(logdir)


def has_episodes(logdir):
  """Whether a log directory has files of episodes."""
  return logdir.episodes.is_dir() and any(logdir.episodes.iterdir())


def saved_config(logdir):
  """Flags, script and identity of the run in a log directory.

  Those in its checkpoint if config.json is lost or damaged; empty if neither
  says anything.
  """
  values = logdir.read_config()
  if 'run' in values:
    return values
  try:
    saved, _ = checkpoints.newest(logdir.checkpoint)
  except terminal.UserError:
    return values
  if 'run' not in saved:
    return values
  return {**saved['config'], **{
      key: saved[key] for key in ('script', 'run', 'former_steps')
      if key in saved}}
