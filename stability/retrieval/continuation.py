"""Answers of a model to a text, with and without what a datastore holds."""

from typing import NamedTuple

import numpy as np

from stability.data.tokenize.stored import StoredTokenizer
from stability.retrieval import knn, lexical, search
from stability.retrieval.datastore import Datastore
from stability.retrieval.model import Model

NEIGHBOURS, WEIGHT = 64, 0.25  # if none were tuned
PASSAGES = 2
SHOWN = 3  # neighbours of the next token


class Neighbour(NamedTuple):
  """A place in a datastore whose key is near that of a text."""

  distance: float  # squared
  before: bytes  # the text up to the value
  value: bytes  # the token that follows it there
  source: str


class Answer(NamedTuple):
  """The most likely continuations of a text, and what was found for it."""

  alone: bytes
  with_passages: bytes
  with_neighbours: bytes
  passages: list[lexical.Found]
  neighbours: list[Neighbour]  # of the first token
  setting: knn.Setting
  is_tuned: bool


def answer(
    model: Model,
    tokenizer: StoredTokenizer,
    store: Datastore,
    passages: lexical.Passages,
    text: bytes,
    setting: knn.Setting | None = None,
) -> Answer:
  """Continues a text by as many tokens as a quarter of a window has, always with the likeliest.

  Args:
    model: the model.
    tokenizer: of the model.
    store: a datastore of the model.
    passages: those of the text of the datastore.
    text: to continue.
    setting: how to mix the neighbours with the model. None: it was not tuned, and the temperature
      is the spread of the distances of the first token's neighbours.
  """
  T = model.sequence_length
  tokens, quarter = tokenizer.encode(text), T // 4
  found = passages.found(text, PASSAGES)
  before = [passage.tokens for passage in reversed(found)]  # the best one is the last
  room = T - sum(map(len, before)) - quarter
  prompt = np.concatenate([*before, tokens[-room:]])
  key, _ = model.next_token(tokens)
  near = search.nearest(key[None], store.arrays(), NEIGHBOURS)
  neighbours = []
  for distance, index in zip(near.distances_QxK[0, :SHOWN], near.indices_QxK[0], strict=False):
    source, window = store.source(int(index))
    decoded = tokenizer.decode(window[:-1]), tokenizer.decode(window[-1:])
    neighbours.append(Neighbour(float(distance), *decoded, source))
  is_tuned = setting is not None
  if not is_tuned:
    setting = knn.Setting(NEIGHBOURS, knn.spread(near.distances_QxK), WEIGHT)
  return Answer(
      tokenizer.decode(_continue(model, tokens, quarter)),
      tokenizer.decode(_continue(model, prompt, quarter)),
      tokenizer.decode(_continue(model, tokens, quarter, store, setting)),
      found,
      neighbours,
      setting,
      is_tuned,
  )


def _continue(
    model: Model,
    tokens: np.ndarray,
    count: int,
    store: Datastore | None = None,
    setting: knn.Setting | None = None,
) -> np.ndarray:
  """The `count` tokens that follow, each the likeliest; with a datastore, those of the mixture."""
  all_tokens = tokens.astype(np.int64)
  for _ in range(count):
    key, log_p_V = model.next_token(all_tokens)
    if store is not None:
      near = search.nearest(key[None], store.arrays(), setting.k)
      is_value_VxK = store.values(near.indices_QxK) == np.arange(len(log_p_V))[:, None]
      distances = np.broadcast_to(near.distances_QxK, is_value_VxK.shape)
      log_knn = knn.log_p_knn(distances, is_value_VxK, setting.k, setting.temperature)
      log_p_V = knn.mixed(log_p_V, log_knn, setting.weight)
    all_tokens = np.append(all_tokens, np.argmax(log_p_V))
  return all_tokens[len(tokens) :]
