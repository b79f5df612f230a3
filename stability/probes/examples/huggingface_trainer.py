"""Probes and alarms in a Hugging Face Trainer, as a callback; the learning rate is far too high."""

import contextlib
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import stability
from stability.probes import torch_probes


class Alarms(TrainerCallback):
  def __init__(self):
    self.monitor, self.row, self.hooks = stability.Monitor(), {}, contextlib.ExitStack()

  def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
    if (state.global_step + 1) % args.logging_steps == 0:
      self.row = self.hooks.enter_context(torch_probes.measure(model, optimizer))

  def on_step_end(self, args, state, control, **kwargs):
    self.hooks.close()  # fills the row in

  def on_log(self, args, state, control, logs, **kwargs):
    if 'loss' in logs:
      row = {'step': state.global_step, 'loss': logs['loss'], **self.row}
      for alarm in self.monitor.observe(row):
        print(f'step {alarm.step}: {alarm.rule}: {alarm.message}')


torch.manual_seed(0)
sizes = {'vocab_size': 32, 'n_positions': 16, 'n_embd': 64, 'n_layer': 2, 'n_head': 4}
config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
alarms = Alarms()
texts = [{'input_ids': ids, 'labels': ids} for ids in torch.randint(32, (64, 16))]
with tempfile.TemporaryDirectory() as folder:
  options = {'report_to': [], 'save_strategy': 'no', 'disable_tqdm': True, 'use_cpu': True}
  arguments = TrainingArguments(folder, learning_rate=0.3, max_steps=30, logging_steps=5, **options)
  Trainer(GPT2LMHeadModel(config), arguments, train_dataset=texts, callbacks=[alarms]).train()
