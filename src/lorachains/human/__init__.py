"""People rate answers without knowing whose they are: `python -m lorachains.human` (Chain-of-LoRA §II-C, Tab. IV)."""

from lorachains.human.agreement import krippendorff_alpha, wilson
from lorachains.human.reading import Verdict, read_sheets, summarise
from lorachains.human.sheets import RATINGS, Item, make_sheets, write_sheets

__all__ = [
    "RATINGS", "Item", "Verdict", "krippendorff_alpha", "make_sheets", "read_sheets", "summarise", "wilson",
    "write_sheets",
]  # fmt: skip
