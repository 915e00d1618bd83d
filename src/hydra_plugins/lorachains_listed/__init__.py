"""The Hydra sweeper `hydra/sweeper=listed`."""
