"""Flags of a command: defaults with meanings, types and ranges.

argparse splits the command line and lays out `--help`; types, ranges, presets
and near names are added here.
"""

import argparse
import copy
import dataclasses
import difflib
import math
import pathlib
import re
import sys
import textwrap

from common import terminal

_TRUE, _FALSE = ('true', 'yes', '1'), ('false', 'no', '0')
_KINDS = {bool: 'True or False', int: 'a whole number', float: 'a number'}
_MOST = 2 ** 53  # Whole numbers up to here are exact as float64 too.


def check(define_config, usage):
  """Answers `--help` and bad flags of this program, and ends it then.

  Scripts call this before they import TensorFlow, which takes seconds.
  """
  def main(argv):
    define_config().command(argv, usage)

  status = terminal.attempt(main)
  if status:
    sys.exit(status)


@dataclasses.dataclass
class Flag:
  """One flag; see `Config.define`."""

  name: str
  default: object
  meaning: str
  choices: list = None
  low: float = None
  high: float = None
  positive: bool = False
  regex: bool = False
  path: bool = False
  type: type = None
  nargs: object = None
  metavar: str = None
  required: bool = False
  fixed: bool = True
  method: bool = True

  def __post_init__(self):
    if isinstance(self.default, dict):
      self.type, self.nargs = str, '+'
    elif self.type is None:
      several = isinstance(self.default, (list, tuple))
      self.type = type(self.default[0] if several else self.default)
    if issubclass(self.type, pathlib.Path):
      self.type = pathlib.Path  # The default's own type is the system's.

  @property
  def several(self):
    """Whether the value is a list or, of pairs, a dict."""
    return self.nargs not in (None, '?')

  def read(self, words):
    """The value that a word, or a list of them, stands for."""
    # argparse takes words like -1e3 for flags; a blank in front tells them.
    if not self.several:
      return self.check(self._read(_bare(words)))
    words = [_bare(word) for word in words]
    if not isinstance(self.default, dict):
      return self.check([self._read(word) for word in words])
    if len(words) % 2:
      raise terminal.UserError(
          f"--{self.name} takes pairs: '{words[-1]}' stands alone.")
    return self.check(dict(zip(words[::2], words[1::2])))

  def _read(self, text):
    if self.type is pathlib.Path and not text:
      if self.default is None and not self.required:
        return None
      # As of a shell variable that is not set; not the working directory.
      raise terminal.UserError(f'--{self.name} needs a value.')
    try:
      if self.type is bool:
        return {
            **dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)
        }[text.lower()]
      if self.type is int:
        return int(text) if text.lstrip('+-').isdigit() else whole(float(text))
      return self.type(text)
    except (KeyError, ValueError):
      raise terminal.UserError(
          f"--{self.name} takes {_KINDS[self.type]}, not '{text}'.") from None

  def check(self, value):
    """The value, of the flag's type; what is not allowed raises `UserError`."""
    if value is None and self.default is None:
      return None
    if isinstance(self.default, dict) and isinstance(value, dict):
      return dict(value)
    if self.several and isinstance(value, (list, tuple)):
      return [self._check(part) for part in value]
    return self._check(value)

  def _check(self, value):
    if self.type is pathlib.Path and isinstance(value, (str, pathlib.Path)):
      value = self._checked_path(pathlib.Path(value))
    elif self.type is float and type(value) is int:
      value = float(value)
    elif self.type is int and type(value) is float and value.is_integer():
      value = int(value)
    elif self.type is str and self.choices and type(value) in (int, bool):
      value = str(value)  # As in `config.precision = 16`, `config.jit = True`.
    if not isinstance(value, self.type) or (
        isinstance(value, bool) and self.type is not bool):
      example = self.type.__name__ if self.default is None else self.default
      raise terminal.UserError(
          f'--{self.name} takes a value like {example!r}, not {value!r}.')
    if self.choices and value not in self.choices:
      near = difflib.get_close_matches(value, self.choices, 1)
      raise terminal.UserError(
          f"--{self.name} takes one of {', '.join(map(_show, self.choices))}; "
          f'not {value}.' + f' Did you mean {"".join(near)}?' * len(near))
    if self.path:
      path = self._checked_path(pathlib.Path(value))
      value = str(path) if value.startswith('~') else value
    if self.regex:
      self._check_pattern(value)
    if self.type in (int, float):
      self._check_range(value)
    return value

  def _check_range(self, value):
    if not math.isfinite(value):
      raise terminal.UserError(
          f'--{self.name} takes a finite number, not {value}.')
    high = _MOST if self.type is int and self.high is None else self.high
    if self.positive and value <= 0:
      raise terminal.UserError(
          f'--{self.name} must be more than 0, not {_show(value)}.')
    if self.low is not None and value < self.low:
      raise terminal.UserError(
          f'--{self.name} must be at least {_show(self.low)}, not '
          f'{_show(value)}.')
    if high is not None and value > high:
      raise terminal.UserError(
          f'--{self.name} must be at most {_show(high)}, not {_show(value)}.')

  def _check_pattern(self, value):
    try:
      re.compile(value)
    except re.error as error:
      raise terminal.UserError(
          f"--{self.name} '{value}' is not a regular expression: {error}."
      ) from None

  def _checked_path(self, path):
    """The path with ~ expanded and names that a file system takes."""
    try:
      path = path.expanduser()
    except RuntimeError:
      raise terminal.UserError(
          f'--{self.name} {path}: there is no such user; write the whole '
          'path.') from None
    try:
      str(path).encode()
    except UnicodeEncodeError:
      raise terminal.UserError(
          f'--{self.name} {ascii(str(path))}: the name is not in UTF-8, which '
          'TensorFlow needs: rename it.') from None
    for part in path.parts:
      if len(part.encode(errors='surrogateescape')) > 255:
        raise terminal.UserError(
            f"--{self.name}: the name '{part[:20]}…' has {len(part)} "
            'characters, and file systems take 255 bytes: shorten it.')
    return path

  def help(self):
    """Keyword arguments of `argparse.ArgumentParser.add_argument`."""
    text = self.meaning
    if self.choices:
      text += f" One of: {', '.join(map(_show, self.choices))}."
    if self.metavar:
      metavar = self.metavar
      if self.default not in (None, [], {}):
        text += f' Default: {_show(self.default)}.'
    elif isinstance(self.nargs, int):
      metavar = tuple(map(_show, self.default))
    else:
      metavar = _show(self.default)
    return dict(
        help=text.replace('%', '%%'), metavar=metavar, nargs=self.nargs,
        const='True' if self.nargs == '?' else None)


