"""Flags that follow from the tasks of a run."""

from common import options, terminal
from data.logdir import Logdir
from envs import bullet
from runs import resume
import wrappers

# Atari as published (Hafner et al. 2020, appendix; the flags are those of
# issues 33 and 48 of github.com/danijar/dreamer; no-ops and the end of a life
# are in its wrappers). The time limit is 30 minutes of play (Machado et al.
# 2018).
ATARI = dict(
    action_repeat=4, time_limit=108000, end_of_life=True, noops=30,
    clip_rewards='tanh', pcont=True, kl_scale=0.1, horizon=10,
    action_dist='onehot', expl='epsilon_greedy', expl_amount=0.4,
    expl_decay=1e5, expl_min=0.1)


def environment(config):
  """Settings of `wrappers.make_env` by name."""
  return {name: getattr(config, name) for name in options.ENVIRONMENT}


def settle(config, tasks):
  """Gives flags the values that the tasks ask for.

  Flags that were given by name or by a preset stay. A run that is continued
  keeps the values that it saved; runs of older versions have the defaults.

  Args:
    config: `flags.Config` of the run, changed in place.
    tasks: names of its tasks.

  Returns:
    Lines for the user about flags that changed.
  """
  logdir = Logdir(config.logdir)
  # A checkpoint in the directory of a new run is of its source.
  saved = resume.saved_config(logdir) if resume.begun(logdir) else {}
  return follow(config, tasks, saved)


def follow(config, tasks, saved=None):
  """Does what `settle` does, also for a program that has some of the flags.

  `saved` has the flags of a run that is continued.
  """
  lines = []
  for reason, flags in _implied(config, tasks):
    chosen = config.changed()
    flags = {
        name: value for name, value in flags.items()
        if name in config and not config.given(name) and name not in chosen}
    if saved:
      config.update({k: saved[k] for k in flags if k in saved})
    elif flags:
      config.update(flags)
      words = ' '.join(f'--{name} {value}' for name, value in flags.items())
      lines.append(f'{reason}: {words}')
  return lines


def check_strides(config):
  """Refuses strides that leave nothing of a sequence to learn from.

  Raises:
    terminal.UserError: names the flags.
  """
  # With pcont, imagination does not start from the last step.
  for name, steps in (
      ('decode_stride', config.batch_length),
      ('imag_stride', config.batch_length - config.pcont)):
    stride = getattr(config, name)
    if stride > steps:
      raise terminal.UserError(
          f'--{name} {stride} passes over all of a sequence (--batch_length '
          f'{config.batch_length}' + ', whose last step is left out with '
          '--pcont True' * (steps < config.batch_length) + '): it is at most '
          f'{steps}.')


def _implied(config, tasks):
  """Pairs of a reason and the flags that follow from it."""
  if all(task.startswith('atari_') for task in tasks):
    yield 'Atari as published', ATARI
    return
  ending = [
      task for task in dict.fromkeys(tasks)
      if wrappers.can_terminate(task, config.termination)]
  if ending:
    yield f'{", ".join(ending)} can terminate', {'pcont': True}
  limits = {task: bullet.limit(task) for task in dict.fromkeys(tasks)}
  short = {
      task: limit for task, limit in limits.items()
      if limit and limit < config.time_limit}
  if short and not config.given('time_limit'):
    words = ', '.join(f'{task} {limit}' for task, limit in short.items())
    yield f'registered time limits ({words} environment steps)', {
        'own_limit': True}


def match_actions(config, spaces):
  """Fits flags to discrete actions.

  Args:
    config: `flags.Config` of the run, changed in place.
    spaces: `{task: action space}`.

  Raises:
    terminal.UserError: for tasks with actions of two kinds, and for one-hot
      actions where they are continuous.
  """
  kinds = {
      isinstance(space, wrappers.OneHot): task
      for task, space in spaces.items()}
  if len(kinds) > 1:
    raise terminal.UserError(
        f'{kinds[True]} has discrete actions and {kinds[False]} continuous '
        'ones, and an agent has actions of one kind: train them apart.')
  if True in kinds:
    _replace(config, 'action_dist', 'tanh_normal', 'onehot', kinds[True])
    _replace(config, 'expl', 'additive_gaussian', 'epsilon_greedy', kinds[True])
  elif config.action_dist == 'onehot':
    raise terminal.UserError(
        f'--action_dist onehot is for discrete actions, {kinds[False]} has '
        'continuous ones: leave the flag out.')


def _replace(config, name, unfit, fit, task):
  if getattr(config, name) != unfit:
    return
  if config.given(name):
    terminal.warn(
        f'--{name} {unfit} is for continuous actions, {task} has discrete '
        f'ones: {fit} is taken in its place.')
  setattr(config, name, fit)


class TerminalWarning:
  """Warns once of an episode that terminates while `pcont` is off."""

  def __init__(self, config):
    self._due = not config.pcont

  def check(self, task, episode):
    """Looks at the last discount of a finished episode."""
    if self._due and episode['discount'][-1] == 0:
      self._due = False
      terminal.warn(
          f'{task} terminates and --pcont is off: the agent learns as if its '
          'episodes went on for ever. Start a new run with --pcont True.')
