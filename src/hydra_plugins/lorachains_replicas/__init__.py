"""The Hydra launcher `hydra/launcher=replicas`."""