class Config:
  """The flags of a command and their values.

  Values are read and set as attributes; a name that was never defined is an
  error that shows near ones.
  """

  def __init__(self):
    vars(self).update(
        _values={}, _flags={}, _presets={}, _headings={}, _given=set())

  def heading(self, text):
    """Groups the flags that follow, for `--help`."""
    self._headings[len(self._flags)] = text

  def define(self, name, default, meaning, choices=None, **options):
    """Adds a flag, or replaces the one of that name.

    Args:
      name: of the flag, without dashes.
      default: value, whose type is that of the flag. A list takes several
        values, a dict takes pairs.
      meaning: sentences for `--help`.
      choices: list of the values that are allowed.
      **options: any of
        low, high: smallest and largest number that are allowed;
        positive: whether a number must be greater than 0;
        regex: whether a string must be a regular expression;
        path: whether a string may be a path, with ~ for the home directory;
        type: of the value or of its parts, where the default does not tell;
        nargs: of argparse: a number of values, '+', '*', or '?' for a flag
          that stands for True without a value;
        metavar: word for the value in `--help`, else the default;
        required: whether the flag must be given;
        fixed: whether a run must keep the value when it is continued (True);
        method: whether runs with other values are another method in plots
          (True).
    """
    self._flags[name] = Flag(name, default, meaning, choices, **options)
    self._values[name] = default

  def preset(self, name, **values):
    """Names a set of values that `--preset NAME` puts in place."""
    for key in values:
      self._known(key)
    self._presets[name] = values

  def preset_name(self, name):
    """Puts the values of the preset called `name` in place."""
    self._values['preset'] = self._flags['preset'].check(name)
    self.update(self._presets[name])

  def other_presets(self):
    """Copies with each of the other presets: `{name: Config}`.

    Flags that were given by name stay.
    """
    mine = self._values['preset']
    defaults = {key: self._flags[key].default for key in self._presets[mine]}
    others = {}
    for name, values in self._presets.items():
      if name != mine:
        others[name] = copy.deepcopy(self)
        others[name].update({
            key: value for key, value in {**defaults, **values}.items()
            if not self.given(key)})
    return others

  # Values

  def __getattr__(self, name):
    if name.startswith('_'):
      raise AttributeError(name)
    self._known(name)
    return self._values[name]

  def __setattr__(self, name, value):
    self._known(name)
    self._values[name] = self._flags[name].check(value)

  def __contains__(self, name):
    return name in self._values

  def update(self, values):
    """Sets several values, from a saved configuration for example."""
    for name, value in values.items():
      setattr(self, name, value)

  def plain(self):
    """All values as a dict that JSON and pickle can hold."""
    return {name: _plain(value) for name, value in self._values.items()}

  def changed(self):
    """The values that differ from the defaults."""
    return {
        name: value for name, value in self.plain().items()
        if value != self.default(name)}

  def words(self):
    """Words of a command line that gives these values; defaults are left out."""
    preset = self._presets.get(self._values.get('preset'), {})
    return [
        word for name, value in self.plain().items()
        if value != preset.get(name, self.default(name))
        for word in _words(name, value)]

  # The meaning of a flag to the rest of the program

  def given(self, name):
    """Whether a flag was given by name, not by default or by a preset."""
    self._known(name)
    return name in self._given

  def default(self, name):
    """The default of a flag, as `plain` gives values."""
    self._known(name)
    return _plain(self._flags[name].default)

  def fixed(self, name):
    """Whether a run must keep the value of a flag when it is continued."""
    self._known(name)
    return self._flags[name].fixed

  def method(self, name):
    """Whether runs with other values of a flag are another method in plots."""
    self._known(name)
    return self._flags[name].method

  # The command line

  def command(self, argv, usage):
    """Reads the flags of a program; `--help` prints the manual and ends it."""
    if '--help' in argv or '-h' in argv:
      print(self.help(usage))
      raise SystemExit
    return self.parse(argv)

  def parse(self, argv):
    """Reads `--name value` pairs; flags win over a preset given with them."""
    for word in argv:
      if word[:1] == '-' and word[1:].partition('=')[0] in self._flags:
        self._complain(word)
    found, rest = self._parser().parse_known_args(list(map(_guarded, argv)))
    if rest:
      self._complain(_bare(rest[0]))
    given = vars(found)
    if 'preset' in given:
      self.preset_name(given['preset'])
    for name, words in given.items():
      self._values[name] = self._flags[name].read(words)
    for flag in self._flags.values():
      if flag.required and flag.name not in given:
        raise terminal.UserError(f'--{flag.name} is missing; see --help.')
    self._given.update(given)
    return self

  def help(self, usage):
    """The manual: every flag, its default and its meaning, and the presets."""
    return self._parser(usage).format_help().strip().replace('\xa0', ' ')

  def _parser(self, usage=''):
    presets = []
    for name, values in self._presets.items():
      # A flag and its value stay on one line.
      words = ' '.join(f'--{k}\xa0{_show(v)}' for k, v in values.items())
      presets += [f'--preset {name}', *textwrap.wrap(
          words or 'the defaults above', 80, initial_indent=' ' * 6,
          subsequent_indent=' ' * 6, break_on_hyphens=False)]
    parser = _Parser(
        usage=argparse.SUPPRESS, description=usage.strip(),
        epilog='\n'.join(presets), allow_abbrev=False, add_help=False,
        argument_default=argparse.SUPPRESS, formatter_class=_Layout)
    group = parser
    for index, flag in enumerate(self._flags.values()):
      if index in self._headings or not index:
        group = parser.add_argument_group(self._headings.get(index, 'Flags'))
      group.add_argument(f'--{flag.name}', **flag.help())
    return parser

  def _complain(self, word):
    if not word.startswith('--'):
      raise terminal.UserError(
          f"'{word}' is not a flag: write flags as --name value.")
    self._known(word[2:].partition('=')[0], terminal.UserError, '--')

  def _known(self, name, error=AttributeError, dashes=''):
    if name in self._flags:
      return
    near = difflib.get_close_matches(name, self._flags, 3, 0.6)
    hint = ' or '.join(dashes + word for word in near)
    hint = f'Did you mean {hint}?' if near else 'See --help.'
    raise error(f'unknown flag {dashes}{name}. {hint}')


