"""Draws what a model predicts of an episode that it does not see.

python3 look.py --from ./logdir/swingup/dreamer/0 --out ./strip.png

The model sees the first images and imagines the others from the actions alone.
Above are truth, prediction and error (grey is none), below the reward of the
same time steps. The episode is the newest of the run that has --length time
steps; where there are none, as beside a checkpoint alone, one is played.
"""

import pathlib

from common import flags


def define_config():
  config = flags.Config()
  define = config.define
  define('from', None, 'Log directory of the agent, or a checkpoint in either '
         'format.', type=pathlib.Path, metavar='PATH', required=True)
  define('episode', None, 'File of the episode. Default: the newest of the run '
         'that is long enough.', type=pathlib.Path, metavar='FILE')
  define('task', '', 'Task to play where there are no episodes; else the '
         "agent's first.")
  define('start', 0, 'First time step of the episode to show.', low=0)
  define('context', 5, 'Time steps that the model sees.', low=1)
  define('length', 50, 'Time steps to show, if the episode has as many.', low=2)
  define('seed', 0, "Seed of the model's samples.", low=0, high=2 ** 31 - 1)
  define('out', pathlib.Path('strip.png'), 'File to write, a .png or .pdf.')
  return config


if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(define_config, __doc__)

from matplotlib import figure as mpl_figure
import numpy as np

from analysis import agents, reading, style
from common import files, terminal
from common.backend import tf
from data import episodes
from data.logdir import Logdir
from runs import prediction
import transfer
import wrappers

COLUMNS = 15
ROWS = ('truth', 'prediction', 'error')
SEEN = '0.93'  # Grey behind what the model has seen.


def main(argv):
  config = define_config().command(argv, __doc__)
  source, out = getattr(config, 'from'), config.out
  if out.suffix not in ('.png', '.pdf'):
    raise terminal.UserError(f'--out {out} must end in .png or .pdf.')
  agent, tasks = agents.load(source)
  file, episode = find_episode(source, agent, tasks, config)
  episode = shown_part(file, episode, agent, config)
  tf.random.set_seed(config.seed)
  seen = predict(agent, episode, config.context)
  figure = draw(seen, config.context, config.start)
  with files.writing(out), style.applied():
    figure.savefig(out, dpi=300)
  terminal.say(
      f'{out} shows time steps {config.start} to '
      f'{config.start + len(seen["reward"]) - 1} of {file}')


def find_episode(source, agent, tasks, config):
  """Name and arrays of the episode to show."""
  if config.episode:
    return config.episode, episodes.load(config.episode)
  path = pathlib.Path(source)
  folder = Logdir(path if path.is_dir() else path.parent).episodes
  found = episodes.paths(folder) if folder.is_dir() else []
  if found:
    file = newest_long(found, config.start + config.length)
    return file, episodes.load(file)
  if not config.task and not tasks:
    raise terminal.UserError(
        f'there are no episodes in {folder}, and {source} does not say what '
        'the agent was trained on: name one with --episode, or a task to play '
        'with --task.')
  task = config.task or tasks[0]
  wrappers.check_task(task)
  terminal.say(f'there are no episodes in {folder}: one of {task} is played')
  episode, _ = next(agents.play(agent, task, config.seed))
  return f'the episode played, return {episode["reward"].sum():.2f}', episode


def newest_long(found, least):
  """The last of the episodes with `least` time steps, or else the longest."""
  def length(file):
    return int(episodes.NAME.fullmatch(file.name)['records'])
  long = [file for file in found if length(file) >= least]
  return long[-1] if long else max(reversed(found), key=length)


def shown_part(file, episode, agent, config):
  """Arrays of the time steps to show."""
  actions = episode['action'].shape[1]
  if actions != agent.action_dim:
    raise terminal.UserError(
        f'{file} has {actions} actions and the agent {agent.action_dim}: it is '
        'of another task.')
  if episode['image'].shape[1:] != (64, 64, 3):
    raise terminal.UserError(
        f'{file} has images {list(episode["image"].shape[1:])}, the agent sees '
        '[64, 64, 3].')
  keys = ('image', 'action', 'reward')
  shown = slice(config.start, config.start + config.length)
  episode = {key: episode[key][shown] for key in keys}
  if len(episode['reward']) <= config.context:
    raise terminal.UserError(
        f'{len(episode["reward"])} time steps of {file} from --start '
        f'{config.start} on leave nothing to predict after --context '
        f'{config.context}.')
  return episode


