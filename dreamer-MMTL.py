"""Trains on one task with reward models of others as inputs of its own.

Meta-model transfer (Sasso et al. 2023):

python dreamer-MMTL.py --task1 HopperBulletEnv-v0 --n_meta 2 \\
    --meta1 HalfCheetahBulletEnv-v0 --meta2 AntBulletEnv-v0 \\
    --batch_length 50 --envs 1 --steps 1e6 --logdir './logdir/mmtl-hopper/'

The multi-task agent's encoder and decoder are taken over and frozen, so that
all agents trained on them see alike; with --freeze_decoder False the decoder is
taken over and then trained, with --decoder none it learns from scratch. Before
the first update a line says how well they draw the target. The reward model is
a dense network on [features, r̂_1 … r̂_N], where r̂_i is the prediction of
another task's frozen reward model for the same features. Everything else
learns from scratch.

With --n_meta 0 the reward model is the ordinary one: so are the agents trained
whose reward models serve as sources. export.py makes the files: encoder.pkl
and decoder.pkl, looked for in the log directory and the one above it, and
./stored_meta/HalfCheetahBulletEnv-v0.pkl or just cheetah.pkl.
"""

from common import flags, options

if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(options.meta_model, __doc__)

import pathlib

from analysis import forecast
from common import layers, terminal
from data import saving
import dreamer
from runs import devices, loop
import transfer

define_config = options.meta_model


def tasks(config):
  given = len(transfer.numbered(config, 'meta'))
  if given != config.n_meta:
    raise terminal.UserError(
        f'--n_meta {config.n_meta} does not fit the sources given, {given}: '
        'name each with --meta1, --meta2 and so on.')
  return transfer.tasks(config)


class MetaModel(dreamer.Dreamer):
  """An agent with a frozen autoencoder and frozen source reward models."""

  script = 'dreamer-MMTL.py'

  @classmethod
  def start(cls, config, action_dim):
    files, given = read_modules(config)
    frozen = [
        name for name in given if name != 'decoder' or config.freeze_decoder]
    agent = cls(config, action_dim, frozen, sources=[
        layers.hidden(arrays) for module, arrays in given.items()
        if module.startswith('reward/')])
    for module, arrays in given.items():
      own = layers.of_module(module, agent.variables)
      saving.check_shapes(own, arrays, files[module])
      saving.check_finite(arrays, files[module])
      for name, variable in own.items():
        variable.assign(arrays[name])
    lines = [
        f'{module} from {file}, ' +
        ('frozen' if module in frozen else 'copied, then trained')
        for module, file in files.items()]
    if 'decoder' not in files:
      found = 'taken over' if config.decoder == 'none' else 'found'
      lines.append(f'no decoder was {found}: it is trained')
    agent.records = {
        'decoder_used': (
            'fresh' if 'decoder' not in given else
            'frozen' if 'decoder' in frozen else 'copied'),
        **hashes(files, given)}
    agent.report = transfer.report(
        '\n'.join(lines), {
            name: 'copy' if layers.module_of(name) in given else 'reset'
            for name in agent.variables}, agent.variables, agent.frozen)
    return agent.checked()

  @classmethod
  def from_checkpoint(cls, config, action_dim, checkpoint):
    before = checkpoint['config'].get('freeze_decoder', True)
    # Older versions did not save what was done with the decoder.
    used = checkpoint.get('records', {}).get(
        'decoder_used', 'fresh' if before else 'copied')
    if 'decoder' in checkpoint['frozen']:
      if not config.freeze_decoder:
        frozen = [name for name in checkpoint['frozen'] if name != 'decoder']
        checkpoint = dict(checkpoint, frozen=frozen, records={
            **checkpoint.get('records', {}), 'decoder_used': 'copied'})
    elif config.freeze_decoder and used == 'copied':
      raise terminal.UserError(
          'this run has trained its decoder, so that it cannot be frozen: '
          'continue with --freeze_decoder False, or start anew in another '
          '--logdir.')
    return super().from_checkpoint(config, action_dim, checkpoint)

  def coverage(self, directory):
    used = self.records.get('decoder_used', 'fresh')
    if used == 'fresh':  # An encoder alone draws no images.
      return None
    found = devices.alone(
        forecast.measure_autoencoder,
        {name: x.numpy() for name, x in self.variables.items()},
        self.config.cnn_act, directory)
    warnings = [
        f'{words} rank.py compares sources.' for words in forecast.coverage(
            found, 'the autoencoder', frozen=used == 'frozen')]
    return found, f'autoencoder: {forecast.line(found)}', warnings


def read_modules(config):
  """Files and arrays of the modules to take over, by module."""
  files = {
      f'reward/source{number}': transfer.find_reward(name)
      for number, name in enumerate(transfer.numbered(config, 'meta'), 1)}
  given = {
      module: read_reward(file, module, config)
      for module, file in files.items()}
  encoder = transfer.find_module('encoder', config)
  if not encoder:
    raise terminal.UserError(
        f'there is no encoder.pkl in {config.logdir} or above it: make it with '
        'export.py, or name a file with --encoder.')
  files['encoder'] = encoder
  given['encoder'] = transfer.read_module(encoder, 'encoder', config)
  decoder = find_decoder(encoder, config)
  if decoder:
    files['decoder'] = decoder
    given['decoder'] = transfer.read_module(decoder, 'decoder', config)
  return files, given


def hashes(files, given):
  """Hashes by flag, one for an encoder and a decoder of the same file."""
  found = {
      module.replace('reward/source', 'meta'): arrays
      for module, arrays in given.items()}
  if files.get('decoder') == files['encoder']:
    found['encoder'] = {**found['encoder'], **found.pop('decoder')}
  return transfer.hashes(found)


def find_decoder(encoder, config):
  """The file to take the decoder from, or None."""
  if config.decoder == 'none':
    return None
  found = transfer.find_module('decoder', config)
  if found:
    return found
  if transfer.has_module(encoder, 'decoder'):
    return encoder
  beside = pathlib.Path(config.encoder) / 'decoder.pkl'
  return beside if config.encoder and beside.exists() else None


def read_reward(file, module, config):
  """A reward model under the name it has as a source."""
  arrays = transfer.read_module(file, 'reward', config)
  if any(name.startswith('reward/source') for name in arrays):
    raise terminal.UserError(
        f'{file} has a reward model on others; a source is an ordinary one, '
        'as --n_meta 0 trains it.')
  return {
      name.replace('reward', module, 1): array
      for name, array in arrays.items()}


Agent = MetaModel


def main(argv):
  return loop.main(argv, __doc__, define_config, Agent, tasks)


if __name__ == '__main__':
  terminal.run(main)
