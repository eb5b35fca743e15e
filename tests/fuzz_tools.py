"""Files changed at random, and the promise that readers keep then.

A reader of a damaged file raises ValueError or succeeds: within a time, and without
asking for memory that the file cannot fill.
"""

import contextlib
import json
import pathlib
import random
import resource
import shutil
import signal
import struct

import msgpack

SECONDS = 60
UNREAD = ("commit_success.txt", "_CHECKPOINT_METADATA", "_sharding", "process_0")
# Above what the process has; tensorstore's threads reserve much that they never use.
ROOM = 3 << 30
ODD = (
  None, True, -1, 0, 1, 2, 3.5, 1e308, 10**6, 2**31, 2**63, 10**30, "", "x", "../x",
  [], {}, [10**12, 10**12], [-1, -1], [[]], {"a": 1}, "float32", "bfloat16", "object",
)  # fmt: skip


class HangError(BaseException):
  """A reader took too long; no `except Exception` may swallow it."""


def mutate(folder, rng):
  """Changes one file of a folder (or one file); returns what undoes it."""
  paths = [folder] if folder.is_file() else sorted(walk(folder))
  path = rng.choice(paths)
  whole = path.read_bytes()
  other = rng.choice(paths)
  kind = rng.choice(KINDS)
  if kind == "delete":
    path.unlink()
  elif kind == "folder":
    path.unlink()
    path.mkdir()
  elif kind == "swap":
    path.write_bytes(other.read_bytes())
  else:
    path.write_bytes(CHANGES[kind](whole, rng, path))

  def undo():
    if path.is_dir():
      shutil.rmtree(path)
    path.write_bytes(whole)

  return f"{kind} of {path.name}", undo


def walk(folder):
  """Files that a reader may open; the rest of an Orbax folder only tells its story."""
  for path in folder.rglob("*"):
    told = path.name in UNREAD or "ocdbt.process_0" in path.parts
    if path.is_file() and not told:
      yield path


def flip(data, rng, path):
  data = bytearray(data or b"x")
  for _ in range(rng.randint(1, 8)):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  return bytes(data)


def truncate(data, rng, path):
  return data[: rng.choice([0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)])]


def splice(data, rng, path):
  """Bytes cut out, doubled, or put in."""
  at, size = rng.randrange(len(data) + 1), rng.randint(1, 40)
  piece = rng.choice([b"", data[at : at + 2 * size], rng.randbytes(size)])
  return data[:at] + piece + data[at + size :]


def digits(data, rng, path):
  """A number that stands in the file as text becomes another one."""
  places = [i for i, byte in enumerate(data[:100_000]) if 48 <= byte < 58]
  if not places:
    return flip(data, rng, path)
  at = rng.choice(places)
  number = rng.choice([b"0", b"-7", b"99999999999", b"4294967296", b"1e9"])
  return data[:at] + number + data[at + 1 :]


def claim(data, rng, path):
  """A length field claims much more than there is."""
  size = rng.choice([4, 8])
  value = rng.choice([2**31 - 1, 2**32 - 1, 10**9, len(data) + 1, 2**20])
  order = rng.choice(["little", "big"])
  at = rng.choice([0, 0, rng.randrange(len(data) + 1)])
  return data[:at] + value.to_bytes(size, order) + data[at + size :]


def structure(data, rng, path):
  """A node of the tree in a JSON, safetensors or msgpack file is changed."""
  try:
    if path.suffix == ".safetensors":
      length = struct.unpack("<Q", data[:8])[0]
      text = json.dumps(edited(json.loads(data[8 : 8 + length]), rng)).encode()
      return struct.pack("<Q", len(text)) + text + data[8 + length :]
    if path.name == "checkpoint":
      tree = msgpack.unpackb(data, ext_hook=msgpack.ExtType, strict_map_key=False)
      return msgpack.packb(edited(tree, rng), default=str)
    return json.dumps(edited(json.loads(data), rng)).encode()
  except (ValueError, OverflowError):
    return flip(data, rng, path)


def edited(tree, rng):
  """The tree with one node replaced, removed, or renamed."""
  if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.15:
    return rng.choice(ODD)
  keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
  key = rng.choice(keys)
  tree = dict(tree) if isinstance(tree, dict) else list(tree)
  how = rng.random()
  if how < 0.1:
    del tree[key]
  elif how < 0.2 and isinstance(tree, dict):
    tree[rng.choice(["x", "encoder", "../../x", *map(str, keys)])] = tree.pop(key)
  else:
    tree[key] = edited(tree[key], rng)
  return tree


CHANGES = {
  "flip": flip,
  "truncation": truncate,
  "splice": splice,
  "digits": digits,
  "claim": claim,
  "structure": structure,
}
# Structure and numbers are where readers go wrong.
KINDS = (
  *CHANGES,
  "structure",
  "structure",
  "digits",
  "claim",
  "swap",
  "delete",
  "folder",
)


@contextlib.contextmanager
def limited():
  """No more memory than there is now and some room; a limit of time for each case."""
  status = pathlib.Path("/proc/self/status")
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)

  def late(*_):
    raise HangError

  before = signal.signal(signal.SIGALRM, late)
  if status.is_file():
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, ((int(line.split()[1]) << 10) + ROOM, hard))
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(folder, read, count, seed=0):
  """(refused, accepted) of `count` changes; any other end of `read` is raised."""
  refused = accepted = 0
  with limited():
    for number in range(count):
      rng = random.Random(f"{folder.name} {seed} {number}")
      what, undo = mutate(folder, rng)
      signal.alarm(SECONDS)
      try:
        read(folder)
        accepted += 1
      except ValueError as error:
        assert str(error), what
        refused += 1
      except BaseException as error:
        raise AssertionError(f"{what}, case {number} of seed {seed}") from error
      finally:
        signal.alarm(0)
        undo()
  read(folder)
  return refused, accepted
