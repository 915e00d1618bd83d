"""A paper's tables and figures, run again: `python -m lorachains.reproduce table=cola-table1 size=small`.

`sweeps` reads `sweeps/*.yaml` and says which jobs make a table, `runs` which of them are finished, `passes` has the
others made by a Hydra multirun in a process of its own (`worker`), `overview` shows how far it is. `wandb_sweep` turns
the same files into W&B sweeps.
"""
