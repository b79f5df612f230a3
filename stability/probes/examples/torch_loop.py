"""Probes and alarms in a plain PyTorch loop; the learning rate is far too high."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

import stability
from stability.probes import torch_probes

PROBE_EVERY = 5
VOCABULARY, WIDTH, POSITIONS = 32, 64, 16

torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True, norm_first=True)
model = nn.Sequential(
    nn.Embedding(VOCABULARY, WIDTH),
    nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
    nn.Linear(WIDTH, VOCABULARY),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
monitor = stability.Monitor()

for step in range(31):
  tokens = torch.randint(VOCABULARY, (8, POSITIONS))
  is_probed = step % PROBE_EVERY == 0
  with torch_probes.measure(model, optimizer) if is_probed else nullcontext({}) as row:
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  for alarm in monitor.observe({'step': step, 'loss': loss.item(), **row}):
    print(f'step {alarm.step}: {alarm.rule}: {alarm.message}')
for rule, needs in monitor.lacking.items():
  print(f'{rule} needs {needs}')
