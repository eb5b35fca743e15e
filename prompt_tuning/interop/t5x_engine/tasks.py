"""Our tasks in SeqIO's registry, where T5X looks them up by name."""

from typing import Any

import seqio

# What this file has registered: name -> (task, vocabulary).
_MADE: dict[str, Any] = {}


def registered(task: Any, vocabulary: Any) -> str:
  """The name under which SeqIO knows a task; registers it if need be.

  Args:
    task: `data.task.TextTask`; of `data.registered.Registered`, its own entry.
    vocabulary: of the backbone.

  Raises:
    ValueError: if the name stands for something else.
  """
  provider = task.build(vocabulary)
  registry = seqio.TaskRegistry
  if isinstance(provider, seqio.Mixture):
    registry = seqio.MixtureRegistry
    for part in getattr(task, "tasks", ()):
      registered(part, vocabulary)
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if provider.name not in known:
    registry.add_provider(provider.name, provider)
    _MADE[provider.name] = (task, vocabulary)
    return provider.name
  same = _MADE.get(provider.name) == (task, vocabulary)
  if not same and seqio.get_mixture_or_task(provider.name) is not provider:
    raise ValueError(
      f"SeqIO knows another task named {provider.name!r}. Give this one a name of its "
      "own (TASK_NAME in gin/tasks/files.gin)."
    )
  return provider.name
