"""Regular expressions for the names of variables, as flags hold them."""

import difflib
import re

from common import layers, terminal


def fits(pattern, name):
  """Whether a pattern is found in a name; an empty one is in none."""
  return bool(pattern) and re.search(pattern, name) is not None


def check(flag, pattern, names):
  """Raises a `UserError` if the value of a flag fits no variable.

  Given the names of all variables, each alternative of the regular expression
  must fit one of them, or one of pcont, which an agent may lack; an empty value
  is for none.
  """
  if not pattern:
    return
  names = list(names)
  parts = alternatives(pattern)
  lacking = [
      f'pcont/{layer}/{part}' for layer in layers.names('pcont')
      for part in ('kernel', 'bias')] if len(parts) > 1 else []
  for part in parts:
    if not any(fits(part, name) for name in [*names, *lacking]):
      raise terminal.UserError(
          f"--{flag} '{pattern}': no variable fits " + (
              'it' if part == pattern else f"its part '{part}'") +
          f'; near are {", ".join(_near(part, names))}.')


def alternatives(pattern):
  """The pattern with each of its alternatives in turn, and none beside it.

  `^(reward|value)/h` is `^(reward)/h` and `^(value)/h`. Brackets that are
  repeated, or look ahead or back, stay as they are.
  """
  found = []
  for part in _split(pattern):
    groups = [
        (begin, end, _split(part[begin:end])) for begin, end in _groups(part)]
    found += [
        part[:begin] + word + part[end:] for begin, end, words in groups
        for word in words if len(words) > 1] or [part]
  return found


def _split(pattern):
  """The parts of a pattern between the `|` that stand outside of brackets."""
  parts, begin = [], 0
  for index, sign, depth in _signs(pattern):
    if sign == '|' and not depth:
      parts.append(pattern[begin:index])
      begin = index + 1
  return [*parts, pattern[begin:]]


def _groups(pattern):
  """Where the insides of brackets begin and end."""
  opened = []
  for index, sign, _ in _signs(pattern):
    if sign == '(':
      opened.append(index + 1)
    elif sign == ')' and opened:
      begin = opened.pop()
      if pattern.startswith('?:', begin):
        begin += 2
      elif pattern.startswith('?', begin):
        continue
      if not pattern.startswith(('*', '+', '?', '{'), index + 1):
        yield begin, index


def _signs(pattern):
  """`(index, sign, open brackets before it)` of what is no plain character."""
  depth, escaped, inside = 0, False, False
  for index, sign in enumerate(pattern):
    if not escaped and not inside and sign in '(|)':
      yield index, sign, depth
      depth += (sign == '(') - (sign == ')')
    if not escaped:
      inside = sign == '[' or inside and sign != ']'
    escaped = sign == '\\' and not escaped


def _near(part, names):
  """Some names that a pattern may have meant, layers and modules too."""
  plain = re.sub(r'[^\w/]', '', part)
  containing = [name for name in names if plain and plain in name]
  pieces = [name.split('/') for name in names]
  prefixes = dict.fromkeys(
      '/'.join(words[:count]) for words in pieces
      for count in range(1, len(words)))
  for candidates in (names, prefixes):
    close = containing or difflib.get_close_matches(plain, candidates, 3, 0.5)
    if close:
      return close[:3]
  return sorted({words[0] for words in pieces})