def predict(agent, episode, context):
  """Open-loop prediction of an episode.

  Args:
    agent: from `dreamer.load_agent`.
    episode: `image` [T, 64, 64, 3] uint8, `action` [T, A], `reward` [T].
    context: Time steps from which the state is inferred; the others are
      imagined from the actions, with samples of the model.

  Returns:
    `truth` and `prediction` [T, 64, 64, 3] in 0 to 1, `reward` [T] as the agent
    learns it, and `rewards`, {who predicts: [T]}.
  """
  data = agent.preprocess({
      key: tf.convert_to_tensor(value[None]) for key, value in episode.items()})
  feat = agent._dynamics.get_feat(prediction.open_loop(agent, data, context))
  return {
      'truth': data['image'][0].numpy() + 0.5,
      'prediction': np.clip(
          agent._decode(feat).mode()[0].numpy() + 0.5, 0, 1),
      'reward': data['reward'][0].numpy(),
      'rewards': {
          name: head(feat).mode()[0].numpy()
          for name, head in reward_heads(agent).items()}}


def reward_heads(agent):
  """The reward model and, where it rests on others, each of those."""
  heads = {'prediction': agent._reward}
  sources = getattr(agent._reward, 'sources', [])
  if sources:
    names = short_names(transfer.numbered(agent.config, 'meta'))
    heads.update({
        f'source {name}': head for name, head in zip(names, sources)})
  return heads


def short_names(paths):
  """As many different names, short ones if they can be."""
  for names in (
      [pathlib.Path(path).stem for path in paths],
      reading.without_common_parts(paths)):
    if len(set(names)) == len(names):
      return names
  return [f'{number} {name}' for number, name in enumerate(names, 1)]


# Drawing; lengths are in inches.

def draw(seen, context, start=0):
  """The figure of what `predict` returns, as wide as a page of two columns."""
  total = len(seen['reward'])
  every = -(-total // COLUMNS)
  shown = np.arange((total - 1) % every // 2, total, every)
  left, right, top, bottom, gap, height = 0.75, 0.1, 0.22, 0.42, 0.3, 1.2
  side = min((6.9 - left - right) / len(shown), 0.9)
  gap += 0.17 * (len(seen['rewards']) // 3)  # Further lines of the legend.
  width = left + side * len(shown) + right
  full = top + 3 * side + gap + height + bottom
  with style.applied():
    figure = mpl_figure.Figure((width, full))
    box = left / width, side * len(shown) / width
    strip = figure.add_axes(
        [box[0], 1 - (top + 3 * side) / full, box[1], 3 * side / full])
    curves = figure.add_axes([box[0], bottom / full, box[1], height / full])
    # The curves have the time axis of the strip: a column stands at the
    # middle of its picture.
    draw_strip(strip, seen, shown, context)
    draw_rewards(curves, seen, start, context)
    curves.set_xlim(start + shown[0] - every / 2, start + shown[-1] + every / 2)
    curves.set_xticks(start + shown)
  return figure


def draw_strip(axes, seen, shown, context):
  """Rows truth, prediction, error; columns the time steps `shown`."""
  rows = [seen[name][shown] for name in ROWS[:2]]
  rows.append((rows[1] - rows[0] + 1) / 2)
  count = len(shown)
  axes.imshow(
      np.concatenate([np.concatenate(row, 1) for row in rows]), vmin=0, vmax=1,
      extent=(0, count, 3, 0), aspect='auto')
  axes.hlines(range(4), 0, count, '0.85', linewidth=1, clip_on=False)
  axes.vlines(range(count + 1), 0, 3, '0.85', linewidth=1, clip_on=False)
  axes.set_yticks([0.5, 1.5, 2.5], ROWS)
  axes.set_xticks([])
  axes.tick_params(length=0)
  axes.grid(False)
  for spine in axes.spines.values():
    spine.set_visible(False)
  known = np.count_nonzero(shown < context)
  for begin, end, text in ((0, known, 'seen'), (known, count, 'imagined')):
    if begin == end:
      continue
    axes.hlines(
        -0.1, begin + 0.05, end - 0.05, '0.4', linewidth=0.8, clip_on=False)
    axes.text(
        (begin + end) / 2, -0.16, text, ha='center', va='bottom', fontsize=8)


def draw_rewards(axes, seen, start, context):
  """True reward and what each model predicts of it."""
  time = start + np.arange(len(seen['reward']))
  axes.axvspan(time[0] - 1e3, time[context] - 0.5, color=SEEN, zorder=0)
  axes.plot(time, seen['reward'], 'black', label='truth')
  looks = zip(style.PALETTES['contrast'], ['-'] + ['--'] * 10)
  for (name, values), (color, line) in zip(seen['rewards'].items(), looks):
    axes.plot(
        time, values, color=color, linestyle=line, label=name,
        linewidth=1.5 if line == '-' else 1)
  axes.set_xlabel('Time (decisions)')
  axes.set_ylabel('Reward')
  axes.legend(
      loc='lower left', bbox_to_anchor=(0, 1), ncols=3, fontsize=8,
      frameon=False, borderaxespad=0.2, handlelength=1.5, columnspacing=1.2)


if __name__ == '__main__':
  terminal.run(main)
