"""Turns one documented table of defaults into flags, checks and records."""

import difflib
import json
import pathlib
import textwrap

from common import terminal

_TRUE, _FALSE = ('true', 'yes', '1'), ('false', 'no', '0')


class Config:
  """Named values with a default, a meaning and a range each.

  Values are read and set as attributes; a name that was never defined is an
  error that shows the near ones.
  """

  def __init__(self):
    vars(self).update(
        _values={}, _flags={}, _presets={}, _headings={}, _given=set())

  def heading(self, text):
    """Groups the flags that follow, for `--help`."""
    self._headings[len(self._flags)] = text

  def define(
      self, name, default, meaning, choices=None, low=None, high=None,
      positive=False, fixed=True, method=True):
    """Adds a flag, or replaces the one of that name.

    Args:
      name: of the flag, without dashes.
      default: value, whose type is that of the flag.
      meaning: sentences for `--help`.
      choices: list of the values that are allowed.
      low: smallest number that is allowed.
      high: largest number that is allowed.
      positive: whether a number must be greater than 0.
      fixed: whether a run must keep the value when it is continued.
      method: whether runs with other values are another method in plots.
    """
    self._flags[name] = dict(
        default=default, meaning=meaning, choices=choices, low=low, high=high,
        positive=positive, fixed=fixed, method=method)
    self._values[name] = default

  def preset(self, name, **values):
    """Names a set of values that `--preset NAME` puts in place."""
    for key in values:
      self._known(key)
    self._presets[name] = values

  def __getattr__(self, name):
    if name.startswith('_'):
      raise AttributeError(name)
    self._known(name)
    return self._values[name]

  def __setattr__(self, name, value):
    self._known(name)
    self._values[name] = self._checked(name, value)

  def __contains__(self, name):
    return name in self._values

  def __eq__(self, other):
    return isinstance(other, Config) and self.plain() == other.plain()

  def update(self, values):
    """Sets several values, from a saved configuration for example."""
    for name, value in values.items():
      setattr(self, name, value)

  def plain(self):
    """All values as a dict that JSON and pickle can hold."""
    return {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in self._values.items()}

  def changed(self):
    """The values that differ from the defaults."""
    return {
        name: value for name, value in self.plain().items()
        if value != _plain(self._flags[name]['default'])}

  def differences(self, saved):
    """`{name: (saved, ours)}` where a saved configuration disagrees.

    Flags that only one side knows are compared with our default.
    """
    ours = self.plain()
    result = {}
    for name, value in ours.items():
      other = saved.get(name, _plain(self._flags[name]['default']))
      if other != value:
        result[name] = (other, value)
    return result

  def parse(self, argv):
    """Reads `--name value` pairs; flags win over the preset they stand by."""
    given = {}
    words = list(argv)
    while words:
      word = words.pop(0)
      if not word.startswith('--'):
        raise terminal.UserError(
            f"'{word}' is not a flag: write flags as --name value.")
      name, joined, value = word[2:].partition('=')
      self._known(name, terminal.UserError, '--')
      if not joined:
        if not words or words[0].startswith('--'):
          raise terminal.UserError(f'--{name} needs a value.')
        value = words.pop(0)
      given[name] = value
    if self._presets and 'preset' in given:
      self.preset_name(given.pop('preset'))
    for name, text in given.items():
      setattr(self, name, self._from_text(name, text))
    self._given.update(given)
    return self

  def given(self, name):
    """Whether a flag was given by name, not by default or by a preset."""
    self._known(name)
    return name in self._given

  def default(self, name):
    """The default of a flag, as `plain` gives values."""
    self._known(name)
    return _plain(self._flags[name]['default'])

  def fixed(self, name):
    """Whether a run must keep the value of a flag when it is continued."""
    self._known(name)
    return self._flags[name]['fixed']

  def method(self, name):
    """Whether runs with other values of a flag are another method in plots."""
    self._known(name)
    return self._flags[name]['method']

  def command(self, argv, usage):
    """Reads the flags of a program; `--help` prints the manual and ends it."""
    if '--help' in argv or '-h' in argv:
      print(self.help(usage))
      raise SystemExit
    return self.parse(argv)

  def preset_name(self, name):
    """Puts the values of the preset called `name` in place."""
    self._values['preset'] = self._checked('preset', name)
    self.update(self._presets[name])

  def help(self, usage):
    """The manual: every flag, its default and what it does."""
    lines = [usage.strip(), '']
    for index, (name, flag) in enumerate(self._flags.items()):
      if index in self._headings:
        lines += ['', self._headings[index]]
      head = f'  --{name} {_show(flag["default"])}'
      meaning = flag['meaning']
      if flag['choices']:
        meaning += f" One of: {', '.join(map(_show, flag['choices']))}."
      lines.append(head)
      lines += textwrap.wrap(
          meaning, 78, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
    for name, values in self._presets.items():
      words = ' '.join(f'--{k} {_show(v)}' for k, v in values.items())
      lines += ['', f'--preset {name}']
      lines += textwrap.wrap(
          words or 'the defaults above', 78, initial_indent=' ' * 6,
          subsequent_indent=' ' * 6, break_on_hyphens=False)
    return '\n'.join(lines)

  def save(self, path):
    """Writes all values as JSON, whole or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(json.dumps(self.plain(), indent=2) + '\n')
    temporary.replace(path)

  def _known(self, name, error=AttributeError, dashes=''):
    if name in self._flags:
      return
    near = difflib.get_close_matches(name, self._flags, 3, 0.6)
    hint = ' or '.join(dashes + word for word in near)
    hint = f'Did you mean {hint}?' if near else 'See --help.'
    raise error(f'unknown flag {dashes}{name}. {hint}')

  def _from_text(self, name, text):
    default = self._flags[name]['default']
    try:
      if isinstance(default, bool):
        if text.lower() not in _TRUE + _FALSE:
          raise ValueError
        return text.lower() in _TRUE
      if isinstance(default, int):
        number = float(text)
        if number != int(number):
          raise ValueError
        return int(number)
      return type(default)(text)
    except (ValueError, OverflowError):
      kind = {bool: 'True or False', int: 'a whole number'}.get(
          type(default), 'a number')
      raise terminal.UserError(
          f"--{name} takes {kind}, not '{text}'.") from None

  def _checked(self, name, value):
    flag = self._flags[name]
    default = flag['default']
    if isinstance(default, pathlib.Path):
      value = pathlib.Path(value)
    elif isinstance(default, float) and type(value) is int:
      value = float(value)
    elif isinstance(default, str) and flag['choices'] and (
        type(value) is int):
      value = str(value)  # As in `config.precision = 16`.
    elif isinstance(default, int) and type(value) is float:
      value = int(value) if value.is_integer() else value
    if type(value) is not type(default) and not isinstance(
        default, pathlib.Path):
      raise terminal.UserError(
          f'--{name} takes a value like {default!r}, not {value!r}.')
    if flag['choices'] and value not in flag['choices']:
      near = difflib.get_close_matches(str(value), flag['choices'], 3)
      words = ', '.join(map(_show, flag['choices']))
      raise terminal.UserError(
          f'--{name} takes one of {words}; not {value}.' + (
              f' Did you mean {near[0]}?' if near else ''))
    if isinstance(value, float) and value != value:
      raise terminal.UserError(f'--{name} takes a number, not nan.')
    low, high = flag['low'], flag['high']
    if low is not None and value < low:
      raise terminal.UserError(
          f'--{name} must be at least {low}, not {value}.')
    if high is not None and value > high:
      raise terminal.UserError(
          f'--{name} must be at most {high}, not {value}.')
    if flag['positive'] and value <= 0:
      raise terminal.UserError(f'--{name} must be more than 0, not {value}.')
    return value


def _plain(value):
  return str(value) if isinstance(value, pathlib.Path) else value


def _show(value):
  return f'{value:g}' if isinstance(value, float) else str(value) or "''"
