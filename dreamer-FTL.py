"""Trains on one task from a share of what an agent learned on others.

Modular and fractional transfer (Sasso et al. 2023). First put the multi-task
agent's variables.pkl into the new log directory, or name it with --source,
which alone means --transfer True:

python dreamer-FTL.py --task1 HalfCheetahBulletEnv-v0 --batch_length 50 \\
    --envs 1 --steps 1e6 --transfer True --transfer_factor 0.2 \\
    --logdir './logdir/frac-cheetah/'

The first of three patterns that fits the name of a variable decides on it; all
optimizer states are fresh:

  --reset   keeps its fresh initial value   actions of img1, output of actor
  --scale   W ← W_fresh + ω · W_source      outputs of reward, value, pcont
  --copy    takes the source's value        all others

A name that no pattern fits is reset too. `dynamics/img1/kernel` is two parts,
`…/stoch` and `…/action`: rows of actions mean other joints in other tasks.
Variables that fit --freeze are not trained afterwards. With --task2 and so on
an agent of several tasks is trained on.
"""

from common import flags, options

if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(options.fractional, __doc__)

import numpy as np

from common import patterns, terminal
from data import checkpoints, saving
from data.logdir import Logdir
import dreamer
from runs import loop
import transfer

RULES = ('reset', 'scale', 'copy')
IMG1 = 'dynamics/img1/kernel'

define_config = options.fractional


def tasks(config):
  """The tasks to learn, usually one; --source alone turns --transfer on."""
  if config.source and not config.given('transfer'):
    config.transfer = True
  return transfer.tasks(config)


class FractionalTransfer(dreamer.Dreamer):
  """An agent that begins with a source's variables, by rule."""

  script = 'dreamer-FTL.py'
  takes_source = True

  @classmethod
  def start(cls, config, action_dim):
    path = find_source(config)
    if not config.transfer:
      return super().start(config, action_dim)
    source = transfer.read_agent(path, config)
    agent = cls(
        config, action_dim, rssm_act=saving.built(source)['rssm_act'])
    agent.records = transfer.hashes({'source': source['variables']})
    agent._transfer(path, source['variables'])
    return agent.checked()

  def _transfer(self, path, source):
    c = self.config
    fresh = parts({k: v.numpy() for k, v in self.variables.items()})
    for kind in RULES:
      if kind in c.changed():
        patterns.check(kind, getattr(c, kind), fresh)
    rules = {name: rule(name, c) for name in fresh}
    source = parts(source)
    used = {k: v for k, v in fresh.items() if rules[k] != 'reset'}
    saving.check_shapes(used, source, path)
    saving.check_finite({name: source[name] for name in used}, path)
    values = {
        'reset': lambda name: fresh[name],
        'scale': lambda name: (
            fresh[name] + np.float32(c.transfer_factor) * source[name]),
        'copy': lambda name: source[name]}
    self.assign(whole({name: values[rules[name]](name) for name in fresh}))
    own = Logdir(c.logdir)  # Its checkpoint is put aside when the run begins.
    self.report = transfer.report(
        f'Transfer from {own.source if path == own.checkpoint else path}',
        rules, fresh, lambda name: self.frozen(variable_of(name)),
        c.transfer_factor)

  def begin(self, logdir):
    """Puts what lies in the place of this run's checkpoint aside."""
    own = Logdir(logdir)
    if own.checkpoint.exists():
      own.checkpoint.rename(own.source)
      terminal.say(
          f'{own.checkpoint} is of another run: it is now {own.source.name}' +
          ('.' if self.config.transfer else
           ', and is not used (--transfer True would).'))


def find_source(config):
  """The file to transfer from; None only if nothing is transferred."""
  own = Logdir(config.logdir)
  files = [file for file in (own.checkpoint, own.source) if file.exists()]
  if config.source:
    named = checkpoints.file_in(config.source)
    if not any(named.exists() and named.samefile(file) for file in files):
      files.append(named)
  if len(files) > 1:
    raise terminal.UserError(
        f'{files[0]} and {files[1]} could both be the source: remove one.')
  if config.transfer and not files:
    raise terminal.UserError(
        f'--transfer True needs a source: put the variables.pkl of an agent '
        f'into {config.logdir}, or name one with --source.')
  return files[0] if files else None


def rule(name, config):
  """The rule for a variable: 'reset', 'scale' or 'copy'."""
  fitting = [k for k in RULES if patterns.fits(getattr(config, k), name)]
  return fitting[0] if fitting else 'reset'


def parts(values):
  """Cuts the kernel of img1 into the rows of stoch and of actions."""
  values = dict(values)
  if IMG1 in values and 'dynamics/img3/bias' in values:
    stoch = len(values['dynamics/img3/bias']) // 2
    kernel = values.pop(IMG1)
    values[f'{IMG1}/stoch'] = kernel[:stoch]
    values[f'{IMG1}/action'] = kernel[stoch:]
  return values


def variable_of(part):
  """The name of the variable that a name in `parts` belongs to."""
  return IMG1 if part.startswith(f'{IMG1}/') else part


def whole(values):
  """The inverse of `parts`."""
  values = dict(values)
  values[IMG1] = np.concatenate([
      values.pop(f'{IMG1}/{part}') for part in ('stoch', 'action')])
  return values


Agent = FractionalTransfer


def main(argv):
  return loop.main(argv, __doc__, define_config, Agent, tasks)


if __name__ == '__main__':
  terminal.run(main)