class _Parser(argparse.ArgumentParser):

  def error(self, message):
    missing = re.match(r'argument (--\w+): expected (\d+)?', message)
    if missing:
      name, count = missing.groups()
      message = f'{name} needs ' + (f'{count} values' if count else 'a value')
    raise terminal.UserError(f'{message}.')


class _Layout(argparse.RawDescriptionHelpFormatter):
  """A line for a flag and its default; its meaning stands below."""

  def __init__(self, prog):
    super().__init__(prog, max_help_position=6, width=80)

  def _split_lines(self, text, width):
    return textwrap.wrap(text, width, break_on_hyphens=False)


def whole(number):
  """A float as the int that it is."""
  if not number.is_integer():  # inf and nan are none.
    raise ValueError
  return int(number)


def _guarded(word):
  """A word of the command line so that argparse sees what is a flag."""
  if word.startswith('--'):  # --batch-size is --batch_size.
    name, joined, value = word[2:].partition('=')
    return f'--{name.replace("-", "_")}{joined}{value}'
  return f' {word}' if word.startswith('-') else word


def _bare(word):
  return word[1:] if word.startswith(' -') else word


def _plain(value):
  if isinstance(value, (list, tuple)):
    return list(map(_plain, value))
  return str(value) if isinstance(value, pathlib.Path) else value


def _words(name, value):
  """Words that give a flag a value on the command line."""
  if isinstance(value, dict):
    value = [part for pair in value.items() for part in pair]
  if isinstance(value, list):
    return [f'--{name}', *map(str, value)]
  joined = str(value).startswith('--')
  return [f'--{name}={value}'] if joined else [f'--{name}', str(value)]


def _show(value):
  if isinstance(value, (list, tuple)):
    return ' '.join(map(_show, value))
  if isinstance(value, pathlib.Path) and value.parts[:1] not in (
      (), ('/',), ('..',)):
    return f'./{value}'
  return f'{value:g}' if isinstance(value, float) else str(value) or "''"
