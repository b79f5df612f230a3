"""The device on which runs will be trained."""

from launch.common import training_device


def test_device_of_training(monkeypatch):
  """Without an accelerator jax is not asked; where it finds none, nothing is known."""
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(training_device.environment, 'has_accelerator', lambda: False)
  assert training_device.find() == {'platform': 'cpu'}
  monkeypatch.setattr(training_device.environment, 'has_accelerator', lambda: True)
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu,cpu')
  assert training_device.find() == {'platform': 'unknown'}
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert training_device.find() == {'platform': 'cpu', 'kind': 'cpu'}
